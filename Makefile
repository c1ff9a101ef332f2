# The targets are listed by `make`. Variables that can be given to each of them, as in `make setup VENV=active`:
#   VENV     folder of the virtual environment, or `active`: use the Python on PATH, install into its environment
#   PYTHON   the Python that makes the virtual environment (or, with VENV=active, is used)
#   ARGS     more arguments for `demo` (see `dinox demo --help`), `test` and `faults` (those of pytest)
VENV ?= .venv
ARGS ?=

ifeq ($(VENV),active)
PYTHON ?= python3
PY = $(PYTHON)
else
# The first Python that dinox supports; if there is none, tools/bootstrap.py says what is missing.
PYTHON ?= $(or $(firstword $(shell for python in python3 python3.12 python3.11 python3.13 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2> /dev/null && echo $$python; done; true)),python3)
PY = "$(VENV)/bin/python"
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults lint format clean

help:  ## list the targets
	@echo "dinox: end-to-end detection transformers for detectron2"
	@sed -n 's/^\([a-z]*\):.*  ## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | while IFS="$$(printf '\t')" read -r target text; do \
		printf '  make %-8s %s\n' "$$target" "$$text"; done

setup:  ## install everything into .venv (or VENV=active); run it as often as you like
	@$(PYTHON) tools/bootstrap.py --venv "$(VENV)"

demo: setup  ## train a small DINO on a generated dataset, evaluate it, show its detections
	@$(PY) -m dinox demo $(ARGS)

# The CUDA sources are compiled by `setup` wherever nvcc is found, with or without a GPU; it fails if they do not compile.
test: lint  ## setup, lint, then the tests
	@$(PY) -m pytest -q --durations=15 --durations-min=1 tests $(ARGS)

faults: setup  ## the catalogue of faults: what goes wrong in forty ways, and what dinox then does
	@$(PY) -m pytest -q tests/faults $(ARGS)

lint: setup  ## check the Python files with ruff
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: setup  ## format the Python files, and the C++ and CUDA sources where clang-format is installed
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .
	@format=$$(command -v "$$(dirname $(PY))/clang-format" clang-format | head -n 1); if [ -n "$$format" ]; then \
		find csrc -type f | xargs "$$format" -i; \
	else echo "csrc/ is left as it is: no clang-format ($(PY) -m pip install clang-format)"; fi

clean:  ## remove builds and caches; the environment, datasets and runs stay
	@rm -rf build dist .pytest_cache .ruff_cache .hypothesis .setup/stamp.json *.egg-info dinox/_C*.so
	@find dinox configs projects tests tools -name __pycache__ -type d -prune -exec rm -rf {} + 2> /dev/null || true
