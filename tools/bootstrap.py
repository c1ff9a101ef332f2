#!/usr/bin/env python3
"""Set up everything dinox needs, from a fresh checkout; `make setup` runs this.

    python3 tools/bootstrap.py [--venv FOLDER | --venv active]

Makes a virtual environment (or uses the active one), and installs into it what is missing: torch and torchvision, build
tools, detectron2, and dinox itself (editable, with its compiled operators and the test tools). What is there already is
left alone, but for versions that do not fit: of setuptools (below 82 is needed) and of the test tools of pyproject.toml
(ruff is pinned), also in an active environment; torch, torchvision and detectron2 are never replaced. Every step finds
out by itself whether it has anything to do, so an interrupted or failed setup is continued by running it again, and a
finished one takes seconds. pip's output goes to .setup/setup.log.

Only the standard library is used: this runs before anything is installed.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  (said before anything that an older Python trips over)
    sys.exit(
        "setup: error: dinox needs Python >= 3.10, got %d.%d (%s).\n"  # noqa: UP031
        "Install a newer one and name it: make setup PYTHON=python3.11" % (*sys.version_info[:2], sys.executable)
    )

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH, TORCHVISION = "2.11.0", "0.26.0"  # the tested pair
MINIMUM_TORCH = (2, 4)  # torch.library.custom_op and register_fake
BUILD_TOOLS = ["setuptools>=64,<82", "wheel", "ninja"]  # detectron2 imports pkg_resources, which setuptools 82 removed
DISK_SPACE_GB = 8  # torch with its CUDA libraries takes 5 GB, and its download as much again while it lasts
LINE_LENGTH = 400  # of the lines shown of a failed command: those of a compiler call have thousands of characters
QUIET_SECONDS = 30  # how often a long step says that it is alive, where the terminal cannot show a running clock
NO_GPU = "no GPU"
GPU_DEVICE = "/dev/nvidia0"
# A change of any of these means that dinox has to be installed, or its operators compiled, again.
WATCHED_FILES = (
    "setup.py",
    "pyproject.toml",
    "tools/bootstrap.py",
    "tools/detectron2_v06.py",
    "tools/detectron2_fixes.py",
)
WATCHED_VARIABLES = ("DINOX_CUDA", "DINOX_EXTENSION", "TORCH_CUDA_ARCH_LIST", "CXX")


class StepFailed(Exception):
    """A step failed; the message says what happened and what to do."""


def say(line: str) -> None:
    print(line, flush=True)


# ----------------------------------------------------------------------------------------------------- running commands


class Log:
    """The log file; runs commands into it while the terminal shows that something happens."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")

    def run(self, command: list[str], environment: dict[str, str], cure: str, forward: tuple[str, ...] = ()) -> None:
        """Run a command; lines of its output that start with one of `forward` are shown on the terminal, too."""
        with self.path.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            begin = log.tell()
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            process = subprocess.Popen(command, cwd=ROOT, env=environment, **streams)
            try:
                self._watch(process)
            except BaseException:  # Ctrl-C: pip must not go on behind the user's back
                process.terminate()
                process.wait()
                raise
        output = self.path.read_bytes()[begin:].decode("utf-8", errors="replace").splitlines()
        failure = telling_lines(output) if process.returncode != 0 else []
        for line in dict.fromkeys(line.strip() for line in output if line not in failure):
            if forward and line.startswith(forward):
                say(f"      {line}")
        if process.returncode != 0:
            lines = "\n".join(f"      | {line[:LINE_LENGTH]}" for line in failure)
            raise StepFailed(f"{cure}\n      From {self.path}:\n{lines}")

    def _watch(self, process: subprocess.Popen) -> None:
        start, told, live = time.monotonic(), 0.0, sys.stdout.isatty()
        while True:
            try:
                process.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                passed = time.monotonic() - start
            if live:
                print(f"\r      ... {passed:.0f} s", end="", flush=True)
            elif passed - told >= QUIET_SECONDS:
                told = passed
                say(f"      ... {passed:.0f} s")
        if live:
            print("\r" + " " * 20 + "\r", end="", flush=True)


def telling_lines(output: list[str], limit: int = 20) -> list[str]:
    """The part of a failed command's output to show: its end, without what pip says around the error of a build."""
    marks = ("error: subprocess-exited-with-error", "ERROR: Failed building")
    end = next((number for number, line in enumerate(output) if line.strip().startswith(marks)), len(output))
    return output[:end][-limit:]


# ---------------------------------------------------------------------------------------------------------- environment


@dataclass
class Environment:
    """The Python environment that dinox is set up in."""

    python: Path
    active: bool  # the user's own, as opposed to a folder made by this script
    log: Log
    variables: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self) -> None:
        self.variables["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        self.variables["PYTHONUNBUFFERED"] = "1"

    def ask(self, code: str) -> subprocess.CompletedProcess:
        """Run Python code in the environment, from a folder in which nothing can be imported by mistake."""
        command = [str(self.python), "-W", "ignore", "-c", code]
        return subprocess.run(command, cwd=self.log.path.parent, env=self.variables, capture_output=True, text=True)

    def pip(self, *arguments: str, cure: str, forward: tuple[str, ...] = ()) -> None:
        self.log.run([str(self.python), "-m", "pip", "install", *arguments], self.variables, cure, forward)

    def why_not_importable(self, module: str) -> str:
        """Empty when `import module` works, else the last line of the error."""
        asked = self.ask(f"import {module}")
        return "" if asked.returncode == 0 else last_line(asked.stderr)

    def version(self, distribution: str) -> str | None:
        """The installed version by the package metadata: cheap, imports nothing."""
        asked = self.ask(f"from importlib.metadata import version; print(version({distribution!r}))")
        return asked.stdout.strip() if asked.returncode == 0 else None


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["(no message)"])[-1]


def version_tuple(version: str) -> tuple[int, ...]:
    """(2, 11) of '2.11.0+cu130'; letters and what follows the second number do not matter here."""
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in version.split("+")[0].split(".")[:2])


def matching_torchvision(torch: str) -> str:
    """torchvision 0.(n + 15) belongs to torch 2.n."""
    major, minor = version_tuple(torch)
    return f"0.{minor + 15}" if major == 2 else "(see the table in torchvision's README)"


# ---------------------------------------------------------------------------------------------------------------- steps


def step_environment(env: Environment) -> str:
    if env.active:
        say(f"      using the active environment: {env.python}")
    else:
        _make_venv(env)
    if env.why_not_importable("pip"):
        cure = f"The environment has no pip and `{env.python} -m ensurepip` could not add it: install pip into it."
        env.log.run([str(env.python), "-m", "ensurepip"], env.variables, cure)
    asked = env.ask("import sys; print('Python %d.%d.%d' % sys.version_info[:3])")
    return f"{asked.stdout.strip()} in {env.python.parent.parent}"


def _make_venv(env: Environment) -> None:
    folder = env.python.parent.parent
    if env.python.exists() and env.ask("").returncode == 0:
        found = env.ask("import sys; print(*sys.version_info[:2], sep='.')").stdout.strip()
        if version_tuple(found) < (3, 10):
            raise StepFailed(f"{folder} has Python {found}, expected >= 3.10. Delete it and run `make setup` again.")
        return
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise StepFailed(
            f"{folder} is there, but is no virtual environment. Move it away, or name another: VENV=FOLDER."
        )
    cure = (
        f"Python's venv module could not make {folder}. On Debian and Ubuntu it is a package of its own: "
        f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv. "
        "Or activate an environment of yours and run `make setup VENV=active`."
    )
    # --clear: what is there is left from an interrupted setup, or its Python is gone.
    env.log.run([sys.executable, "-m", "venv", "--clear", str(folder)], env.variables, cure)


def step_torch(env: Environment) -> str:
    torch, torchvision = env.version("torch"), env.version("torchvision")
    if torch is None and not env.why_not_importable("torch"):
        raise StepFailed(
            "torch imports but is not an installed package (is it on PYTHONPATH?), so pip would install a second one. "
            "Install yours into the environment (pip install --no-build-isolation -e FOLDER), then run `make setup`."
        )
    if torch is None:
        _install_torch(env, f"torch=={TORCH}", f"torchvision=={TORCHVISION}")
    elif version_tuple(torch) < MINIMUM_TORCH:
        least = "{}.{}".format(*MINIMUM_TORCH)
        raise StepFailed(f"this environment has torch {torch}, expected >= {least}. {_other_environment(env)}")
    elif torchvision is None and env.why_not_importable("torchvision"):
        # Our own pair is completed (an interrupted setup can leave torch alone); another torch is the user's.
        if version_tuple(torch) != version_tuple(TORCH):
            raise StepFailed(
                f"this environment has torch {torch} but no torchvision, which dinox and detectron2 need. An installed "
                "torch is never replaced. Install the torchvision made for it, from where that torch came from: "
                f"{env.python} -m pip install --no-deps 'torchvision=={matching_torchvision(torch)}.*'"
            )
        _install_torch(env, f"torchvision=={TORCHVISION}")
    report = _working_torch(env)
    _pin_torch(env)
    return report


def _pin_torch(env: Environment) -> None:
    """From here on pip has to fail rather than replace torch or torchvision."""
    pins = env.log.path.parent / "torch-constraints.txt"
    lines = [f"{name}=={env.version(name)}\n" for name in ("torch", "torchvision") if env.version(name)]
    pins.write_text("".join(lines), encoding="utf-8")
    # As a URI, because pip takes a space in this variable for the start of another file.
    env.variables["PIP_CONSTRAINT"] = f"{os.environ.get('PIP_CONSTRAINT', '')} {pins.as_uri()}".strip()


def _install_torch(env: Environment, *what: str) -> None:
    free = shutil.disk_usage(env.python.parent).free / 1e9
    if free < DISK_SPACE_GB:
        say(f"      WARNING: {free:.1f} GB of disk are free; this needs about {DISK_SPACE_GB} GB")
    say(f"      downloading {' and '.join(what)} (some 3 GB with the CUDA libraries: this can take minutes)")
    cure = "pip could not install torch: check network, proxy and disk space, then run `make setup` again."
    env.pip(*what, cure=cure)


# torchvision's compiled operators register themselves with one version of torch only, so they are called once.
_TRY_TORCH = """
import torch, torchvision
torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)
gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "NO_GPU"
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {gpu}")
""".replace("NO_GPU", NO_GPU)


def _working_torch(env: Environment) -> str:
    tried = env.ask(_TRY_TORCH)
    if tried.returncode != 0:
        raise StepFailed(
            f"torch {env.version('torch')} and torchvision {env.version('torchvision')} do not work together: "
            f"{last_line(tried.stderr)}. An installed pair is never replaced. {_other_environment(env)}"
        )
    if tried.stdout.strip().endswith(NO_GPU) and Path(GPU_DEVICE).exists():
        say(
            f"      WARNING: {GPU_DEVICE} is there, but this torch cannot use it, most likely because the driver is "
            "older than its CUDA (13.0 needs driver 580). Update the driver, or install a torch made for an older CUDA "
            "into the environment and run `make setup` again; it keeps that torch."
        )
    return last_line(tried.stdout)


def _other_environment(env: Environment) -> str:
    if env.active:
        return "Repair it, or run `make setup` without VENV=active, which makes an environment of its own."
    folder = env.python.parent.parent
    return f"If nothing else is kept in {folder}, delete it (rm -rf {folder}) and run `make setup` again."


def step_build_tools(env: Environment) -> str:
    names = ["setuptools", "wheel", "ninja"]
    found = {name: env.version(name) for name in names}
    missing = [tool for name, tool in zip(names, BUILD_TOOLS) if not _build_tool_fits(name, found[name])]
    if missing:
        if found["setuptools"] and BUILD_TOOLS[0] in missing:
            say(f"      setuptools {found['setuptools']} is replaced: expected {BUILD_TOOLS[0]}")
        env.pip(*missing, cure="pip could not install the build tools: check the network, then run `make setup` again.")
    return ", ".join(f"{name} {env.version(name)}" for name in names)


def _build_tool_fits(name: str, version: str | None) -> bool:
    if version is None:
        return False
    return name != "setuptools" or (64,) <= version_tuple(version)[:1] < (82,)


def step_detectron2(env: Environment) -> str:
    command = [str(env.python), str(ROOT / "tools" / "detectron2_v06.py")]
    cure = "Installing detectron2 failed; the lines below say why. What is finished is kept: run `make setup` again."
    env.log.run(command, env.variables, cure, forward=("detectron2_v06:",))
    asked = env.ask("import detectron2, os; print('detectron2', detectron2.__version__)")
    return last_line(asked.stdout)


def step_dinox(env: Environment) -> str:
    cure = "Installing dinox failed; the lines below say why."
    # -v: pip passes on what the build says, and with it the compiler's messages, only when it is asked to.
    env.pip("-v", "--no-build-isolation", "--editable", f"{ROOT}[test]", cure=cure, forward=("dinox:",))
    return f"dinox {env.version('dinox')}, editable from {ROOT}"


# What is imported here is what a user needs; `expected` is what setup.py would build, so that a CUDA part that ought to
# have been compiled and was not is found here and not by the first training run.
_VERIFY = """
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("dinox_setup", {setup_py!r})
setup = sys.modules["dinox_setup"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup)
import torch, torchvision, detectron2, pycocotools.coco, scipy.optimize, hydra, omegaconf, fvcore, iopath, cv2
import dinox, dinox.ops
plan = setup.make_plan(os.environ, torch.version.cuda)
expected = ["cpu"] * bool(plan.sources) + ["cuda"] * any(source.endswith(".cu") for source in plan.sources)
print(json.dumps({{
    "torch": torch.__version__,
    "detectron2": detectron2.__version__,
    "dinox": os.path.dirname(dinox.__file__),
    "plan": plan.line,
    "missing": [device for device in expected if dinox.ops.backend(device) != "extension"],
    "backend": {{device: dinox.ops.backend(device) for device in ("cpu", "cuda")}},
}}))
"""


def verify(env: Environment) -> dict:
    """Import everything and return what was found; StepFailed where something does not import or was not compiled."""
    asked = env.ask(_VERIFY.format(setup_py=str(ROOT / "setup.py")))
    if asked.returncode != 0:
        raise StepFailed(f"not everything imports: {last_line(asked.stderr)}\n{asked.stderr.strip()}")
    found = json.loads(last_line(asked.stdout))
    if Path(found["dinox"]).resolve() != ROOT / "dinox":
        raise StepFailed(f"`import dinox` finds {found['dinox']}, expected {ROOT / 'dinox'}. Uninstall that one.")
    if found["missing"]:
        raise StepFailed(
            f"the compiled operators for {' and '.join(found['missing'])} ought to be there ({found['plan']}), but do "
            "not load. Run `make clean setup`, which compiles them anew."
        )
    return found


def step_verify(env: Environment) -> str:
    return describe_backend(verify(env)["backend"])


def describe_backend(backend: dict[str, str]) -> str:
    words = {"extension": "compiled kernels", "reference": "PyTorch reference (slower)"}
    return "operators run on: " + ", ".join(f"{device}: {words[kind]}" for device, kind in backend.items())


STEPS: tuple[tuple[str, Callable[[Environment], str]], ...] = (
    ("Python environment", step_environment),
    ("torch and torchvision", step_torch),
    ("build tools", step_build_tools),
    ("detectron2", step_detectron2),
    ("dinox and its compiled operators", step_dinox),
    ("check", step_verify),
)


# ---------------------------------------------------------------------------------------------------------------- stamp


def setup_key(python: Path, root: Path = ROOT, environ: dict[str, str] | None = None) -> str:
    """A hash of everything that decides whether an earlier setup still holds."""
    environ = dict(os.environ) if environ is None else environ
    digest = hashlib.sha256()
    watched = [root / name for name in WATCHED_FILES]
    watched += [path for path in sorted((root / "csrc").rglob("*")) if path.is_file()]
    for path in watched:
        digest.update(f"\0{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes() if path.exists() else b"")
    # The compiler that was found, the GPU, and the torch below which the operators were built.
    facts = [str(python), _nvcc_facts(root, environ), str(Path(GPU_DEVICE).exists()), _torch_facts(python)]
    facts += [f"{name}={environ.get(name, '')}" for name in WATCHED_VARIABLES]
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()


def _nvcc_facts(root: Path, environ: dict[str, str]) -> str:
    spec = importlib.util.spec_from_file_location("dinox_setup", root / "setup.py")
    if spec is None or spec.loader is None or not (root / "setup.py").exists():
        return ""
    setup = sys.modules["dinox_setup"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    return f"{setup.find_toolkit(environ)} {setup.find_cxx(environ)}"


def _torch_facts(python: Path) -> str:
    """The names of torch's metadata folders carry its version; reading them takes no interpreter."""
    found = python.parent.parent.glob("lib/python*/site-packages/torch*.dist-info")
    return " ".join(sorted(path.name for path in found))


class Stamp:
    """Remembers, outside of the environment, that a setup with a given key was finished."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def matches(self, key: str) -> bool:
        try:
            return json.loads(self.path.read_text(encoding="utf-8")).get("key") == key
        except (OSError, ValueError, AttributeError):
            return False

    def write(self, key: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------------------------- main


@contextlib.contextmanager
def only_one_setup(folder: Path) -> Iterator[None]:
    """`make demo` and `make test` in two terminals must not install into one environment at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("setup: another setup of this checkout is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            say(f"setup: no locks on this file system ({error.strerror}): do not run two setups of it at the same time")
        yield


def target_python(venv: str) -> Path:
    if venv == "active":
        return Path(sys.executable)
    return (ROOT / venv).absolute() / "bin" / "python"


def run_steps(env: Environment) -> None:
    for number, (name, step) in enumerate(STEPS, start=1):
        say(f"[{number}/{len(STEPS)}] {name}")
        start = time.monotonic()
        try:
            result = step(env)
        except StepFailed as failure:
            raise StepFailed(f"step {number} of {len(STEPS)} ({name}) failed.\n      {failure}") from None
        say(f"      {result}  ({time.monotonic() - start:.1f} s)")


def set_up(venv: str) -> None:
    start = time.monotonic()
    env = Environment(target_python(venv), venv == "active", Log(ROOT / ".setup" / "setup.log"))
    stamp = Stamp(ROOT / ".setup" / "stamp.json")
    if stamp.matches(setup_key(env.python)):
        with contextlib.suppress(StepFailed, OSError):
            found = verify(env)
            say(f"setup: everything is in place, with {found['plan']}  ({time.monotonic() - start:.1f} s)")
            return
        say("setup: something changed since the last time; going through all steps")
    stamp.remove()
    env.log.start()
    say(f"Setting up dinox in {env.python.parent.parent}; details go to {env.log.path}")
    run_steps(env)
    stamp.write(setup_key(env.python))
    say(f"setup: done in {time.monotonic() - start:.0f} s")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Set up everything dinox needs; run it again at any time.")
    parser.add_argument("--venv", default=".venv", help="folder of the environment, or 'active' (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with only_one_setup(ROOT / ".setup"):
            set_up(options.venv)
    except StepFailed as failure:
        print(f"setup: error: {failure}", file=sys.stderr)
        return 1
    except OSError as error:
        cure = "The checkout and the environment have to be writable, on a disk with free space"
        print(f"setup: error: {error}. {cure}; then run it again and it continues.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; run it again and it continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
