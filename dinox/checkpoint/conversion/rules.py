"""Tables that say which of their names is which of ours, exact to the last word, and readable both ways.

A table is a sequence of rules. Names are written out; what varies stands in braces:

    Rename("transformer.encoder.layers.{i}.norms.0.{affine}", "encoder.layers.{i}.self_attention_norm.{affine}")

``{i}``, ``{j}``, ``{k}`` are numbers, ``{rest}`` is anything, the others are one of the names in WORDS. The first rule
that fits a name counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from dinox.utils.suggest import did_you_mean

_AFFINE = ("weight", "bias")

WORDS: Mapping[str, Sequence[str]] = {
    # of a linear layer, a convolution, a layer or group norm
    "affine": _AFFINE,
    # of a batch norm, frozen or not
    "batch_norm": (*_AFFINE, "running_mean", "running_var", "num_batches_tracked"),
    # of torch's MultiheadAttention
    "attention": ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"),
    # of multi-scale deformable attention, which everybody names as its authors did
    "deformable": tuple(
        f"{layer}.{name}"
        for layer in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for name in _AFFINE
    ),
}
_NUMBERS = ("i", "j", "k")
_PATTERNS = {**dict.fromkeys(_NUMBERS, r"\d+"), "rest": ".+"}
_BRACES = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Rename:
    """One tensor under two names."""

    theirs: str
    ours: str


@dataclass(frozen=True)
class Duplicate:
    """A second name of theirs for a tensor that they have as ``of`` as well."""

    theirs: str
    of: str


@dataclass(frozen=True)
class Ignore:
    """Something of theirs that we have no use for, and why."""

    theirs: str
    why: str


@dataclass(frozen=True)
class Constant:
    """A tensor of theirs that is no weight, and why we have no use for it. make: the tensor, from our weights."""

    theirs: str
    why: str
    make: Callable[[Mapping[str, Tensor]], Tensor]


Rule = Rename | Duplicate | Ignore | Constant


@dataclass(frozen=True)
class Translation:
    """What became of a state dict. unknown: the names that no rule fits. skipped: name -> why it is not needed."""

    weights: dict[str, Tensor]
    unknown: Sequence[str]
    skipped: Mapping[str, str]


def to_ours(weights: Mapping[str, Tensor], table: Sequence[Rule]) -> Translation:
    """Their state dict under our names. Raises ValueError if a duplicate differs from what it duplicates."""
    renamed: dict[str, Tensor] = {}
    unknown, skipped = [], {}
    for name, tensor in weights.items():
        rule, match = _first_fit(name, [(rule, rule.theirs) for rule in table])
        if rule is None:
            unknown.append(name)
        elif isinstance(rule, Rename):
            renamed[_fill(rule.ours, match)] = tensor
        elif isinstance(rule, Duplicate):
            original = _fill(rule.of, match)
            _check_duplicate(name, tensor, original, weights.get(original))
            skipped[name] = "stored twice"
        else:
            skipped[name] = rule.why
    return Translation(renamed, unknown, skipped)


def to_theirs(weights: Mapping[str, Tensor], table: Sequence[Rule]) -> Translation:
    """Our state dict under their names, with the duplicates and constants that they have."""
    renames = [(rule, rule.ours) for rule in table if isinstance(rule, Rename)]
    duplicates = [(rule, rule.of) for rule in table if isinstance(rule, Duplicate)]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in weights.items():
        rule, match = _first_fit(name, renames)
        if rule is None:
            unknown.append(name)
        else:
            renamed[_fill(rule.theirs, match)] = tensor
    for name, tensor in list(renamed.items()):
        rule, match = _first_fit(name, duplicates)
        if rule is not None:
            renamed[_fill(rule.theirs, match)] = tensor
    if not unknown:  # else it is no state dict of theirs, and may lack what constants are made from
        renamed |= {rule.theirs: rule.make(weights) for rule in table if isinstance(rule, Constant)}
    return Translation(renamed, unknown, {})


def without(table: Sequence[Rule], ours: tuple[str, ...], why: str) -> Sequence[Rule]:
    """The table for a reader who has no use for tensors whose names begin with one of ``ours``."""
    return [
        Ignore(rule.theirs, why) if isinstance(rule, Rename) and rule.ours.startswith(ours) else rule for rule in table
    ]


def count_unknown(weights: Iterable[str], table: Sequence[Rule]) -> int:
    """How many of these names of theirs no rule fits."""
    templates = [(rule, rule.theirs) for rule in table]
    return sum(_first_fit(name, templates)[0] is None for name in weights)


def nearest_name(name: str, table: Sequence[Rule]) -> str:
    """A did-you-mean with the names of theirs that a table knows, with the numbers that are in ``name``."""
    numbers = sorted(set(re.findall(r"\d+", name))) or ["0"]
    return did_you_mean(name, {known for rule in table for known in _spell_out(rule.theirs, numbers)})


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """One object, or equal in shape, type and every value (NaN never is)."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype or one.is_meta or other.is_meta:
        return False
    return torch.equal(one, other)


def _first_fit(name: str, templates: Iterable[tuple[Rule, str]]) -> tuple[Rule | None, re.Match | None]:
    for rule, template in templates:
        match = _pattern(template).fullmatch(name)
        if match:
            return rule, match
    return None, None


@cache
def _pattern(template: str) -> re.Pattern:
    pieces = _BRACES.split(template)  # literal, word, literal, word, ...
    for position in range(0, len(pieces), 2):
        pieces[position] = re.escape(pieces[position])
    for position in range(1, len(pieces), 2):
        word = pieces[position]
        choices = _PATTERNS.get(word) or "|".join(map(re.escape, WORDS[word]))
        pieces[position] = f"(?P<{word}>{choices})"
    return re.compile("".join(pieces))


def _fill(template: str, match: re.Match) -> str:
    return template.format_map(match.groupdict())


def _spell_out(template: str, numbers: Sequence[str]) -> Iterator[str]:
    """All names that a template stands for, with any of these numbers."""
    words = list(dict.fromkeys(_BRACES.findall(template)))
    if "rest" in words:  # all names, none of which is near
        return
    for chosen in product(*(numbers if word in _NUMBERS else WORDS[word] for word in words)):
        yield template.format_map(dict(zip(words, chosen)))


def _check_duplicate(name: str, tensor: Tensor, original: str, other: Tensor | None) -> None:
    if other is None or not same_tensor(tensor, other):
        state = "is missing" if other is None else "differs"
        raise ValueError(
            f"{name} should be {original} under a second name, but that {state}: the file was edited, or is of another "
            "version of its project. Nothing can be said for sure about such weights"
        )
