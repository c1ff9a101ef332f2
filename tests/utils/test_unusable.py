"""The command line where detectron2 cannot be imported."""

import json
import os
import subprocess
import sys

import pytest

AS_MODULE = ["-m", "dinox"]
AS_SCRIPT = ["-c", "import sys; sys.argv[0] = '/env/bin/dinox'; from dinox.cli import main; sys.exit(main())"]
BROKEN, MISSING = "raise AttributeError(\"module 'PIL.Image' has no attribute 'LINEAR'\")", None


@pytest.fixture
def run(tmp_path):
    """Python with this line as detectron2, or without one -> (exit code, stdout, stderr)."""

    def run(line, *arguments):
        site = tmp_path / "site"
        site.mkdir()
        if line is None:
            (site / "sitecustomize.py").write_text("import sys; sys.modules['detectron2'] = None\n")
        else:
            (site / "detectron2").mkdir()
            (site / "detectron2" / "__init__.py").write_text(line + "\n")
        environ = {name: value for name, value in os.environ.items() if name != "DINOX_DEBUG"}
        environ["PYTHONPATH"] = os.pathsep.join([str(site), os.getcwd()])
        done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environ)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize("command", [AS_MODULE, AS_SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize("line", [BROKEN, MISSING], ids=["broken", "missing"])
def test_a_command_prints_one_line(run, command, line):
    code, out, err = run(line, *command, "train", "--config-file", "dino/dino_demo")
    assert (code, out) == (2, "")
    assert err.startswith("dinox: error: ") and err.count("\n") == 1 and "Cure: " in err, err
    assert "detectron2_v06.py" in err


@pytest.mark.parametrize("command", [AS_MODULE, AS_SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize(
    "line, cause",
    [(BROKEN, "detectron2 v0.6 uses names that Pillow 10 removed"), (MISSING, "dinox extends detectron2")],
    ids=["broken", "missing"],
)
def test_the_doctor_says_what_is_there_and_what_is_wrong(run, tmp_path, command, line, cause):
    code, out, err = run(line, *command, "doctor", "--json", tmp_path / "doctor.json")
    assert (code, err) == (1, "")
    assert "  torch " in out and "1 problem\n" in out and cause in out
    assert out.splitlines()[-1].startswith("     cure: ") and "tools/detectron2_v06.py" in out.splitlines()[-1]
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert written["command"] == "doctor" and not written["ok"] and cause in written["problems"][0]["what"]


@pytest.mark.parametrize("line", [BROKEN, MISSING], ids=["broken", "missing"])
def test_importing_dinox_is_an_import_error(run, line):
    code, _, err = run(line, "-c", "import dinox")
    assert code == 1 and err.splitlines()[-1].startswith("ImportError: ")


def test_debug_shows_where(run):
    code, _, err = run(BROKEN, *AS_MODULE, "train", "--debug")
    assert code == 1 and "Traceback" in err and "AttributeError" in err
