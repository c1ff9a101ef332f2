"""The syntax of overrides: `key=value`, with values in hydra's grammar, as detectron2 has it."""

import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from .errors import Source

_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def parse_override(source: Source) -> tuple[str, Any]:
    """Split `key=value` into the dotted key (`augmentations[0].prob` becomes `augmentations.0.prob`) and the value.

    Beyond hydra's grammar `None` is None, not a text, and `(1, 2)` is a list. Raises ConfigError with the cure.
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
    return key, _parse_value(source, key, _as_hydra(value))


def _as_hydra(value: str) -> str:
    if value == "None":
        return "null"
    if value.startswith("(") and value.endswith(")"):
        return f"[{value[1:-1].rstrip(', ')}]"
    return value


def _parse_value(source: Source, key: str, value: str) -> Any:
    quoting = f"Put texts with special characters into quotes: {key}=\"'...'\"."
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise source.error(f"cannot read the value {value!r} ({reason}). Lists are [1,2]. {quoting}") from error
    if parsed.is_sweep_override():
        raise source.error(f"{value!r} has several values. Write {key}=[{value}] for a list. {quoting}")
    return parsed.value()
