"""What became of a file's tensors: names, and counts for each part of the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from dinox.checkpoint.class_transfer import ClassTransfer, is_class_head, row_layouts
from dinox.utils.names import backbone_prefix, is_pretrained

ENOUGH = 0.9
"""Part of the tensors that has to find its place. Less is no fine-tuning but another architecture."""

Purpose = Literal["train", "partial", "evaluate", "resume"]


@dataclass(frozen=True)
class ModuleCount:
    """Tensors of one part of the model, or of the file where the model has no such part (``model`` is 0 then).

    model = loaded + missing + other_shape + by_class. unexpected: of the file alone.
    """

    module: str
    model: int = 0
    loaded: int = 0
    by_class: int = 0
    missing: int = 0
    other_shape: int = 0
    unexpected: int = 0

    @property
    def fate(self) -> str | None:
        """What happened to all of them; None if not the same."""
        kinds = [kind for kind in _KINDS if getattr(self, kind)]
        return kinds[0] if len(kinds) == 1 else None

    @staticmethod
    def total(name: str, counts: Iterable[ModuleCount]) -> ModuleCount:
        counts = list(counts)
        return ModuleCount(name, *(sum(getattr(each, kind) for each in counts) for kind in ("model", *_KINDS)))


_KINDS = ("loaded", "by_class", "missing", "other_shape", "unexpected")


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors. A tensor that several modules share counts once, under its first name.

    loaded: names in the model. missing: in the model, not in the file. unexpected: in the file, not in the model.
    mismatched: (name, shape in the file, shape in the model). class_heads: those of the mismatched that differ in the
    classes only; they stay as initialised. file_tensors: number of tensors in the file. training_only: those of the
    missing that detection does not need (auxiliary heads, positive queries). by_class: filled row by row, each class
    with that of its name; classes: which these are. modules: counts for each part of the model, and of its parts.
    """

    path: str
    loaded: Sequence[str]
    missing: Sequence[str]
    unexpected: Sequence[str]
    mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]
    class_heads: Sequence[str]
    file_tensors: int
    training_only: Sequence[str] = ()
    by_class: Sequence[str] = ()
    classes: ClassTransfer | None = None
    modules: Sequence[ModuleCount] = ()

    @property
    def model_names(self) -> list[str]:
        return [*self.loaded, *self.by_class, *self.missing, *(name for name, *_ in self.mismatched)]

    @property
    def model_tensors(self) -> int:
        return len(self.model_names)

    @property
    def is_complete(self) -> bool:
        return len(self.loaded) == self.model_tensors

    @property
    def is_complete_for_detection(self) -> bool:
        return len(self.loaded) + len(self.training_only) == self.model_tensors

    @property
    def is_detector(self) -> bool:
        """The file fills the model, class heads for other classes and what only training needs excepted."""
        excepted = len(self.class_heads) + len(self.by_class) + len(self.training_only)
        return len(self.loaded) >= ENOUGH * (self.model_tensors - excepted) and len(self.loaded) > 0

    @property
    def is_backbone(self) -> bool:
        """The file fills our backbone and holds little else (ImageNet weights bring their classifier).

        Norms of the backbone's outputs are the detector's, and no file has to have them.
        """
        model = self.model_names
        prefix = backbone_prefix(model)
        return (
            len(self.loaded) > 0
            and all(name.startswith(prefix) for name in self.loaded)
            and len(self.loaded) >= ENOUGH * sum(is_pretrained(name, prefix) for name in model)
            and len(self.loaded) >= ENOUGH * self.file_tensors
        )

    def summary(self) -> str:
        """One line with all counts."""
        return (
            f"{len(self.loaded)} of the model's {self.model_tensors} tensors loaded, "
            f"{f'{len(self.by_class)} by class name, ' if self.by_class else ''}{len(self.missing)} missing"
            f"{f' ({len(self.training_only)} of them for training only)' if self.training_only else ''}, "
            f"{len(self.unexpected)} unexpected, {len(self.mismatched)} of another shape"
        )


# ------------------------------------------------------------------------------------------------------------- counting


def make_report(
    path: str, model: nn.Module, incompatible: Any, file_names: Collection[str], classes: ClassTransfer | None = None
) -> LoadReport:
    """``incompatible``: what fvcore's Checkpointer returns. file_names: of the tensors in the file."""
    mismatched = {name: (tuple(in_file), tuple(in_model)) for name, in_file, in_model in incompatible.incorrect_shapes}
    tensors = model.state_dict(keep_vars=True)
    if classes is not None:  # whatever their shapes are
        mismatched |= {name: (shape, tuple(tensors[name].shape)) for name, shape in classes.refused.items()}
    missing = {*incompatible.missing_keys, *_unsaid(model, incompatible.missing_keys, file_names)}
    fates: dict[str, list[str]] = {kind: [] for kind in ("loaded", "by_class", "missing", "mismatched")}
    for names in _aliases(tensors):
        name, fate = _fate(names, missing, mismatched, classes)
        fates[fate].append(name)
    layouts, unexpected = row_layouts(model), list(incompatible.unexpected_keys)
    return LoadReport(
        path=path,
        loaded=fates["loaded"],
        missing=fates["missing"],
        unexpected=unexpected,
        mismatched=[(name, *mismatched[name]) for name in fates["mismatched"]],
        class_heads=[name for name in fates["mismatched"] if is_class_head(name, layouts, *mismatched[name])],
        file_tensors=len(file_names),
        training_only=_training_only(model, fates["missing"]),
        by_class=fates["by_class"],
        classes=classes,
        modules=_count_modules(model, {**fates, "other_shape": fates["mismatched"], "unexpected": unexpected}),
    )


def _fate(
    names: Sequence[str], missing: set[str], mismatched: Mapping[str, Any], classes: ClassTransfer | None
) -> tuple[str, str]:
    """Of one tensor with all of its names: the name to report, and what became of it."""
    if classes is not None and classes.tensors.intersection(names):
        return names[0], "by_class"
    if not {*missing, *mismatched}.issuperset(names):
        return names[0], "loaded"
    other_shape = next((name for name in names if name in mismatched), None)
    return (names[0], "missing") if other_shape is None else (other_shape, "mismatched")


def _unsaid(model: nn.Module, missing: Collection[str], file_names: Collection[str]) -> Iterable[str]:
    """What is missing of detectron2's frozen norms without being named: statistics that a file lacks become 0 and 1.

    That is right if they were folded into weight and bias, and not if these are missing too.
    """
    for prefix, part in model.named_modules(remove_duplicate=False):
        if isinstance(part, FrozenBatchNorm2d) and f"{prefix}.weight" in missing:
            statistics = (f"{prefix}.running_mean", f"{prefix}.running_var")
            yield from (name for name in statistics if name not in file_names)


def _aliases(tensors: Mapping[str, Any]) -> Iterable[list[str]]:
    """The names of each tensor of a state dict: several where modules share it."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return names.values()


def _training_only(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the names that belong to parts that are there for training only."""
    parts = tuple(f"{name}." for name, part in model.named_modules() if getattr(part, "training_only", False) is True)
    return [name for name in names if name.startswith(parts)]


def _count_modules(model: nn.Module, fates: Mapping[str, Sequence[str]]) -> list[ModuleCount]:
    """For each part of the model and each part of these, in the model's order; what is unexpected follows."""
    counts: dict[str, dict[str, int]] = {_module_of(name): {} for name in model.state_dict()}
    for kind in _KINDS:
        for name in fates[kind]:
            count = counts.setdefault(_module_of(name), {})
            count[kind] = count.get(kind, 0) + 1
    found = [
        ModuleCount(module, model=sum(count.values()) - count.get("unexpected", 0), **count)
        for module, count in counts.items()
        if count
    ]
    order = {top: place for place, top in enumerate(dict.fromkeys(top_module(each.module) for each in found))}
    return sorted(found, key=lambda each: order[top_module(each.module)])


def _module_of(name: str) -> str:
    """``encoder.layers`` for ``encoder.layers.0.norm1.weight``; ``heads`` for ``heads.0.weight``."""
    parts = name.split(".")
    depth = 2 if len(parts) > 2 and not parts[1].isdigit() else 1
    return ".".join(parts[:depth])


def top_module(module: str) -> str:
    """``encoder`` for ``encoder.layers``."""
    return module.partition(".")[0]
