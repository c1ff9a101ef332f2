"""Runs the operator's CPU tests under AddressSanitizer and UndefinedBehaviorSanitizer (gcc), once per instruction set.

    .venv/bin/python tools/sanitize.py

Everything happens in a temporary copy, so the extension that is installed stays as it is.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/ops/test_ms_deform_attn.py", "tests/ops/test_fused.py")
LEFT_OUT = "not compiles and not exports and not opcheck and not instruction_set"  # of the kernels they show nothing
FLAGS = ("-g1", "-O1", "-std=c++17", "-fopenmp", "-fPIC", "-shared")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("dinox", "csrc", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        _build(copy)
        return max(_test(copy, isa) for isa in ("avx512", "avx2", "portable"))


def _build(copy: Path) -> None:
    installed = Path(torch.__file__).parent
    includes = [f"-I{path}" for path in ("csrc", installed / "include", installed / "include/torch/csrc/api/include")]
    sources = ["csrc/ms_deform_attn.cpp", *map(str, (copy / "csrc/cpu").glob("*.cpp"))]
    libraries = [f"-L{installed / 'lib'}", "-lc10", "-ltorch", "-ltorch_cpu"]
    command = ["g++", *FLAGS, *SANITIZERS, *includes, *sources, *libraries, "-o", "dinox/_C.so"]
    subprocess.run(command, cwd=copy, check=True)


def _test(copy: Path, isa: str) -> int:
    found = [
        subprocess.check_output(["gcc", f"-print-file-name=lib{name}.so"], text=True) for name in ("asan", "ubsan")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(path.strip() for path in found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "DINOX_CPU_ISA": isa,
        "PYTHONPATH": str(copy),
    }
    print(f"{isa}:", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", LEFT_OUT, *TESTS]
    return subprocess.run(command, cwd=copy, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
