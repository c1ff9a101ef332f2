"""What a checkpoint says about itself: the config of its model, and the names of its classes.

Strings, lists and dictionaries only, so that nothing has to be trusted to read them: ``torch.load(weights_only=True)``
and detectron2's DetectionCheckpointer take such files as they take any other.
"""

import importlib.metadata
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dinox.checkpoint.reading import CheckpointError, local_file, read_checkpoint
from dinox.checkpoint.tensor_files import ENTRY
from dinox.config import parse_config
from dinox.config.calls import TARGET, locate_target, parameters

logger = logging.getLogger(__name__)

_RESOLVER = re.compile(r"\$\{[^}]*:")
"""An interpolation that calls something, which no config out of a file may do."""


@dataclass(frozen=True)
class CheckpointDescription:
    """What a file says; None for what it does not say, as files of other programs.

    version: of the dinox that wrote it. config_yaml: a LazyConfig with ``model`` and ``dataloader.test``.
    class_names: by class index. origin: the file, for messages. allow_targets: see ``dinox.config.parse_config``.
    """

    version: str | None = None
    config_yaml: str | None = None
    class_names: tuple[str, ...] | None = None
    origin: str = "checkpoint"
    allow_targets: tuple[str, ...] = ()

    @property
    def config(self) -> DictConfig | None:
        """The config, which may call only what is allowed. Raises ConfigError if it wants anything else."""
        if self.config_yaml is None:
            return None
        return parse_config(self.config_yaml, origin=f"{self.origin} (its config)", allow_targets=self.allow_targets)


def describe(cfg: DictConfig, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """The entry to save with a model of this LazyConfig.

    What holds an object, or calls something that cannot be imported by its name, cannot be written as plain yaml: it is
    left out, and a log line says so. ``model`` is kept whole or not at all (then there is no config), and so is each
    argument of ``dataloader.test``.
    """
    described: dict[str, Any] = {"version": _version()}
    parts = _plain_parts(cfg)
    if "model" in parts:
        described["config"] = OmegaConf.to_yaml(OmegaConf.create(parts))
    if class_names is not None:
        described["class_names"] = [str(name) for name in class_names]
    return described


def read_description(path: str, *, allow_targets: Sequence[str] = ()) -> CheckpointDescription:
    """What the checkpoint at a path or URL says about itself. Raises CheckpointError if it cannot be read."""
    file = local_file(path)
    entry = read_checkpoint(file.path, trusted=file.verified, mapped=True).get(ENTRY)
    if entry is None:
        return CheckpointDescription(origin=path)
    return parse_description(entry, origin=path, allow_targets=allow_targets)


def parse_description(entry: Any, *, origin: str, allow_targets: Sequence[str] = ()) -> CheckpointDescription:
    """The entry of a checkpoint that was read already. Raises CheckpointError if it is not one that dinox writes."""
    if not isinstance(entry, Mapping):
        raise CheckpointError(
            f"checkpoint {origin}: expected a dictionary as {ENTRY!r}, got {type(entry).__name__}. Give the config "
            "yourself, and remove this entry from the file"
        )
    names = entry.get("class_names")
    for key, value, fits in (
        ("version", entry.get("version"), lambda value: isinstance(value, str)),
        ("config", entry.get("config"), lambda value: isinstance(value, str)),
        ("class_names", names, lambda value: isinstance(value, list) and all(isinstance(x, str) for x in value)),
    ):
        if value is not None and not fits(value):
            expected = "a list of texts" if key == "class_names" else "text"
            raise CheckpointError(
                f"checkpoint {origin}: '{ENTRY}.{key}': expected {expected}, got {type(value).__name__}. "
                "The file was not written by dinox; remove this entry from it"
            )
    return CheckpointDescription(
        version=entry.get("version"),
        config_yaml=entry.get("config"),
        class_names=None if names is None else tuple(names),
        origin=origin,
        allow_targets=tuple(allow_targets),
    )


# ------------------------------------------------------------------------------------------------------------ comparing


@dataclass(frozen=True)
class Difference:
    """An argument of a part of the model, and its values in the checkpoint's config and in the other one."""

    key: str
    described: Any
    given: Any

    def __str__(self) -> str:
        return f"{self.key}={self.given!r} (in the checkpoint: {self.described!r})"


def differences(description: CheckpointDescription, cfg: DictConfig) -> list[Difference]:
    """Where the model of ``cfg`` computes otherwise than the one that a checkpoint describes.

    Of the parts that both have, with the same ``_target_`` at the same place, all arguments that are numbers, texts,
    switches, lists or None; one that is not spelt is its default. Nothing is built. Empty for a checkpoint without a
    config, and where either cannot be written as plain yaml.
    """
    models = [_resolved_model(yaml) for yaml in (description.config_yaml, describe(cfg).get("config"))]
    return [] if None in models else list(_differences(*models, "model"))


def _resolved_model(config_yaml: str | None) -> dict[str, Any] | None:
    if config_yaml is None or _RESOLVER.search(config_yaml):
        return None
    try:
        model = OmegaConf.to_container(OmegaConf.create(config_yaml), resolve=True)["model"]
    except (OmegaConfBaseException, YAMLError, LookupError, TypeError, ValueError):
        return None  # damaged: whoever builds from it will be told
    return model if isinstance(model, dict) else None


def _differences(described: dict[str, Any], given: dict[str, Any], key: str) -> Iterator[Difference]:
    if described.get(TARGET) != given.get(TARGET):
        return
    defaults = {name: p.default for name, p in (parameters(OmegaConf.create(given)) or {}).items()}
    for name in sorted({*described, *given} - {TARGET}, key=str):
        values = [node[name] if name in node else defaults.get(name, _ABSENT) for node in (described, given)]
        if all(isinstance(value, dict) for value in values):
            yield from _differences(*values, f"{key}.{name}")
        elif _ABSENT not in values and values[0] != values[1] and not any(isinstance(x, dict) for x in values):
            yield Difference(f"{key}.{name}", *values)


class _Absent:
    pass


_ABSENT = _Absent()


# -------------------------------------------------------------------------------------------------------------- writing


class _NotPlainError(Exception):
    """Of a part of a config: where it is, and what."""


def _version() -> str:
    try:
        return importlib.metadata.version("dinox")
    except importlib.metadata.PackageNotFoundError:  # imported from a folder
        return "unknown"


def _plain_parts(cfg: DictConfig) -> dict[str, Any]:
    """``model`` and the arguments of ``dataloader.test`` as far as they can be written."""
    parts: dict[str, Any] = {}
    with _left_out("model"):
        parts["model"] = _plain_model(cfg)
    test = OmegaConf.select(cfg, "dataloader.test")
    if isinstance(test, DictConfig):
        parts["dataloader"] = {"test": {}}
        for name, value in OmegaConf.to_container(test, resolve=True).items():
            with _left_out(f"dataloader.test.{name}"):
                parts["dataloader"]["test"][name] = _plain(value, f"dataloader.test.{name}")
    return parts


def _plain_model(cfg: DictConfig) -> Any:
    """With its references, so that overrides reach all that depends on them; values if one leads out of the model."""
    values = _plain(OmegaConf.to_container(cfg.model, resolve=True), "model")
    model = _plain(OmegaConf.to_container(cfg.model, resolve=False), "model")
    alone = OmegaConf.create({"model": model})
    if _RESOLVER.search(OmegaConf.to_yaml(alone)):
        return values
    try:
        return model if OmegaConf.to_container(alone, resolve=True)["model"] == values else values
    except OmegaConfBaseException:
        return values


@contextmanager
def _left_out(key: str) -> Iterator[None]:
    try:
        yield
    except _NotPlainError as error:
        logger.info("%s is left out of the checkpoints' description: %s", key, error)


def _plain(value: Any, key: str) -> Any:
    if key.rpartition(".")[2] == TARGET:
        return _target_name(value, key)
    if isinstance(value, Mapping):
        return {name: _plain(member, f"{key}.{name}") for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(member, f"{key}.{index}") for index, member in enumerate(value)]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise _NotPlainError(f"{key} is of the type {type(value).__qualname__}, which yaml cannot hold")


def _target_name(target: Any, key: str) -> str:
    if isinstance(target, str):
        return target
    if hasattr(target, "__module__") and hasattr(target, "__qualname__"):
        name = _convert_target_to_string(target)
        if not name.startswith("__main__.") and locate_target(name) == target:
            return name
    raise _NotPlainError(f"{key} is {target!r}, which cannot be imported by its name")
