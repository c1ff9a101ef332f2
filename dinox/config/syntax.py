"""The syntax of overrides: ``key=value``, with values in hydra's grammar, as detectron2 has it."""

import os
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dinox.config.errors import Source

_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_BEGINNINGS = "[{('\""  # of lists, mappings and quoted texts
_QUOTING = "Put texts with special characters into quotes: {key}=\"'...'\"."


def split_override(source: Source) -> tuple[str, str]:
    """Split ``key=value`` into the dotted key (``augmentations[0].prob`` becomes ``augmentations.0.prob``) and the
    value as it is written.

    Raises ConfigError with the cure.
    """
    text = source.text.strip()
    if text.startswith(("+", "~")):
        raise source.error(f"'{text[0]}' is not supported: keys can be set, not added or deleted. Write key=VALUE")
    written, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        words = text.split(maxsplit=1)
        example = f"{words[0]}={words[1]}" if len(words) == 2 else f"{text or 'key'}=VALUE"
        raise source.error(f"expected key=value, got no '='. Write {example}")
    key = re.sub(r"\[(\d+)\]", r".\1", written)
    if not _KEY.fullmatch(key):
        raise source.error(f"expected a dotted key before '=', got {written!r}. Write it like model.num_classes=80")
    if not value:
        raise source.error(f"no value after '='. Write {key}=null for None, {key}=\"''\" for an empty text.")
    return key, value


def parse_value(source: Source, key: str, written: str, *, is_text: bool = False) -> Any:
    """The value of ``key`` as hydra reads it; beyond its grammar ``None`` is None, not a text, and ``(1, 2)`` a list.

    Args:
        source: for messages.
        key: likewise.
        written: what stands behind the equals sign.
        is_text: the key takes text, so that what hydra cannot read (``my runs (2)``, ``~/runs``) is meant as it stands,
            unless it begins like a list, a mapping or a quoted text. A leading ``~/`` is the home folder: the shell
            does not see to that behind ``key=``.

    Raises ConfigError with the cure.
    """
    try:
        return _parse_hydra(source, key, _as_hydra(written))
    except HydraException as error:
        if is_text and written[0] not in _BEGINNINGS and "${" not in written:
            return os.path.expanduser(written)
        reason = str(error).splitlines()[0]
        raise source.error(
            f"cannot read the value {written!r} ({reason}). Lists are [1,2]. {_QUOTING.format(key=key)}"
        ) from error


def _as_hydra(value: str) -> str:
    if value == "None":
        return "null"
    if value.startswith("(") and value.endswith(")"):
        return f"[{value[1:-1].rstrip(', ')}]"
    return value


def _parse_hydra(source: Source, key: str, value: str) -> Any:
    parsed = OverridesParser.create().parse_override(f"{key}={value}")
    if parsed.is_sweep_override():
        raise source.error(
            f"{value!r} has several values. Write {key}=[{value}] for a list. {_QUOTING.format(key=key)}"
        )
    return parsed.value()
