"""detectron2's yaml configs into its CfgNode, without running anything, and with errors that name file and line."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from dinox.config.errors import ConfigError
from dinox.config.yaml_text import YamlText, read_yaml
from dinox.utils.suggest import did_you_mean

_BASE = "_BASE_"

_KEY_IN_ERROR = re.compile(r"key: ([\w.]+)")  # in those of yacs


def merge_yaml(cfg: CfgNode, file: str, opts: Sequence[Any] = ()) -> None:
    """``cfg.merge_from_file(file)`` and ``cfg.merge_from_list(opts)``, safely.

    detectron2's own reads yaml in a way that can run code. This one runs nothing.

    Raises ConfigError naming the file: unreadable or unsafe yaml, or a key that does not exist, with a did-you-mean.
    """
    file = os.fspath(file)
    _check_file(cfg, file, ())
    try:
        cfg.merge_from_file(file, allow_unsafe=False)
    except (AssertionError, KeyError, ValueError, TypeError, OSError) as error:
        raise _explain(cfg, error, file) from error
    where = f"overrides {' '.join(map(str, opts))}"
    for key in opts[::2]:
        _check_override_key(cfg, str(key), where)
    try:
        cfg.merge_from_list(list(opts))
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise _explain(cfg, error, where) from error


def _check_file(cfg: CfgNode, file: str, above: tuple[str, ...]) -> None:
    """What yacs would meet with a traceback, in a file and in those that it is based on. ``above``: based on this."""
    if file in above:
        raise ConfigError(f"Config {above[0]}: {_BASE} leads in a circle: {' -> '.join((*above, file))}")
    document = _read(file, above)
    _check_sections(cfg, document.content, document, file)
    bases = document.content.get(_BASE, [])
    for base in [bases] if isinstance(bases, str) else bases or ():
        if not isinstance(base, str):
            raise ConfigError(f"Config {file}:{document.lines[_BASE]}: {_BASE}: expected a file, got {base!r}")
        if not base.startswith(("https://", "http://")):  # which detectron2 fetches
            path = os.path.join(os.path.dirname(file), os.path.expanduser(base))
            _check_file(cfg, os.path.normpath(path), (*above, file))


def _read(file: str, above: tuple[str, ...]) -> YamlText:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        based = f", the {_BASE} of {above[-1]}" if above else ""
        raise ConfigError(f"Config {error.filename or file}{based}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"Config {file}: not valid yaml: not in utf-8, at byte {error.start}") from error
    return read_yaml(text, origin=file)


def _check_sections(cfg: CfgNode, content: Mapping[str, Any], document: YamlText, file: str, prefix: str = "") -> None:
    """Where the config has keys below, the file has to have some too."""
    for key, value in content.items():
        section, dotted = cfg.get(key), f"{prefix}{key}"
        if not isinstance(section, CfgNode):
            continue
        if not isinstance(value, dict):
            line = document.lines.get(dotted)
            raise ConfigError(
                f"Config {file}{f':{line}' if line else ''}: {dotted}: expected keys below it, such as "
                f"{dotted}.{next(iter(section), 'KEY')}, got {value!r}"
            )
        _check_sections(section, value, document, file, f"{dotted}.")


def _check_override_key(cfg: CfgNode, key: str, where: str) -> None:
    node, above = cfg, ""
    for part in key.split("."):
        if not isinstance(node, CfgNode):
            raise ConfigError(f"Config {where}: {key}: {above} is {node!r} and has no keys below it")
        if part not in node:
            return  # yacs says so
        node, above = node[part], f"{above}.{part}".lstrip(".")
    if isinstance(node, CfgNode):
        raise ConfigError(f"Config {where}: {key}: expected a key below it, such as {key}.{next(iter(node), 'KEY')}")


def _explain(cfg: CfgNode, error: Exception, where: str) -> ConfigError:
    reason = str(error.args[0]) if error.args else type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    key = _KEY_IN_ERROR.search(reason)
    if key is None:
        return ConfigError(f"Config {where}: {reason}")
    if os.path.isfile(where):
        lines = read_yaml(Path(where).read_text(encoding="utf-8"), origin=where).lines
        where = f"{where}:{lines[key[1]]}" if key[1] in lines else where  # it may be in a _BASE_
    hint = did_you_mean(key[1], _all_keys(cfg)) if "Non-existent" in reason else ""
    return ConfigError(f"Config {where}: {reason}.{hint}")


def _all_keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in cfg.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, CfgNode):
            keys += _all_keys(value, f"{prefix}{key}.")
    return keys
