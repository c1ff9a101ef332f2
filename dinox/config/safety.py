"""What a yaml config may call. Yaml comes from checkpoints and from other people; a config in it shall be data.

A ``_target_`` is called when the config is built, and an interpolation is evaluated when its key is read. So both are
checked before anything is imported or read: targets against an allow-list, once by their text and once by what that
text leads to, and interpolations for being plain references. A .py config is a program; none of this applies to it.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from dinox.config.calls import TARGET, names_beside
from dinox.config.errors import ConfigError
from dinox.utils.suggest import did_you_mean

ALLOWED_MODULES = (
    "dinox.data.augmentation",
    "dinox.data.class_counts",
    "dinox.data.copy_paste",
    "dinox.data.large_scale_jitter",
    "dinox.data.loader",
    "dinox.data.mapper",
    "dinox.data.sampling",
    "dinox.data.skipping",
    "dinox.engine.optimizer",
    "dinox.engine.schedule",
    "dinox.evaluation.coco",
    "dinox.evaluation.detections",
    "dinox.evaluation.lvis",
    "dinox.evaluation.nms",
    "dinox.layers",
    "dinox.losses",
    "dinox.matching",
    "dinox.modeling",
    "detectron2.data.common",
    "detectron2.data.dataset_mapper",
    "detectron2.data.samplers",
    "detectron2.data.transforms",
    "detectron2.evaluation",
    "detectron2.layers",
    "detectron2.modeling",
    "detectron2.solver",
    "fvcore.common.param_scheduler",
    "torch.nn.modules",
    "torch.optim",
    "torchvision.models",
    "torchvision.ops",
    "timm.layers",
    "timm.models",
)
"""Modules whose public classes may be called: parts of a detector, of its data and of its training. A name that these
modules only import is not theirs. Of their functions, which may as well write or unpickle files, see below."""

ALLOWED_FUNCTIONS = (
    "dinox.data.augmentation.detr_augmentation",
    "dinox.data.augmentation.resize_augmentation",
    "dinox.data.large_scale_jitter.large_scale_jitter",
    "dinox.data.large_scale_jitter.resize_and_pad",
    "dinox.data.loader.build_train_loader",
    "dinox.data.loader.load_dataset_dicts",
    "dinox.engine.optimizer.get_optimizer_params",
    "dinox.engine.schedule.cosine_schedule",
    "dinox.engine.schedule.step_schedule",
    "dinox.modeling.backbone.vit_networks.build_eva02",
    "dinox.modeling.backbone.vit_networks.build_vit",
    "dinox.modeling.backbone.resnet.build_resnet",
    "detectron2.data.build.build_detection_test_loader",
    "detectron2.data.build.build_detection_train_loader",
    "detectron2.data.build.get_detection_dataset_dicts",
    "detectron2.modeling.backbone.resnet.ResNet.make_default_stages",
    "detectron2.modeling.backbone.resnet.ResNet.make_stage",
    "detectron2.solver.build.get_default_optimizer_params",
    "timm.models._factory.create_model",
)
"""The functions that may be called, by the names they are defined under. The builders of torchvision.models may be
called besides."""

REFUSED_MODULES = (
    "dinox.modeling.meta_arch.from_yaml",  # loads the config that its argument names
    "detectron2.modeling.mmdet_wrapper",  # builds whatever the registries of another library hold
    "timm.layers.config",  # its classes change settings of the process
    "torchvision.models.feature_extraction",  # writes and runs code
)

REFUSED_ARGUMENTS = {
    "cfg": "is read by detectron2's from_config, which may run code and open any file",
    "proposal_files": "names files that detectron2 unpickles",
    "checkpoint_path": "names a file that is unpickled",
    "pretrained_cfg": "says where timm fetches files that it may unpickle",
    "pretrained_cfg_overlay": "says where timm fetches files that it may unpickle",
    "cache_dir": "says where timm finds files that it may unpickle",
}
"""Arguments through which a call that is allowed does what is not."""

ALLOWED_RESOLVERS = ("dinox.",)
"""What the names of resolvers may begin with, in ``${name:arguments}``."""

_DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_REFERENCE = re.compile(r"\.*[\w.\[\]-]*", re.ASCII)
_INNERMOST = re.compile(r"\$\{([^${}]*)\}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)  # not "hf-hub:somebody/model"


@dataclass(frozen=True)
class Origin:
    """Where a yaml config comes from, for messages. lines: dotted key -> line."""

    name: str
    lines: Mapping[str, int]

    def place(self, key: str) -> str:
        """``file:line`` of a key, or of the nearest key above it."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.name}:{self.lines[key]}" if key else self.name


def check_safety(content: Mapping[Any, Any], origin: Origin, *, allow_targets: Sequence[str] = ()) -> None:
    """Check that building a config calls nothing but parts, and that reading it evaluates nothing but references.

    Args:
        content: plain dicts, lists and values.
        origin: for messages.
        allow_targets: packages or modules whose classes and functions may be called as well.

    Raises ConfigError naming the place, the key and the name, and the option that would allow it.
    """
    for package in allow_targets:
        if not _DOTTED_NAME.fullmatch(f"{package}.x"):
            raise ConfigError(f"--allow-target: expected the dotted name of a package, got {package!r}")
    targets: dict[str, Any] = {}
    calls: dict[str, Mapping[str, Any]] = {}  # by the key of their target
    for key, value in _walk(content, ""):
        if key.rpartition(".")[2] == TARGET:
            targets[key] = value
        elif isinstance(value, str) and "${" in value:
            _check_interpolation(key, value, origin)
        elif isinstance(value, Mapping) and TARGET in value:
            calls[f"{key}.{TARGET}"] = value
    if TARGET in content:
        calls[TARGET] = content
    # All texts first: as long as one of them is refused, nothing is imported.
    for key, name in targets.items():
        _check_text(key, name, origin, allow_targets)
    for key, name in targets.items():
        found = _check_object(key, name, origin, allow_targets)
        # Where it is defined counts: what an allowed package only re-exports is not its own.
        if key in calls and not _is_below_any(found.__module__, allow_targets):
            _check_arguments(key.removesuffix(TARGET), calls[key], origin)


def check_config(cfg: DictConfig, origin: Origin) -> None:
    """``check_safety`` of a config as it is after changes that came with a yaml config. Nothing in it is evaluated.

    Each change may be harmless and what they make of each other not: an argument that comes to a call by a mapping that
    is merged into it, for instance.
    """
    check_safety(_by_name(OmegaConf.to_container(cfg, resolve=False)), origin)


def _by_name(value: Any) -> Any:
    """Plain values, with the callables of a .py config as the names that they are defined under."""
    if isinstance(value, Mapping):
        return {key: _by_name(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_name(member) for member in value]
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value


def check_override(dotted: str, value: Any, origin: Origin) -> None:
    """The same for an override that comes with a config, and was not typed by the user."""
    *above, last = dotted.split(".")
    for part in above:
        _check_argument(dotted, part, None, origin)
    _check_argument(dotted, last, value, origin)
    content: Any = {last: value}
    for part in reversed(above):
        content = {part: content}
    check_safety(content, origin)


def _walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        members = value.items()
    elif isinstance(value, (list, tuple)):
        members = enumerate(value)
    else:
        return
    for name, member in members:
        dotted = f"{key}.{name}" if key else str(name)
        yield dotted, member
        yield from _walk(member, dotted)


# ------------------------------------------------------------------------------------------------------ interpolations


def _check_interpolation(key: str, value: str, origin: Origin) -> None:
    """``${..embed_dim}`` and ``${dinox.iterations:1,${a},${b}}`` are taken; ``${oc.env:HOME}`` is not."""
    rest = value
    while True:
        innermost = _INNERMOST.search(rest)
        if innermost is None:
            break
        body = innermost[1].strip()
        name, colon, _ = body.partition(":")
        allowed = name.startswith(ALLOWED_RESOLVERS) if colon else _REFERENCE.fullmatch(body)
        if not allowed:
            raise _refused_interpolation(key, innermost[0], origin)
        # What stands in for it is neither a resolver's name nor a bracket.
        rest = f"{rest[: innermost.start()]}_{rest[innermost.end() :]}"
    if "${" in rest:
        raise _refused_interpolation(key, value, origin)


def _refused_interpolation(key: str, text: str, origin: Origin) -> ConfigError:
    return ConfigError(
        f"Config {origin.place(key)}: '{key}': {text!r} is refused: in a yaml config, expected a reference to another "
        f"key, such as ${{model.num_classes}}. Nothing was evaluated. Write the value itself."
    )


# ------------------------------------------------------------------------------------------------------------- targets


def _check_arguments(prefix: str, call: Mapping[str, Any], origin: Origin) -> None:
    for name, value in call.items():
        _check_argument(f"{prefix}{name}", str(name), value, origin)


def _check_argument(key: str, name: str, value: Any, origin: Origin) -> None:
    """``key``: the whole one, for messages."""
    if name in REFUSED_ARGUMENTS:
        raise ConfigError(
            f"Config {origin.place(key)}: '{key}' is refused in a yaml config: it {REFUSED_ARGUMENTS[name]}. "
            f"Nothing was run. Leave it out, or write a .py config."
        )
    if name == "model_name" and not (isinstance(value, str) and _MODEL_NAME.fullmatch(value)):
        got = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
        raise ConfigError(
            f"Config {origin.place(key)}: '{key}': {got} is refused in a yaml config: it could fetch a model from "
            f"anywhere. Spell out a name that timm.list_models() has."
        )


def _check_text(key: str, name: Any, origin: Origin, allow_targets: Sequence[str]) -> None:
    """Could this name lead into an allowed module? Modules re-export: ``torch.nn.Linear`` is of torch.nn.modules."""
    if not isinstance(name, str) or not _DOTTED_NAME.fullmatch(name):
        got = repr(name) if isinstance(name, (str, int, float, bool)) else f"a {type(name).__name__}"
        raise ConfigError(
            f"Config {origin.place(key)}: '{key}': expected the dotted name of a callable, got {got}. It must be "
            f"spelt out in a yaml config."
        )
    parent = name.rpartition(".")[0]
    roots = (*ALLOWED_MODULES, *(allowed.rpartition(".")[0] for allowed in ALLOWED_FUNCTIONS), *allow_targets)
    if not any(_is_below(parent, root) or _is_below(root, parent) for root in roots):
        raise _refused_target(key, name, None, origin)


def _check_object(key: str, name: str, origin: Origin, allow_targets: Sequence[str]) -> Callable:
    found = _locate(name)
    if found is None:
        hint = did_you_mean(name, names_beside(name))
        raise ConfigError(
            f"Config {origin.place(key)}: '{key}': expected the dotted name of a callable, got {name!r}.{hint}"
        )
    if not _is_allowed(found, allow_targets):
        raise _refused_target(key, name, found, origin)
    return found


def _is_allowed(found: Any, allow_targets: Sequence[str]) -> bool:
    """A class that is defined, not only imported, in an allowed module, or one of the functions that are allowed."""
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return False
    if _is_below_any(found.__module__, allow_targets):
        return True
    name = f"{found.__module__}.{found.__qualname__}"
    if inspect.isfunction(found):
        return name in ALLOWED_FUNCTIONS or _is_torchvision_builder(found)
    is_public = not any(part.startswith("_") for part in name.split("."))
    is_nested = "." in found.__qualname__
    return (
        is_public
        and not is_nested
        and _is_below_any(found.__module__, ALLOWED_MODULES)
        and not _is_below_any(found.__module__, REFUSED_MODULES)
    )


def _is_torchvision_builder(function: Callable) -> bool:
    """``torchvision.models.resnet50``; whose weights, if asked for, are torchvision's own."""
    if not _is_below(function.__module__, "torchvision.models"):
        return False
    models = importlib.import_module("torchvision.models")
    return function in (models.get_model_builder(name) for name in models.list_models())


def _is_below_any(name: str, packages: Sequence[str]) -> bool:
    return any(_is_below(name, package) for package in packages)


def _is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _locate(name: str) -> Any:
    try:
        return locate(name)  # what instantiate() uses
    except Exception:  # whatever the import of that module raises
        return None


def _refused_target(key: str, name: str, found: Any, origin: Origin) -> ConfigError:
    what = repr(name)
    defined = getattr(found, "__module__", None)
    if inspect.ismodule(found):
        what += ", a module,"
    elif isinstance(defined, str) and hasattr(found, "__qualname__"):
        real = f"{defined}.{found.__qualname__}"
        what += f" ({real})" if real != name else ""
    package = (defined if isinstance(defined, str) else name).partition(".")[0]
    return ConfigError(
        f"Config {origin.place(key)}: '{key}': {what} is refused: a yaml config may call parts of dinox, detectron2, "
        f"torch.nn, torch.optim, torchvision, timm and fvcore's schedulers only. Nothing was run. If you trust where "
        f"this config comes from: --allow-target {package}"
    )
