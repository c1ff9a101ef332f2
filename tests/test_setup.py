"""The tools that set dinox up, without a network and without installing anything."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_script(path: str):
    name = "tested_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path.append(str(ROOT / "tools"))  # its scripts import each other
bootstrap = load_script("tools/bootstrap.py")
detectron2_fixes = load_script("tools/detectron2_fixes.py")
detectron2_v06 = load_script("tools/detectron2_v06.py")
setup = load_script("setup.py")


# -------------------------------------------------------------------------------------------------- fixes of detectron2


def test_a_fix_replaces_what_it_names():
    fix = detectron2_fixes.Fix("a.py", r"\bnp\.(int|bool)\b", r"\1", 2, "aliases")
    assert fix.apply("np.int, np.int32, np.bool_, np.bool") == "int, np.int32, np.bool_, bool"


@pytest.mark.parametrize("text", ["nothing", "np.int np.int np.int"])
def test_a_fix_that_does_not_find_its_text_says_which_one_failed(text):
    fix = detectron2_fixes.Fix("data/build.py", r"np\.int", "int", 2, "numpy removed its aliases")
    with pytest.raises(detectron2_fixes.FixFailed, match=r"data/build\.py: numpy removed .* expected 2 .* got [03]"):
        fix.apply(text)


def test_a_fix_of_a_missing_file_says_so(tmp_path):
    with pytest.raises(detectron2_fixes.FixFailed, match=r"data/.*\.py.*not in the sdist of v0\.6"):
        detectron2_fixes.apply_fixes(tmp_path)


def test_fixes_are_written_to_their_files(tmp_path):
    fixes = (
        detectron2_fixes.Fix("a.py", "old", "new", 1, "first"),
        detectron2_fixes.Fix("a.py", "new", "newer", 1, "second"),
    )
    (tmp_path / "a.py").write_text("old\n")
    assert detectron2_fixes.apply_fixes(tmp_path, fixes) == 2
    assert (tmp_path / "a.py").read_text() == "newer\n"


def test_the_extension_of_detectron2_becomes_optional():
    guard = next(fix for fix in detectron2_fixes.FIXES if fix.path == "layers/deform_conv.py")
    fixed = guard.apply("import math\n\nfrom detectron2 import _C\n\nx = 1\n").replace("detectron2", "math")
    names = {}
    exec(fixed, names)
    assert names["_C"] is None and names["x"] == 1


def test_a_sdist_with_another_hash_is_not_used(tmp_path):
    (tmp_path / "file.tar.gz").write_bytes(b"something else")
    with pytest.raises(detectron2_v06.SetupError, match=r"file\.tar\.gz has sha256 .*, expected 5d2e9e51"):
        detectron2_v06.verify_sdist(tmp_path / "file.tar.gz")


def test_a_wheel_of_another_recipe_is_built_again(tmp_path, monkeypatch):
    class Rebuilt(Exception):
        pass

    def download(cache):
        raise Rebuilt

    monkeypatch.setattr(detectron2_v06, "download_sdist", download)
    wheel = tmp_path / detectron2_v06.WHEEL_FILE
    wheel.write_bytes(b"")
    (tmp_path / "recipe.sha256").write_text(detectron2_v06.recipe_sha256() + "\n")
    assert detectron2_v06.build_wheel(tmp_path) == wheel
    (tmp_path / "recipe.sha256").write_text("another\n")
    with pytest.raises(Rebuilt):
        detectron2_v06.build_wheel(tmp_path)


def test_an_importable_detectron2_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detectron2_v06, "installed_detectron2", lambda: "0.6 at somewhere")
    monkeypatch.setattr(detectron2_v06, "ensure_opencv", lambda: None)
    monkeypatch.setattr(detectron2_v06, "build_wheel", lambda cache: pytest.fail("built"))
    assert detectron2_v06.main(["--cache", str(tmp_path)]) == 0
    assert "0.6 at somewhere is importable and left alone" in capsys.readouterr().out


def test_a_broken_detectron2_of_the_user_is_not_overwritten(monkeypatch):
    def python(code):
        if "metadata" in code:
            return subprocess.CompletedProcess([], 0, "somebody else's detectron2\n", "")
        return subprocess.CompletedProcess([], 1, "", "ImportError: numpy is too new\n")

    monkeypatch.setattr(detectron2_v06, "_python", python)
    with pytest.raises(detectron2_v06.SetupError, match=r"numpy is too new.*left alone.*pip uninstall detectron2"):
        detectron2_v06.refuse_foreign_installation()


# ----------------------------------------------------------------------------------------------- what setup.py compiles


TOOLKIT = setup.Toolkit(Path("/toolkit"), (13, 0))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in ("csrc/op.cpp", "csrc/cpu/kernel.cpp", "csrc/cuda/kernel.cu"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(setup, "find_toolkit", lambda environ: TOOLKIT)
    monkeypatch.setattr(setup, "find_cxx", lambda environ: "c++")
    return tmp_path


def test_cuda_sources_are_compiled_wherever_nvcc_fits_torch(checkout):
    plan = setup.make_plan({}, "13.0", checkout)
    assert plan.cuda and plan.sources == ("csrc/op.cpp", "csrc/cpu/kernel.cpp", "csrc/cuda/kernel.cu")
    assert "nvcc 13.0" in plan.line


@pytest.mark.parametrize(
    "environ, torch_cuda, reason",
    [
        ({"DINOX_CUDA": "0"}, "13.0", "DINOX_CUDA=0"),
        ({}, "12.8", "nvcc 13.0 does not fit this torch, which needs CUDA 12.8"),
        ({}, None, "this torch is built without CUDA"),
    ],
)
def test_cuda_is_left_out_with_a_reason(checkout, environ, torch_cuda, reason):
    plan = setup.make_plan(environ, torch_cuda, checkout)
    assert not plan.cuda and plan.sources == ("csrc/op.cpp", "csrc/cpu/kernel.cpp")
    assert reason in plan.line


def test_insisting_on_cuda_that_cannot_be_built_is_an_error(checkout):
    with pytest.raises(setup.BuildError, match=r"DINOX_CUDA=1 .* CUDA 12\.8 .*DINOX_CUDA=0 builds without"):
        setup.make_plan({"DINOX_CUDA": "1"}, "12.8", checkout)


def test_another_value_of_dinox_cuda_is_an_error(checkout):
    with pytest.raises(setup.BuildError, match="DINOX_CUDA must be 0 or 1, got 'yes'"):
        setup.make_plan({"DINOX_CUDA": "yes"}, "13.0", checkout)


def test_without_a_compiler_nothing_is_built_and_the_line_says_how_to_get_one(checkout, monkeypatch):
    monkeypatch.setattr(setup, "find_cxx", lambda environ: None)
    plan = setup.make_plan({}, "13.0", checkout)
    assert plan.sources == () and "no C++ compiler found" in plan.line and "apt-get install g++" in plan.line


def test_insisting_on_cuda_without_a_compiler_is_an_error(checkout, monkeypatch):
    monkeypatch.setattr(setup, "find_cxx", lambda environ: None)
    with pytest.raises(setup.BuildError, match=r"DINOX_CUDA=1 .* no C\+\+ compiler found"):
        setup.make_plan({"DINOX_CUDA": "1"}, "13.0", checkout)


def test_the_extension_can_be_left_out(checkout):
    assert setup.make_plan({"DINOX_EXTENSION": "0"}, "13.0", checkout).sources == ()


def test_without_an_nvcc_there_is_no_toolkit(monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "find_nvcc", lambda environ: None)
    assert setup.find_toolkit({}) is None
    assert setup.why_no_cuda(None, None, "13.0") == "no nvcc on PATH or in CUDA_HOME"


def test_the_toolkit_behind_a_wrapper_is_found(tmp_path):
    # A wrapper outside of its toolkit: where it lies says nothing, what it answers to --dryrun does.
    toolkit = tmp_path / "toolkit"
    (toolkit / "bin").mkdir(parents=True)
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\necho "#\\$ TOP={toolkit}/bin/.."\necho "Cuda compilation tools, release 12.8, V12.8.9"\n'
    )
    wrapper.chmod(0o755)
    assert setup.find_toolkit({"PATH": str(wrapper.parent)}) == setup.Toolkit(toolkit, (12, 8))


@pytest.mark.parametrize(
    "wish, gpus, expected",
    [
        (None, [], "8.0;9.0+PTX"),
        (None, [(9, 0), (8, 6)], "8.0;9.0+PTX"),  # machine code for 8.0 runs on 8.6
        (None, [(7, 5), (12, 0), (7, 5)], "7.5;12.0;8.0;9.0+PTX"),
        (None, [(99, 0)], "8.0;9.0+PTX"),  # unknown to nvcc: served by the PTX
        ("8.9", [(9, 0)], "8.9"),
    ],
)
def test_architectures(wish, gpus, expected):
    assert setup.architectures(wish, gpus, {(7, 5), (8, 0), (8, 6), (9, 0), (12, 0)}) == expected


def test_library_headers_of_packages_serve_where_the_toolkit_has_none(tmp_path):
    package = tmp_path / "packages" / "nvidia" / "cu13" / "include"
    package.mkdir(parents=True)
    (package / "cusparse.h").touch()
    bare = setup.Toolkit(tmp_path / "toolkit", (13, 0))
    assert setup._library_headers(bare, tmp_path / "packages") == [str(package)]
    (tmp_path / "toolkit" / "include").mkdir(parents=True)
    (tmp_path / "toolkit" / "include" / "cusparse.h").touch()
    assert setup._library_headers(bare, tmp_path / "packages") == []


def test_packaged_configs_keep_their_tree(tmp_path):
    for name in ("configs/common/a.py", "projects/p/configs/b.py", "projects/p/README.md", "projects/train_net.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    packaged = setup.packaged_configs(tmp_path)
    assert sorted(map(str, packaged.values())) == ["configs/common/a.py", "projects/p/configs/b.py"]


# ----------------------------------------------------------------------------------------------------------- bootstrap


class FakeEnvironment:
    """Answers what the steps ask; records what they would install."""

    def __init__(
        self, versions: dict[str, str | None], tmp_path: Path, works: bool = True, active: bool = False
    ) -> None:
        self.versions, self.works, self.active = versions, works, active
        self.python, self.variables = tmp_path / "bin" / "python", {}
        self.python.parent.mkdir(exist_ok=True)
        self.log = bootstrap.Log(tmp_path / "setup.log")
        self.installed = []

    def version(self, name):
        return self.versions.get(name)

    def why_not_importable(self, module):
        return "" if self.versions.get(module) else f"No module named {module!r}"

    def pip(self, *arguments, cure, forward=()):
        self.installed += [argument for argument in arguments if not argument.startswith("-")]
        for argument in self.installed:
            name, _, version = argument.partition("==")
            self.versions[name] = version or "81.0"

    def ask(self, code):
        return subprocess.CompletedProcess(
            [], 0 if self.works else 1, "torch\n", "operator torchvision::nms is missing\n"
        )


def test_torch_is_installed_where_there_is_none(tmp_path):
    env = FakeEnvironment({}, tmp_path)
    bootstrap.step_torch(env)
    assert env.installed == ["torch==2.11.0", "torchvision==0.26.0"]


def test_an_existing_torch_is_left_alone_and_pinned_for_pip(tmp_path):
    env = FakeEnvironment({"torch": "2.6.0+cu124", "torchvision": "0.21.0"}, tmp_path)
    bootstrap.step_torch(env)
    assert env.installed == []
    constraints = Path(env.variables["PIP_CONSTRAINT"].split()[-1].removeprefix("file://"))
    assert constraints.read_text() == "torch==2.6.0+cu124\ntorchvision==0.21.0\n"


def test_an_interrupted_installation_of_torch_is_completed(tmp_path):
    env = FakeEnvironment({"torch": "2.11.0"}, tmp_path)
    bootstrap.step_torch(env)
    assert env.installed == ["torchvision==0.26.0"]


def test_another_torch_without_torchvision_is_explained(tmp_path):
    env = FakeEnvironment({"torch": "2.6.0+cu124"}, tmp_path)
    with pytest.raises(bootstrap.StepFailed, match=r"torch 2\.6\.0\+cu124 but no torchvision.*torchvision==0\.21\.\*"):
        bootstrap.step_torch(env)
    assert env.installed == []


def test_a_torch_that_is_too_old_is_explained(tmp_path):
    env = FakeEnvironment({"torch": "1.13.1", "torchvision": "0.14.1"}, tmp_path, active=True)
    with pytest.raises(bootstrap.StepFailed, match=r"torch 1\.13\.1, expected >= 2\.4.*without VENV=active"):
        bootstrap.step_torch(env)


def test_a_gpu_that_torch_cannot_use_is_pointed_out(tmp_path, monkeypatch, capsys):
    env = FakeEnvironment({"torch": "2.11.0", "torchvision": "0.26.0"}, tmp_path)
    env.ask = lambda code: subprocess.CompletedProcess(
        [], 0, f"torch 2.11.0, torchvision 0.26.0, {bootstrap.NO_GPU}\n", ""
    )
    monkeypatch.setattr(bootstrap, "GPU_DEVICE", str(tmp_path))
    bootstrap.step_torch(env)
    assert "this torch cannot use it" in capsys.readouterr().out


def test_torch_and_torchvision_that_do_not_fit_each_other_are_explained(tmp_path):
    env = FakeEnvironment({"torch": "2.13.0", "torchvision": "0.26.0"}, tmp_path, works=False)
    with pytest.raises(
        bootstrap.StepFailed, match=r"torch 2\.13\.0 and torchvision 0\.26\.0 do not work together.*nms"
    ):
        bootstrap.step_torch(env)


@pytest.mark.parametrize(
    "setuptools, expected",
    [("65.5.0", []), ("81.0.0", []), ("82.0.1", ["setuptools>=64,<82"]), (None, ["setuptools>=64,<82"])],
)
def test_setuptools_is_replaced_only_where_it_does_not_fit(tmp_path, setuptools, expected):
    env = FakeEnvironment({"setuptools": setuptools, "wheel": "0.45", "ninja": "1.11"}, tmp_path)
    bootstrap.step_build_tools(env)
    assert env.installed == expected


def test_a_folder_that_is_no_environment_is_not_cleared(tmp_path):
    env = FakeEnvironment({}, tmp_path)
    (tmp_path / "precious.txt").touch()
    with pytest.raises(bootstrap.StepFailed, match=r"is no virtual environment.*VENV=FOLDER"):
        bootstrap._make_venv(env)
    assert (tmp_path / "precious.txt").exists()


def test_a_failed_step_is_named_with_its_number(tmp_path, monkeypatch):
    def fail(env):
        raise bootstrap.StepFailed("no network")

    monkeypatch.setattr(bootstrap, "STEPS", (("easy", lambda env: "fine"), ("hard", fail)))
    with pytest.raises(bootstrap.StepFailed, match=r"step 2 of 2 \(hard\) failed.\s+no network"):
        bootstrap.run_steps(FakeEnvironment({}, tmp_path))


def test_a_failed_command_shows_the_end_of_its_output(tmp_path, capsys):
    log = bootstrap.Log(tmp_path / "setup.log")
    script = "print('dinox: building'); print('kernel.cu(3): error: x'); print('error: subprocess-exited-with-error')"
    script += "; print('noise of pip'); raise SystemExit(1)"
    with pytest.raises(bootstrap.StepFailed) as failure:
        log.run([sys.executable, "-c", script], dict(os.environ), "Cure.", forward=("dinox:",))
    assert "Cure." in str(failure.value) and "kernel.cu(3): error: x" in str(failure.value)
    assert "noise of pip" not in str(failure.value)
    assert "noise of pip" in log.path.read_text()


def test_lines_for_the_user_are_passed_on(tmp_path, capsys):
    script = "print('dinox: WARNING: no compiler'); print('other')"
    bootstrap.Log(tmp_path / "log").run([sys.executable, "-c", script], dict(os.environ), "", forward=("dinox:",))
    assert capsys.readouterr().out.strip() == "dinox: WARNING: no compiler"


@pytest.fixture
def tree(tmp_path):
    for name in ("csrc/op.cpp", *bootstrap.WATCHED_FILES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name) if (ROOT / name).exists() else (tmp_path / name).touch()
    return tmp_path


def test_the_key_changes_with_what_the_installation_depends_on(tree):
    python, environ = tree / "venv" / "bin" / "python", {"PATH": ""}
    keys = [bootstrap.setup_key(python, tree, environ)]
    assert bootstrap.setup_key(python, tree, environ) == keys[0]
    for name in ("csrc/op.cpp", "pyproject.toml", "tools/bootstrap.py"):
        with (tree / name).open("a") as file:
            file.write("\n")
        keys.append(bootstrap.setup_key(python, tree, environ))
    (tree / "csrc" / "new.cu").touch()
    keys.append(bootstrap.setup_key(python, tree, environ))
    keys.append(bootstrap.setup_key(python, tree, {**environ, "DINOX_CUDA": "0"}))
    (tree / "venv" / "lib" / "python3.11" / "site-packages" / "torch-2.11.0.dist-info").mkdir(parents=True)
    keys.append(bootstrap.setup_key(python, tree, environ))
    keys.append(bootstrap.setup_key(tree / "other" / "bin" / "python", tree, environ))
    assert len(set(keys)) == len(keys)


def test_the_stamp_remembers_one_finished_setup(tmp_path):
    stamp = bootstrap.Stamp(tmp_path / "folder" / "stamp.json")
    assert not stamp.matches("a")
    stamp.write("a")
    assert stamp.matches("a") and not stamp.matches("b")
    stamp.remove()
    assert not stamp.matches("a")


@pytest.mark.parametrize("content", ["", "{", json.dumps([1])])
def test_a_damaged_stamp_does_not_match(tmp_path, content):
    (tmp_path / "stamp.json").write_text(content)
    assert not bootstrap.Stamp(tmp_path / "stamp.json").matches("a")


def test_a_file_system_without_locks_is_said_and_does(tmp_path, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(bootstrap.fcntl, "flock", flock)
    with bootstrap.only_one_setup(tmp_path):
        assert "No locks available" in capsys.readouterr().out


def test_a_read_only_checkout_is_one_line_with_the_cure(tmp_path, monkeypatch, capsys):
    (tmp_path / ".setup").touch()  # no folder can be made of it; root may write into read-only ones
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    assert bootstrap.main([]) == 1
    told = capsys.readouterr().err
    assert str(tmp_path / ".setup") in told and "have to be writable" in told and told.count("\n") == 1


def test_operators_that_ought_to_be_compiled_and_are_not_fail_the_check(monkeypatch):
    found = {"dinox": str(ROOT / "dinox"), "missing": ["cuda"], "plan": "compiled CPU and CUDA operators"}

    class Environment:
        def ask(self, code):
            return subprocess.CompletedProcess([], 0, json.dumps(found), "")

    with pytest.raises(bootstrap.StepFailed, match=r"operators for cuda ought to be there.*make clean setup"):
        bootstrap.verify(Environment())


@pytest.mark.parametrize(
    "version, expected", [("2.11.0+cu130", (2, 11)), ("2.6.0a0+git12", (2, 6)), ("0.26", (0, 26)), ("82", (82,))]
)
def test_version_tuple(version, expected):
    assert bootstrap.version_tuple(version) == expected


def test_make_takes_an_environment_whose_name_has_a_space():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "-n", "-C", str(ROOT), "demo", "VENV=my env"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert '--venv "my env"' in planned and '"my env/bin/python" -m dinox demo' in planned


def test_make_without_a_target_lists_the_targets():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    listed = subprocess.run(["make", "-s", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "lint", "format", "clean"):
        assert f"make {target} " in listed
