"""What a wheel brings, used from an empty folder: nothing of the checkout is within reach."""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("dinox", "configs", "projects")

# Prints what a user of the zoo gets, as json.
ASK = """
import json
import dinox
from dinox import model_zoo
names = model_zoo.list_configs()
configs = {name: model_zoo.get_config(name) for name in [*names, "common/data/coco_detr.py"]}
try:
    model_zoo.get(names[0], trained=True)
except ValueError as error:
    refused = str(error)
print(json.dumps({
    "package": dinox.__file__,
    "files": {name: model_zoo.get_config_file(name) for name in configs},
    "models": {name: cfg.model["_target_"].__name__ for name, cfg in configs.items() if "model" in cfg},
    "refused": refused,
}))
"""


def run(command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds nothing but what `pip install` made of a wheel, built without compiling."""
    work = tmp_path_factory.mktemp("wheel")
    # From a copy, so that neither earlier builds nor this one leave anything in the other.
    for name in FOLDERS:
        copytree(ROOT / name, work / "source" / name, ignore=ignore_patterns("__pycache__", "_C*.so"))
    for name in SOURCES:
        (work / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    build = [
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "--wheel-dir",
        work / "wheels",
        work / "source",
    ]
    run([*pip, *build], env=os.environ | {"DINOX_EXTENSION": "0"}, cwd=work)
    (wheel,) = (work / "wheels").glob("dinox-*.whl")
    run([*pip, "install", "--no-deps", "--no-index", "--no-compile", "--target", work / "installed", wheel], cwd=work)
    return work / "installed"


@pytest.fixture(scope="module")
def elsewhere(installed, tmp_path_factory):
    """Options of a process in an empty folder that sees the installation before the checkout."""
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return {"cwd": tmp_path_factory.mktemp("empty"), "env": environment}


@pytest.mark.slow
def test_the_zoo_of_a_wheel_is_its_own_copy(installed, elsewhere):
    found = json.loads(run([sys.executable, "-c", ASK], **elsewhere).splitlines()[-1])
    assert Path(found["package"]).is_relative_to(installed)
    copy = installed / "dinox" / "model_zoo" / "configs"
    assert all(Path(file).is_relative_to(copy) for file in found["files"].values()), found["files"]
    assert found["models"]["dino/dino_r50_4scale_12ep"] == "DetectionTransformer"
    assert found["files"].keys() - found["models"].keys() == {"common/data/coco_detr.py"}
    assert "No trained weights are published" in found["refused"]


@pytest.mark.slow
def test_a_wheel_holds_every_config_of_the_checkout(installed):
    copy = installed / "dinox" / "model_zoo" / "configs"
    for folder in ("configs", "projects"):
        for file in ROOT.glob(f"{folder}/**/configs/**/*.py" if folder == "projects" else f"{folder}/**/*.py"):
            assert (copy / file.relative_to(ROOT)).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_the_command_of_a_wheel_works_in_an_empty_folder(installed, elsewhere):
    command = [installed / "bin" / "dinox", "analyze", "model", "dino/dino_demo", "--no-timing", "--size", 64, 64]
    assert "dino/dino_demo on 1 image of 64 x 64" in run(command, **elsewhere)
