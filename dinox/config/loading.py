"""From a file, a zoo name or a text to a config object."""

import builtins
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dinox.config.checks import check_calls
from dinox.config.errors import ConfigError
from dinox.config.files import resolve_config
from dinox.config.lines import find_line
from dinox.config.overrides import apply_overrides
from dinox.config.safety import Origin, check_safety
from dinox.config.yaml_text import YamlText, read_yaml

_DETECTRON2_KEYS = {"MODEL", "DATASETS", "SOLVER", "INPUT", "_BASE_", "VERSION"}
"""Top-level keys of detectron2's other kind of yaml."""


def load_config(
    path_or_name: str | os.PathLike, overrides: Sequence[str] = (), *, allow_targets: Sequence[str] = ()
) -> DictConfig:
    """Load a LazyConfig and apply ``key=value`` overrides to it, strictly.

    A ``.py`` config is a program: loading it runs it, so take only those that you trust. A ``.yaml`` config is data:
    loading it runs nothing, and what it may have called later is restricted (see ``parse_config``). Overrides are the
    user's own words; they are not restricted.

    Args:
        path_or_name: a ``.py`` or ``.yaml`` file, or a name in the model zoo (``dino/dino_r50_4scale_12ep``).
        overrides: ``key=value`` texts: ``lr=1e-4``, ``names=[a,b]``, ``neck=null``, ``augmentations.0.prob=1``.
        allow_targets: packages that a yaml config may call besides those it may call anyway.

    Raises ConfigError with file and line, and a did-you-mean, for a file, a key or an argument that does not exist, for
    a value of another type than expected, and for a yaml config that would run something else than parts.
    """
    file = resolve_config(path_or_name)
    cfg = load_file(file, allow_targets=allow_targets)
    return apply_overrides(cfg, overrides, file=str(file))


def load_file(file: str | os.PathLike, *, allow_targets: Sequence[str] = ()) -> DictConfig:
    """``load_config`` of a file, without overrides."""
    file = Path(file)
    if file.suffix in (".yaml", ".yml"):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"Config {file}: not valid yaml: not in utf-8, at byte {error.start}") from error
        return parse_config(text, origin=str(file), allow_targets=allow_targets)
    if file.suffix != ".py":
        raise ConfigError(
            f"Config {file}: expected a name that ends in .py or .yaml, got {file.suffix or 'no ending'!r}."
        )
    cfg = _run(file)
    check_calls(cfg, file=str(file), line_of=lambda key: find_line(file, key))
    return cfg


def setting_place(path_or_name: str | os.PathLike, key: str) -> str:
    """``file:line`` where a config that could be loaded sets a dotted key; as much of it as can be found."""
    file = resolve_config(path_or_name)
    if file.suffix == ".py":
        return find_line(file, key) or str(file)
    return Origin(str(file), read_yaml(file.read_text(encoding="utf-8"), origin=str(file)).lines).place(key)


def parse_config(yaml_text: str, *, origin: str, allow_targets: Sequence[str] = ()) -> DictConfig:
    """The config in a yaml text, such as a checkpoint holds, after all checks that need not build it.

    Nothing is run. When the config is built, it can call parts (see ``dinox.config.safety``) and nothing else; its
    interpolations are references to its own keys.

    Args:
        yaml_text: of a LazyConfig, as ``LazyConfig.save`` writes it.
        origin: what messages call it: the file's name.
        allow_targets: packages or modules whose classes and functions it may call as well.

    Raises ConfigError naming origin, line and key.
    """
    document = read_yaml(yaml_text, origin=origin)
    _refuse_detectron2_yaml(document, origin)
    place = Origin(origin, document.lines)
    check_safety(document.content, place, allow_targets=allow_targets)
    try:
        cfg = OmegaConf.create(document.content, flags={"allow_objects": True})
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        raise ConfigError(f"Config {place.place(key)}: '{key}': {str(error).splitlines()[0]}") from error
    check_calls(cfg, file=origin, line_of=place.place)
    return cfg


def _refuse_detectron2_yaml(document: YamlText, origin: str) -> None:
    keys = _DETECTRON2_KEYS & document.content.keys()
    if keys:
        raise ConfigError(
            f"Config {origin}:{min(document.lines[key] for key in keys)}: {', '.join(sorted(keys))} are keys of "
            f"detectron2's CfgNode; expected a LazyConfig (model, dataloader, optimizer, train). Train it with "
            f"dinox.engine.DinoxTrainer, or give the config that its MODEL.DINOX.CONFIG names."
        )


def _run(file: Path) -> DictConfig:
    try:
        with _import_restored():
            # Absolute, because its relative imports are resolved by cutting folders off this path.
            return LazyConfig.load(os.path.abspath(file))
    except SyntaxError as error:
        # detectron2 wraps the error of the parser, which knows the line.
        cause = error.__cause__ if isinstance(error.__cause__, SyntaxError) else error
        raise ConfigError(f"Config {file}: syntax error: {error}, line {cause.lineno}: {cause.msg}") from error
    except Exception as error:
        raise ConfigError(f"Config {_last_config_line(error, file)}: {type(error).__name__}: {error}") from error


@contextmanager
def _import_restored() -> Iterator[None]:
    # While LazyConfig.load runs a config, `import` is replaced; v0.6 does not put it back when the config fails.
    saved = builtins.__import__
    try:
        yield
    finally:
        builtins.__import__ = saved


def _last_config_line(error: Exception, file: Path) -> str:
    """``file:line`` of the innermost line of a config that was running. Config code runs at module level."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if f.name == "<module>" and f.filename.endswith(".py")
    ]
    # A module that the config imports may fail at module level as well; the config's author can change his own line.
    configs = [f for f in frames if "site-packages" not in f.filename]
    return f"{configs[-1].filename}:{configs[-1].lineno}" if configs else str(file)
