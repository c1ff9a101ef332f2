"""The one place that branches on the versions of torch and detectron2."""

import importlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist

_TORCH = tuple(int(part) for part in torch.__version__.partition("+")[0].split(".")[:2])


def weights_only_is_safe() -> bool:
    """Whether ``torch.load(weights_only=True)`` keeps its promise; before 2.6 files could break it (CVE-2025-32434)."""
    return _TORCH >= (2, 6)


def fully_shard_api() -> tuple[Callable, Callable] | None:
    """torch's ``fully_shard`` and ``MixedPrecisionPolicy``; None before 2.6, which has them elsewhere, unfinished."""
    if _TORCH < (2, 6):
        return None
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    return fully_shard, MixedPrecisionPolicy


@contextmanager
def allowed_globals(types: Sequence[type]) -> Iterator[None]:
    """Inside the block ``torch.load(weights_only=True)`` takes these types too."""
    if _TORCH >= (2, 5):
        with torch.serialization.safe_globals(list(types)):
            yield
    else:  # 2.4 can add them only for good
        torch.serialization.add_safe_globals(list(types))
        yield


@contextmanager
def run_eagerly() -> Iterator[None]:
    """Inside the block what torch.compile compiled runs as it was written, so that hooks of modules inside are called.
    Before torch 2.6 there is no such switch, and compiled parts stay as they are."""
    if _TORCH >= (2, 6):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def allow_recompilations(least: int, limits: Any = None) -> None:
    """Have torch.compile make at least so many graphs of a function before it gives up on it.

    limits: where torch has its limits (``torch._dynamo.config``); before 2.6 this one has another name.
    """
    limits = torch._dynamo.config if limits is None else limits
    name = "recompile_limit" if hasattr(limits, "recompile_limit") else "cache_size_limit"
    setattr(limits, name, max(getattr(limits, name), least))


def silence_schedule_before_optimizer() -> None:
    """For a run whose step was skipped, which torch's learning rate schedulers take for a mistake in the code."""
    message = r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`"
    warnings.filterwarnings("ignore", message=message, category=UserWarning)


_NUMPY_ALIASES = {"float": float, "int": int, "bool": bool, "object": object, "str": str, "complex": complex}
"""Names of Python's own types that numpy 1.24 removed; some came back with another meaning, which stay as they are."""


@contextmanager
def removed_numpy_names() -> Iterator[None]:
    """Inside the block numpy has the aliases of Python's types that 1.24 removed, which lvis 0.5.3 still uses."""
    missing = [name for name in _NUMPY_ALIASES if name not in vars(numpy)]
    for name in missing:
        setattr(numpy, name, _NUMPY_ALIASES[name])
    try:
        yield
    finally:
        for name in missing:
            delattr(numpy, name)


# ---------------------------------------------------------------------------------- detectron2: can it be used at all?

_NEEDED = ("checkpoint", "config", "data", "engine", "evaluation", "layers", "modeling", "solver", "structures")
"""What dinox imports of detectron2."""

_REPAIRED = (
    "`python tools/detectron2_v06.py`, in a checkout of dinox, installs v0.6 with fixes (uninstall the present one "
    "first); detectron2's main branch has them too"
)

_IMPORT_FAULTS = (
    (
        r"PIL\.Image' has no attribute '(LINEAR|ANTIALIAS)'",
        "detectron2 v0.6 uses names that Pillow 10 removed",
        f"{_REPAIRED}; or pip install 'pillow<10'",
    ),
    (
        r"module 'numpy' has no attribute '(int|float|bool|object|str)'",
        "detectron2 v0.6 uses names that numpy 1.24 removed",
        f"{_REPAIRED}; or pip install 'numpy<1.24'",
    ),
    (
        r"cannot import name '_C' from 'detectron2'|No module named 'detectron2\._C'",
        "this detectron2 was installed without its compiled extension, which v0.6 insists on",
        _REPAIRED,
    ),
    (
        r"_C\S*: undefined symbol|undefined symbol.*_C",
        "detectron2's compiled extension was built for another torch",
        "build detectron2 again with this torch",
    ),
    (
        r"operator torchvision::\w+ does not exist|Couldn't load custom C\+\+ ops",
        "torch and torchvision are not a pair",
        "install the torchvision that was released with this torch",
    ),
    (
        r"No module named 'pkg_resources'",
        "detectron2 v0.6 needs pkg_resources, which setuptools 82 removed",
        "pip install 'setuptools<82'",
    ),
)
"""(what the error says, cause, cure)."""

_REMOVED_NUMPY_NAMES = re.compile(r"\bnp\.(int|float|object)\b")


def require_detectron2() -> None:
    """Import all that dinox needs of detectron2. Raises ImportError naming what is wrong with it, and the cure."""
    try:
        detectron2 = importlib.import_module("detectron2")
        for name in _NEEDED:
            importlib.import_module(f"detectron2.{name}")
    except Exception as error:  # what an old detectron2 raises on a new numpy is an AttributeError
        folder = detectron2_folder()
        if folder is not None:
            raise ImportError(explain_import_error(error, folder)) from error
        raise ImportError(
            f"dinox extends detectron2, which cannot be imported here ({error}). Cure: in a checkout of dinox, `make "
            "setup` makes an environment with everything, and `python tools/detectron2_v06.py` installs detectron2 "
            "v0.6 into the active one. Other ways: "
            "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
        ) from None
    fault = late_fault(Path(detectron2.__file__).parent)
    if fault:
        raise ImportError(fault)


def detectron2_folder() -> Path | None:
    """Where detectron2 is; None if nowhere. A folder of this name without code, such as a clone's, is nothing."""
    try:
        spec = importlib.util.find_spec("detectron2")
    except (ImportError, ValueError):  # ValueError: the name is taken by something that was not imported
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def explain_import_error(error: Exception, folder: Path) -> str:
    """Why the detectron2 in ``folder`` does not import, in one line with the cure."""
    reason = f"{type(error).__name__}: {error}"
    for pattern, cause, cure in _IMPORT_FAULTS:
        if re.search(pattern, str(error)):
            return f"the detectron2 in {folder} cannot be imported: {cause} ({reason}). Cure: {cure}."
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("detectron2"):
        cure = f"pip install {str(error.name).partition('.')[0]}"
        return f"the detectron2 in {folder} needs a package that is not installed ({reason}). Cure: {cure}."
    return (
        f"the detectron2 in {folder} cannot be imported ({reason}). Cure: find out with `python -c 'import "
        f"detectron2.engine, detectron2.modeling'`, or install it anew; {_REPAIRED}."
    )


def late_fault(folder: Path) -> str | None:
    """What would fail only when training begins: v0.6 with Pillow 9 and a new numpy imports without complaint."""
    if hasattr(numpy, "int"):
        return None
    source = folder / "data" / "build.py"
    found = _REMOVED_NUMPY_NAMES.search(source.read_text(encoding="utf-8")) if source.is_file() else None
    if found is None:
        return None
    return (
        f"the detectron2 in {folder} imports, but would fail when data is loaded: it uses {found[0]}, which numpy "
        f"{numpy.__version__} no longer has. Cure: {_REPAIRED}; or pip install 'numpy<1.24'."
    )


# --------------------------------------------------------------------------------- detectron2: what differs, and where


@dataclass(frozen=True)
class ApiDifference:
    """One thing that detectron2's versions do differently. present: the newer way; bridge: what dinox does without."""

    topic: str
    present: bool
    bridge: str


def api_differences() -> list[ApiDifference]:
    """What the installed detectron2 has of that in which v0.6 and main differ. Found by looking, not by its version."""
    from detectron2.data import MapDataset
    from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, hooks
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import ImageList

    return [
        ApiDifference(
            "DefaultTrainer saves the optimizer", saves_optimizer(DefaultTrainer), "DinoxTrainer saves it itself"
        ),
        ApiDifference(
            "hooks see the gradients (after_backward)",
            hasattr(HookBase, "after_backward"),
            "dinox's Trainer clips and checks gradients itself",
        ),
        ApiDifference(
            "SimpleTrainer gathers metrics less often",
            takes(SimpleTrainer.__init__, "gather_metric_period"),
            "dinox's Trainer gathers them in one collective",
        ),
        ApiDifference(
            "hooks.LRScheduler saves torch's schedulers",
            saves_any_scheduler(hooks.LRScheduler),
            "dinox's schedules are detectron2's LRMultiplier, which is saved",
        ),
        ApiDifference(
            "MapDataset skips on Python 3.11",
            skips_without_sets(MapDataset),
            "dinox's training loader replaces unreadable images itself",
        ),
        ApiDifference(
            "images padded to a backbone's constraints",
            takes(ImageList.from_tensors, "padding_constraints"),
            "dinox pads images itself",
        ),
        ApiDifference(
            "launch() without GPUs",
            mentions(sys.modules["detectron2.engine.launch"], "gloo"),
            "dinox starts processes by torch.distributed",
        ),
        ApiDifference(
            "COCOEvaluator caches its json", takes(COCOEvaluator.__init__, "allow_cached_coco"), "it is read each time"
        ),
        ApiDifference(
            "the compiled extension detectron2._C",
            importlib.util.find_spec("detectron2._C") is not None,
            "COCO evaluation by pycocotools; dinox uses no other part of it",
        ),
    ]


# ------------------------------------------------------------------------------------------ detectron2: process groups


def set_local_processes(machines: Sequence[Sequence[int]], *, timeout: timedelta) -> None:
    """Tell detectron2 which ranks share a machine, where its own ``launch`` did not start them.

    To be called by all ranks with the same ``machines``: the ranks on each of them.
    """
    from detectron2.utils import comm

    size = len(machines[0])
    blocks = [list(range(i * size, (i + 1) * size)) for i in range(len(machines))]
    create = getattr(comm, "create_local_process_group", None)  # of main, which knows blocks of one size only
    if create is not None and [list(ranks) for ranks in machines] == blocks:
        create(size)
        return
    for ranks in machines:
        group = dist.new_group(list(ranks), timeout=timeout)  # by all ranks, also those outside
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def forget_local_processes() -> None:
    """After the end of the process group."""
    from detectron2.utils import comm

    comm._LOCAL_PROCESS_GROUP = None


def cpu_group() -> dist.ProcessGroup | None:
    """The group of all ranks for tensors on the host; None for torch's default group. With nccl it is the one in which
    detectron2's ``comm`` gathers objects; it is made at the first call, which all ranks have to make then."""
    from detectron2.utils import comm

    return comm._get_global_gloo_group() if dist.get_backend() == "nccl" else None


def set_cpu_group(group: dist.ProcessGroup) -> None:
    """The group of all ranks in which detectron2's ``comm`` gathers objects; it would make one without a timeout."""
    from detectron2.utils import comm

    comm._get_global_gloo_group = lambda: group


def silence_typed_storage() -> None:
    """detectron2's ``comm`` makes bytes to send of a kind of storage that torch warns of, once in each process."""
    warnings.filterwarnings(
        "ignore", message="TypedStorage is deprecated", category=UserWarning, module=r"detectron2\.utils\.comm"
    )


def takes(function: Callable, argument: str) -> bool:
    """Whether a function has an argument of this name."""
    return argument in inspect.signature(function).parameters


def saves_optimizer(default_trainer: type) -> bool:
    """v0.6's DefaultTrainer leaves ``state_dict`` to its base, which knows of no optimizer."""
    return "state_dict" in vars(default_trainer)


def saves_any_scheduler(hook: type) -> bool:
    """v0.6 saves instances of ``_LRScheduler``, which torch's own no longer are."""
    return not mentions(hook.state_dict, "_LRScheduler")


def skips_without_sets(map_dataset: type) -> bool:
    """v0.6 calls ``random.sample`` with a set, which Python 3.11 refuses; the fixes sort it first."""
    return not mentions(map_dataset, "sample(self._fallback_candidates")


def mentions(thing: Any, text: str) -> bool:
    """Whether the source of a class, function or module has this text; no where the source is not there."""
    try:
        return text in inspect.getsource(thing)
    except (OSError, TypeError):
        return False
