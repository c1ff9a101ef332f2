#!/usr/bin/env python3
"""Install detectron2 v0.6 into the environment of the Python that runs this file.

detectron2 is not on PyPI under its own name, and its last release does not import on a current numpy and Pillow.
The sdist `pb1-detectron2` 0.6 carries the unchanged Python files of the tag v0.6 (not its C++ sources). This script
downloads it (pinned by sha256), applies the fixes of detectron2_fixes.py, builds a wheel of the distribution
`detectron2` 0.6 without the C++ extension, and installs that wheel. Nothing that dinox uses needs the extension:
ROIAlign, NMS and deformable convolutions come from torchvision, COCO evaluation from pycocotools.

    python tools/detectron2_v06.py [--cache FOLDER] [--wheel-only]

A detectron2 that already imports is never touched. Needs torch and setuptools<82, which `make setup` installs first.
Only the standard library is used.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import detectron2_fixes
from detectron2_fixes import FixFailed, apply_fixes

VERSION = "0.6"
SDIST_NAME = "pb1-detectron2"
SDIST_FILE = f"{SDIST_NAME}-{VERSION}.tar.gz"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
# Recent pips refuse this sdist, because one of its extras names a direct URL. This one takes it. It is used for this
# one download, from a temporary folder: the environment keeps the pip that it has.
PIP_VERSION = "23.2.1"
PIP_SHA256 = "7ccf472345f20d35bdc9d1841ff5f313260c2c33fe417f48c30ac46cccabf5be"

WHEEL_FILE = f"detectron2-{VERSION}-py3-none-any.whl"
SUMMARY = "detectron2 v0.6, Python part, repaired for current numpy and Pillow (built by dinox)"
DEFAULT_CACHE = Path(__file__).resolve().parent.parent / ".setup" / "detectron2"


class SetupError(Exception):
    """A step that failed for a reason the user can act on; the message says which step and what to do."""


# ------------------------------------------------------------------------------------------------------------- download


def say(line: str) -> None:
    # tools/bootstrap.py shows the lines that start with this word.
    print(f"detectron2_v06: {line}", flush=True)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(command: list[str], step: str, cure: str, **kwargs) -> None:
    """Run a command with its output passed through; a failure becomes a SetupError that names the step."""
    status = subprocess.run(command, stdin=subprocess.DEVNULL, **kwargs).returncode
    if status != 0:
        raise SetupError(f"{step} failed (exit status {status}; its output is above). {cure}")


def verify_sdist(path: Path) -> None:
    found = sha256_of(path)
    if found != SDIST_SHA256:
        raise SetupError(
            f"{path.name} has sha256 {found}, expected {SDIST_SHA256}. It is not used: "
            "your package index serves another file under this name. Try another index (PIP_INDEX_URL)."
        )


def download_sdist(cache: Path) -> Path:
    """Return the verified sdist in `cache`, downloading it if it is not there."""
    sdist = cache / SDIST_FILE
    if sdist.is_file() and sha256_of(sdist) == SDIST_SHA256:
        return sdist
    with tempfile.TemporaryDirectory(prefix="dinox-pip-") as folder:
        downloaded = _download_with_pinned_pip(Path(folder))
        verify_sdist(downloaded)
        shutil.copyfile(downloaded, sdist)
    return sdist


def _download_with_pinned_pip(folder: Path) -> Path:
    # --require-hashes makes pip compare the hash before it runs anything of the downloaded file.
    pip_pin = folder / "pip.txt"
    pip_pin.write_text(f"pip=={PIP_VERSION} --hash=sha256:{PIP_SHA256}\n", encoding="utf-8")
    sdist_pin = folder / "sdist.txt"
    sdist_pin.write_text(f"{SDIST_NAME}=={VERSION} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    pip_folder = folder / "pip"
    pip = [sys.executable, "-m", "pip"]
    network = "Check that pip can reach its package index (network, proxy, PIP_INDEX_URL), then run this again."

    say(f"fetching pip {PIP_VERSION}, for this one download only")
    target = [*pip, "install", "--no-deps", "--require-hashes", "--target", str(pip_folder), "-r", str(pip_pin)]
    run(target, f"fetching pip {PIP_VERSION}", network)

    say(f"downloading {SDIST_FILE}")
    options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes"]
    download = [*pip, "download", *options, "--dest", str(folder), "-r", str(sdist_pin)]
    run(download, f"downloading {SDIST_FILE}", network, env={**os.environ, "PYTHONPATH": str(pip_folder)})
    return folder / SDIST_FILE


# ---------------------------------------------------------------------------------------------------------------- wheel

# What replaces the sdist's setup.py: another name, no extension, every file of the model zoo, and none of the pins that
# contradict each other today (black==21.4b2, iopath<0.1.10) or served caffe2 (future, pydot).
SETUP_PY = f'''
from pathlib import Path
from setuptools import find_packages, setup

PROJECTS = {{
    "detectron2.projects.point_rend": "projects/PointRend/point_rend",
    "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
    "detectron2.projects.panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}}
ZOO = Path("detectron2/model_zoo")
CONFIGS = [str(path.relative_to(ZOO)) for path in sorted(ZOO.glob("configs/**/*")) if path.is_file()]

setup(
    name="detectron2",
    version="{VERSION}",
    description="{SUMMARY}",
    author="FAIR",
    packages=find_packages(include=["detectron2", "detectron2.*"]) + list(PROJECTS),
    package_dir=PROJECTS,
    package_data={{"detectron2.model_zoo": CONFIGS}},
    python_requires=">=3.10",
    install_requires=[
        "Pillow>=7.1",
        "matplotlib",
        "pycocotools>=2.0.2",
        "termcolor>=1.1",
        "yacs>=0.1.8",
        "tabulate",
        "cloudpickle",
        "tqdm>4.29.0",
        "tensorboard",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1",
        "numpy",
    ],
)
'''


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the sdist below `folder` and return the folder that holds its setup.py."""
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:  # Python 3.10.0-3.10.11; the hash has been checked, so the members are known to be harmless
            archive.extractall(folder)
    return folder / f"{SDIST_NAME}-{VERSION}"


def recipe_sha256() -> str:
    """A wheel in the cache is good as long as these two files, which hold the whole recipe, are the same."""
    files = (__file__, detectron2_fixes.__file__)
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def build_wheel(cache: Path) -> Path:
    """Return the wheel in `cache`, building it from the sdist unless the same recipe has built it before."""
    wheel, recipe = cache / WHEEL_FILE, cache / "recipe.sha256"
    if wheel.is_file() and recipe.is_file() and recipe.read_text(encoding="utf-8").strip() == recipe_sha256():
        say(f"using the wheel built before: {wheel}")
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    sdist = download_sdist(cache)
    with tempfile.TemporaryDirectory(prefix="dinox-detectron2-") as folder:
        source = unpack(sdist, Path(folder))
        say(f"applied {apply_fixes(source / 'detectron2')} fixes")
        for leftover in ("setup.cfg", "PKG-INFO"):
            (source / leftover).unlink()
        (source / "setup.py").write_text(SETUP_PY, encoding="utf-8")
        options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", folder]
        cure = 'Needs setuptools<82 and wheel in this environment: pip install "setuptools<82" wheel'
        run([sys.executable, "-m", "pip", "wheel", *options, str(source)], f"building {WHEEL_FILE}", cure)
        recipe.unlink(missing_ok=True)  # an interruption between the two writes must not leave a match
        shutil.copyfile(Path(folder) / WHEEL_FILE, wheel)
        recipe.write_text(recipe_sha256() + "\n", encoding="utf-8")
    say(f"built and kept {wheel}")
    return wheel


# -------------------------------------------------------------------------------------------------------------- install

# Run in a fresh interpreter, because this one may have looked for detectron2 before it was there.
CHECK = """
import os, torch
import detectron2
from detectron2 import model_zoo
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultPredictor, DefaultTrainer, SimpleTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ROIAlign
from detectron2.modeling import build_model
from detectron2.utils.visualizer import Visualizer
import numpy as np

yaml_config = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
lazy_config = model_zoo.get_config("common/models/mask_rcnn_fpn.py")
assert yaml_config.MODEL.RESNETS.DEPTH == 50 and "backbone" in lazy_config.model
pooled = ROIAlign(2, 1.0, 0)(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]]))
assert pooled.shape == (1, 1, 2, 2) and float(pooled.mean()) == 1.0, pooled
drawn = Visualizer(np.zeros((32, 32, 3), dtype=np.uint8)).draw_box((4, 4, 20, 20)).get_image()
assert drawn.shape == (32, 32, 3) and drawn.any()
print("detectron2", detectron2.__version__, "at", os.path.dirname(detectron2.__file__), "works")
"""

_DESCRIBE = "import detectron2, os; print(detectron2.__version__, 'at', os.path.dirname(detectron2.__file__))"


def _python(code: str) -> subprocess.CompletedProcess:
    # From an empty folder, so that nothing which lies in the current one can be imported by mistake.
    with tempfile.TemporaryDirectory(prefix="dinox-check-") as folder:
        return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["(no message)"])[-1]


def installed_detectron2() -> str | None:
    """'VERSION at FOLDER' of the detectron2 that imports here, or None."""
    found = _python(_DESCRIBE)
    return last_line(found.stdout) if found.returncode == 0 else None


def refuse_foreign_installation() -> None:
    """An installation that is there, is not ours and does not import is the user's to repair."""
    shown = _python("from importlib.metadata import metadata; print(metadata('detectron2')['Summary'])")
    if shown.returncode != 0 or shown.stdout.strip() == SUMMARY:
        return
    reason = last_line(_python(_DESCRIBE).stderr)
    raise SetupError(
        f"detectron2 is installed in {sys.prefix} but does not import: {reason}. "
        f"It was not installed by dinox, so it is left alone. Repair it, or remove it "
        f"({sys.executable} -m pip uninstall detectron2) and run this again."
    )


def require(module: str, cure: str) -> None:
    found = _python(f"import {module}")
    if found.returncode != 0:
        raise SetupError(f"{module} does not import in {sys.executable}: {last_line(found.stderr)}. {cure}")


def ensure_opencv() -> None:
    """detectron2's Visualizer needs cv2 and leaves the choice of the package, with or without windows, to the user."""
    if _python("import cv2").returncode != 0:
        say("cv2 is missing, which detectron2's Visualizer needs: installing opencv-python-headless")
        command = [sys.executable, "-m", "pip", "install", "opencv-python-headless"]
        run(command, "installing opencv-python-headless", "See pip's message above.")


def install(cache: Path, wheel_only: bool = False) -> None:
    present = None if wheel_only else installed_detectron2()
    if present:
        say(f"detectron2 {present} is importable and left alone")
        ensure_opencv()
        return
    require("pip", f"Get it with: {sys.executable} -m ensurepip")
    require("torch", "Install torch and torchvision first (make setup does).")
    require("setuptools", f'Install it first: {sys.executable} -m pip install "setuptools<82" wheel')
    if not wheel_only:
        refuse_foreign_installation()
    wheel = build_wheel(cache)
    if wheel_only:
        return
    # --force-reinstall --no-deps also repairs what an interrupted installation left behind.
    pip_install = [sys.executable, "-m", "pip", "install"]
    cure = "See pip's message above."
    run([*pip_install, str(wheel)], "installing detectron2 and what it needs", cure)
    if installed_detectron2() is None:
        run([*pip_install, "--force-reinstall", "--no-deps", str(wheel)], "reinstalling detectron2", cure)
    ensure_opencv()
    check()


def check() -> None:
    checked = _python(CHECK)
    if checked.returncode != 0:
        raise SetupError(f"detectron2 is installed but its check failed:\n{checked.stderr.strip()}")
    say(last_line(checked.stdout))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="keeps the sdist and the wheel (%(default)s)")
    parser.add_argument("--wheel-only", action="store_true", help="build the wheel, install nothing")
    options = parser.parse_args(arguments)
    try:
        install(options.cache.resolve(), options.wheel_only)
    except (SetupError, FixFailed) as error:
        print(f"detectron2_v06: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
