"""Build of dinox: the compiled extension and the configs that travel inside a wheel. Metadata is in pyproject.toml.

Environment variables:
  DINOX_EXTENSION=0      build no extension at all (dinox then runs its operators on plain PyTorch)
  DINOX_CUDA=0 | 1       leave the CUDA kernels out | insist on them; unset: build them when a fitting nvcc is found
  TORCH_CUDA_ARCH_LIST   GPU architectures to compile for; unset: 8.0;9.0+PTX and what the GPUs of this machine need
  CUDA_HOME, CXX         the toolkit and the C++ compiler to use
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"
CXX_FLAGS = ["-O3", "-std=c++17", "-fopenmp"]  # without -fopenmp at::parallel_for silently compiles to serial code
NVCC_FLAGS = ["-O3", "-std=c++17"]
# Commands that compile nothing; torch takes seconds to import, so they do without it.
METADATA_COMMANDS = {"egg_info", "dist_info", "sdist", "clean", "--help", "--version", "--name"}


class BuildError(Exception):
    """The build cannot do what was asked for; the message says why and what to do."""


def say(line: str) -> None:
    # tools/bootstrap.py shows the lines of the build log that start with this word.
    print(f"dinox: {line}", flush=True)


# ------------------------------------------------------------------------------------------------- what can be compiled


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: the folder its nvcc really runs from, and that nvcc's version."""

    root: Path
    version: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """What the extension is built from. No sources: no extension. `line` tells the user."""

    sources: tuple[str, ...]
    toolkit: Toolkit | None
    line: str

    @property
    def cuda(self) -> bool:
        return self.toolkit is not None


def _output_of(command: list[str]) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError:
        return ""
    return done.stdout.decode(errors="replace")


def find_nvcc(environ: Mapping[str, str]) -> str | None:
    for home in (environ.get("CUDA_HOME"), environ.get("CUDA_PATH")):
        if home and Path(home, "bin", "nvcc").is_file():
            return str(Path(home, "bin", "nvcc"))
    default = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc", path=environ.get("PATH")) or (str(default) if default.is_file() else None)


def find_toolkit(environ: Mapping[str, str]) -> Toolkit | None:
    nvcc = find_nvcc(environ)
    release = re.search(r"release (\d+)\.(\d+)", _output_of([nvcc, "--version"])) if nvcc else None
    if nvcc is None or release is None:
        return None
    # The nvcc on PATH may be a wrapper outside of its toolkit, so that one is asked where it runs from.
    top = re.search(r"^#\$ TOP=(.+)$", _output_of([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]), re.MULTILINE)
    root = Path(top.group(1).strip()) if top else Path(nvcc).resolve().parent.parent
    return Toolkit(root.resolve(), (int(release.group(1)), int(release.group(2))))


def why_no_cuda(wish: str | None, toolkit: Toolkit | None, torch_cuda: str | None) -> str | None:
    """None when the CUDA kernels can and shall be built, else the reason why not."""
    if wish == "0":
        return "DINOX_CUDA=0"
    if toolkit is None:
        return "no nvcc on PATH or in CUDA_HOME"
    found = "{}.{}".format(*toolkit.version)
    if torch_cuda is None:
        return f"this torch is built without CUDA (nvcc {found} is there)"
    if int(torch_cuda.split(".")[0]) != toolkit.version[0]:
        return f"nvcc {found} does not fit this torch, which needs CUDA {torch_cuda} (the same major version)"
    return None


def find_cxx(environ: Mapping[str, str]) -> str | None:
    """The C++ compiler that torch's build would call, or another common one."""
    asked = shlex.split(environ.get("CXX", ""))
    candidates = asked[:1] if asked else ["c++", "g++", "clang++"]
    return next((name for name in candidates if shutil.which(name, path=environ.get("PATH"))), None)


def make_plan(environ: Mapping[str, str], torch_cuda: str | None, root: Path = ROOT) -> Plan:
    """Decide what to compile, given the CUDA version that torch is built for (None: a CPU build)."""
    wish = environ.get("DINOX_CUDA")
    if wish not in (None, "", "0", "1"):
        raise BuildError(f"DINOX_CUDA must be 0 or 1, got {wish!r}.")
    cpp = _sources(root, "csrc/*.cpp", "csrc/cpu/*.cpp")
    if environ.get("DINOX_EXTENSION") == "0":
        return Plan((), None, "no compiled operators: DINOX_EXTENSION=0")
    if not cpp:
        return Plan((), None, "no compiled operators: csrc/ has no sources")
    if find_cxx(environ) is None:
        missing = f"CXX={environ['CXX']} is not there" if environ.get("CXX") else "no C++ compiler found"
        cure = "install one (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), then run `make setup`"
        if wish == "1":
            raise BuildError(f"DINOX_CUDA=1 asks for CUDA operators, but: {missing}; {cure}.")
        return Plan((), None, f"no compiled operators, only the slow PyTorch ones: {missing}; {cure}")
    toolkit = find_toolkit(environ) if wish != "0" else None
    reason = why_no_cuda(wish, toolkit, torch_cuda)
    if reason is None and toolkit is not None:
        found = "{}.{}".format(*toolkit.version)
        line = f"compiled CPU and CUDA operators (nvcc {found} in {toolkit.root})"
        return Plan(cpp + _sources(root, "csrc/cuda/*.cu"), toolkit, line)
    if wish == "1":
        raise BuildError(f"DINOX_CUDA=1 asks for CUDA operators, but: {reason}. DINOX_CUDA=0 builds without them.")
    return Plan(cpp, None, f"compiled CPU operators, no CUDA ones: {reason}")


def _sources(root: Path, *patterns: str) -> tuple[str, ...]:
    return tuple(str(path.relative_to(root)) for pattern in patterns for path in sorted(root.glob(pattern)))


def architectures(wish: str | None, gpus: Iterable[tuple[int, int]], supported: set[tuple[int, int]]) -> str:
    """The value for TORCH_CUDA_ARCH_LIST: the user's, else the default and what the GPUs here need beyond it.

    `gpus` are compute capabilities, `supported` is what nvcc can compile for. Machine code for 8.0 runs on 8.x, that
    for 9.0 on 9.x; a GPU that nvcc does not know yet compiles the PTX when it first runs.
    """
    if wish:
        return wish
    beyond = sorted(gpu for gpu in set(gpus) & supported if gpu[0] not in (8, 9))
    return ";".join([*(f"{major}.{minor}" for major, minor in beyond), DEFAULT_ARCHITECTURES])


# -------------------------------------------------------------------------------------------------- torch's build parts


def _architectures_of_nvcc(toolkit: Toolkit) -> set[tuple[int, int]]:
    listed = re.findall(r"compute_(\d+)(\d)\b", _output_of([str(toolkit.root / "bin" / "nvcc"), "--list-gpu-arch"]))
    return {(int(major), int(minor)) for major, minor in listed}


def _library_headers(toolkit: Toolkit, packages: Path) -> list[str]:
    """Folders of CUDA library headers (cusparse.h, ...) that torch's headers include, where the toolkit lacks them.

    A toolkit can be installed without the libraries; torch's wheels bring them as packages, headers included.
    """
    own = (toolkit.root / "include", *toolkit.root.glob("targets/*/include"))
    if any((folder / "cusparse.h").is_file() for folder in own):
        return []
    # One folder for all libraries in the wheels for CUDA 13, one for each library in those for CUDA 12.
    return [str(folder) for folder in sorted(packages.glob("nvidia/*/include")) if any(folder.glob("cu*.h"))]


def prepare_environment(plan: Plan) -> None:
    """Tell torch's build through the environment what it cannot find out by itself. Before its import."""
    # ninja comes as a Python package; its command is on PATH only when the environment is activated.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    os.environ.setdefault("CXX", find_cxx(os.environ) or "c++")
    if plan.toolkit is None:
        return
    os.environ["CUDA_HOME"] = str(plan.toolkit.root)
    import torch

    # CPATH comes after every -I, so the toolkit's own headers win over those of the packages.
    headers = _library_headers(plan.toolkit, Path(torch.__file__).parent.parent)
    os.environ["CPATH"] = os.pathsep.join(filter(None, [os.environ.get("CPATH"), *headers]))
    gpus = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    chosen = architectures(os.environ.get("TORCH_CUDA_ARCH_LIST"), gpus, _architectures_of_nvcc(plan.toolkit))
    os.environ["TORCH_CUDA_ARCH_LIST"] = chosen
    say(f"GPU architectures: {chosen}")


def make_extension(plan: Plan):
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    extension = (CUDAExtension if plan.cuda else CppExtension)(
        "dinox._C",
        list(plan.sources),
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
    )
    # A TORCH_LIBRARY, not a Python module: without this dependency one file serves every Python version.
    extension.libraries = [name for name in extension.libraries if name != "torch_python"]
    return extension


def make_build_ext(plan: Plan):
    import torch
    from torch.utils.cpp_extension import BuildExtension

    class BuildOperators(BuildExtension):
        """torch's build command, with incremental builds, errors that name a cure, and no Python ABI in the name."""

        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, no_python_abi_suffix=True, **kwargs)

        def finalize_options(self) -> None:
            super().finalize_options()
            # pip gives each build an empty temporary folder; a lasting one lets ninja compile only what has changed.
            self.build_temp = str(ROOT / "build" / f"torch-{torch.__version__}-{'cuda' if plan.cuda else 'cpu'}")

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                raise SystemExit(f"dinox: error: {self._failure()}") from error

        def _failure(self) -> str:
            without_any = "DINOX_EXTENSION=0 make setup builds without compiled operators (slow, but everything works)."
            if not plan.cuda:
                return f"compiling the C++ operators failed; the compiler's message is above. {without_any}"
            without_cuda = "If it is about nvcc or a .cu file, DINOX_CUDA=0 make setup builds without CUDA."
            return f"compiling the operators failed; the compiler's message is above. {without_cuda} {without_any}"

    return BuildOperators


def extension_arguments() -> dict:
    """What setup() needs to build the extension; empty where there is nothing to build."""
    if METADATA_COMMANDS.intersection(sys.argv[1:]):
        return {}
    try:
        import torch
    except ImportError:
        hint = "pip install --no-build-isolation, in an environment that has torch, builds them"
        say(f"WARNING: building no compiled operators: torch is not importable here; {hint}")
        return {}
    try:
        plan = make_plan(os.environ, torch.version.cuda)
    except BuildError as error:
        raise SystemExit(f"dinox: error: {error}") from None
    if not plan.sources:
        say(f"WARNING: building {plan.line}")
        if "editable_wheel" in sys.argv:
            _remove_earlier_builds()
        return {}
    say(f"building {plan.line}")
    prepare_environment(plan)
    return {"ext_modules": [make_extension(plan)], "cmdclass": {"build_ext": make_build_ext(plan)}}


def _remove_earlier_builds(package: Path = ROOT / "dinox") -> None:
    """Nothing is built into the checkout now, so nothing that an earlier build left there shall be loaded."""
    for path in package.glob("_C*.so"):
        path.unlink()
        say(f"removed {path.name} of an earlier build")


# ---------------------------------------------------------------------------------------------------- configs in wheels


def packaged_configs(root: Path = ROOT) -> dict[Path, Path]:
    """Config file -> its place below dinox/model_zoo/configs.

    The tree stays as it is, because configs import each other by relative paths.
    """
    found = sorted([*root.glob("configs/**/*"), *root.glob("projects/*/configs/**/*")])
    return {path: path.relative_to(root) for path in found if path.suffix in (".py", ".yaml") and path.is_file()}


def make_build_py():
    from setuptools.command.build_py import build_py

    class BuildWithConfigs(build_py):
        """Copies the configs into the package. An editable installation reads those of the checkout instead."""

        def run(self) -> None:
            super().run()
            if getattr(self, "editable_mode", False):
                return
            shutil.rmtree(self._zoo(), ignore_errors=True)  # an earlier build may have left configs that are gone
            for source, place in packaged_configs().items():
                target = self._zoo() / place
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

        def get_outputs(self, include_bytecode: bool = True) -> list[str]:
            copied = [] if getattr(self, "editable_mode", False) else packaged_configs().values()
            return [*super().get_outputs(include_bytecode), *(str(self._zoo() / place) for place in copied)]

        def _zoo(self) -> Path:
            return Path(self.build_lib) / "dinox" / "model_zoo" / "configs"

    return BuildWithConfigs


def main() -> None:
    from setuptools import setup

    arguments = extension_arguments()
    commands = {"build_py": make_build_py(), **arguments.pop("cmdclass", {})}
    setup(cmdclass=commands, **arguments)


if __name__ == "__main__":
    main()
