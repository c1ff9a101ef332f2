"""From a file or a zoo name to a config object."""

import builtins
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

from dinox.config.calls import check_calls
from dinox.config.errors import ConfigError
from dinox.config.files import resolve_config
from dinox.config.overrides import apply_overrides


def load_config(path_or_name: str | os.PathLike, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a LazyConfig and apply ``key=value`` overrides to it, strictly.

    Args:
        path_or_name: a ``.py`` or ``.yaml`` file, or a name in the model zoo (``dino/dino_r50_4scale_12ep``).
        overrides: ``key=value`` texts: ``lr=1e-4``, ``names=[a,b]``, ``neck=null``, ``augmentations.0.prob=1``.

    Raises ConfigError with a did-you-mean for a file, a key or an argument that does not exist, and for a value of
    another type than the one it replaces.
    """
    file = resolve_config(path_or_name)
    cfg = load_file(file)
    check_calls(cfg, file=str(file))
    return apply_overrides(cfg, overrides, file=str(file))


def load_file(file: str | os.PathLike) -> DictConfig:
    """Load a ``.py`` LazyConfig (which runs its code) or a ``.yaml`` one (which runs nothing: plain values only).

    Raises ConfigError that names file and line.
    """
    file = Path(file)
    if file.suffix in (".yaml", ".yml"):
        return _load_yaml(file)
    if file.suffix != ".py":
        raise ConfigError(
            f"Config {file}: expected a name that ends in .py or .yaml, got {file.suffix or 'no ending'!r}."
        )
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


def _load_yaml(file: Path) -> DictConfig:
    try:
        # LazyConfig.load would use yaml.unsafe_load, which runs code that the file names.
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"Config {file}:{error.problem_mark.line + 1}: {error.problem}. A yaml config may hold plain values only; "
            f"this tag could run code and is refused. Write a .py config if you need objects."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config {file}: not valid yaml: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"Config {file}: expected a mapping at the top, got {type(content).__name__}.")
    return OmegaConf.create(content, flags={"allow_objects": True})


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
