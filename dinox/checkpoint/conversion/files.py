"""Checkpoint files of other implementations to checkpoint files of dinox, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from dinox.checkpoint import certificate
from dinox.checkpoint.building import build_model, explained
from dinox.checkpoint.conversion.comparison import Comparison, compare_weights, explain, fit_counters
from dinox.checkpoint.conversion.converting import (
    Conversion,
    TrainingParts,
    find_format,
    guess_source,
    read,
    write,
)
from dinox.checkpoint.conversion.dino import COCO_IDS
from dinox.checkpoint.conversion.formats import MASK_MEMORY, OURS, Settings
from dinox.checkpoint.conversion.parts import count_classes, count_decoder_layers
from dinox.checkpoint.description import describe, parse_description
from dinox.checkpoint.reading import CheckpointError, local_file, pick_weights, read_checkpoint
from dinox.checkpoint.tensor_files import ENTRY
from dinox.checkpoint.writing import check_target, write_checkpoint
from dinox.config import apply_overrides
from dinox.config.calls import parameters
from dinox.utils.whole_files import NamedFile, check_outputs

_SHARED_HEADS = "model.heads.shared"
_NO_ARGUMENT = object()


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    source: whose weights these were; guessed: from their names. entry: of the file, such as "model" or "ema_model".
    settings: overrides that make the config compute what the source does. comparison: with the config's model.
    conversion: of names and class rows. notes: what a user has to know. certificate: None if none was asked for.
    size: of the written file in bytes.
    """

    path: str
    output: str
    source: str
    guessed: bool
    target: str
    entry: str
    settings: Sequence[str]
    comparison: Comparison
    conversion: Conversion
    notes: Sequence[str]
    certificate: certificate.Certificate | None
    size: int

    def as_dict(self) -> dict[str, Any]:
        """For json."""
        found = self.certificate
        return {
            "input": self.path,
            "output": self.output,
            "source": self.source,
            "source_guessed": self.guessed,
            "target": self.target,
            "entry": self.entry,
            "settings": list(self.settings),
            "used": list(self.comparison.used),
            "missing": list(self.comparison.missing),
            "unused": list(self.comparison.unused),
            "mismatched": {name: list(shapes) for name, shapes in self.comparison.mismatched.items()},
            "skipped": dict(self.conversion.skipped),
            "reshaped": {name: list(shapes) for name, shapes in self.conversion.reshaped.items()},
            "parts": [vars(part) for part in self.comparison.by_part()],
            "notes": list(self.notes),
            "certificate": None if found is None else {**vars(found), "holds": found.holds},
            "bytes": self.size,
        }


def convert_file(
    path: str,
    output: str,
    *,
    cfg: DictConfig,
    cfg_origin: str | None = None,
    source: str | None = None,
    target: str = OURS,
    fixed: Sequence[str] = (),
    category_ids: Sequence[int] | None = None,
    training_parts: TrainingParts = "keep",
    ema: bool | None = None,
    partial: bool = False,
    overwrite: bool = False,
    certify_with: str | None = None,
    tolerance: float = certificate.TOLERANCE,
    dump: str | None = None,
) -> ConversionReport:
    """Convert one file.

    Args:
        path: a file or URL: ``.pth``, ``.pkl`` or ``.safetensors`` with a state dict, bare or as "model" or
            "state_dict".
        output: where to write, ``.pth`` or ``.safetensors``.
        cfg: of the model that the weights are for. Keys in which the source's models differ are set in it.
        cfg_origin: what messages call it; by default the one in the file at ``path``.
        source, category_ids: see ``convert``; source None: told by the names.
        target: "dinox", "detrex", "stable-dino" or "co-detr".
        training_parts: see ``convert``; if they are dropped, ``cfg`` is left without them too.
        fixed: keys of ``cfg`` to leave as they are.
        ema: take the averaged weights in the file, or those of the last step. None: the averaged ones of dinox's own
            files, and those of the last step of others.
        partial: write what fits, though the model needs more or the file holds more.
        overwrite: replace what is at ``output`` and ``dump``.
        certify_with: a dump of the original's outputs; the model has to agree within ``tolerance`` (see
            ``dinox.checkpoint.certificate``).
        dump: where to write a dump of the model's outputs.

    Raises CheckpointError or ConfigError, or ValueError from ``convert`` or because a file would be overwritten; then
    nothing is written.
    """
    _check_targets(path, output, dump, overwrite=overwrite, partial=partial, certify_with=certify_with)
    file = _read_file(path, source=source, category_ids=category_ids, training_parts=training_parts, ema=ema)
    origin = f"{path} (its config)" if cfg_origin is None else cfg_origin
    with explained(origin, "model"):
        settings = _apply_settings(cfg, file.conversion, fixed)
    model = build_model(cfg, origin=origin).cpu()
    if training_parts == "drop":
        apply_overrides(cfg, list(_null_overrides(model)))
        model = build_model(cfg, origin=origin).cpu()
    weights, comparison = _fit(model, file.conversion, path, partial=partial)
    written = weights if target == OURS else write(weights, target)
    found = _certify(model, certify_with, tolerance, file.conversion)
    if dump is not None:
        certificate.write_dump(dump, certificate.compute_dump(model, certificate.make_images()))
    write_checkpoint(output, written, description=_description(cfg, file) if target == OURS else None)
    return ConversionReport(
        path=path,
        output=output,
        source=file.source,
        guessed=source is None,
        target=target,
        entry=file.entry,
        settings=settings,
        comparison=comparison,
        conversion=file.conversion,
        notes=list(_notes(cfg, file.conversion, file.weights, target)),
        certificate=found,
        size=os.path.getsize(output),
    )


def _check_targets(
    path: str, output: str, dump: str | None, *, overwrite: bool, partial: bool, certify_with: str | None
) -> None:
    """All that can be said before anything is read."""
    check_target(output)
    if dump is not None:
        certificate.check_dump_target(dump)
    outputs, inputs = conversion_files(path, output, dump=dump, certify_with=certify_with)
    check_outputs(outputs, inputs=inputs, overwrite=overwrite)
    if partial and (certify_with or dump):
        raise CheckpointError("a model that is filled in part computes nothing to compare: leave out --partial")
    if certify_with is not None:
        certificate.read_dump(certify_with)


def conversion_files(
    path: str, output: str, *, dump: str | None = None, certify_with: str | None = None
) -> tuple[list[NamedFile], list[NamedFile]]:
    """What ``convert_file`` writes, and what it reads."""
    outputs, inputs = [NamedFile("the converted file", output)], [NamedFile("the file to convert", path)]
    if dump is not None:
        outputs.append(NamedFile("--dump", dump))
    if certify_with is not None:
        inputs.append(NamedFile("--certificate", certify_with))
    return outputs, inputs


@dataclass(frozen=True)
class _File:
    """What a file holds. weights: under its own names. class_names: None if it does not say them."""

    source: str
    entry: str
    weights: Mapping[str, Tensor]
    conversion: Conversion
    class_names: Sequence[str] | None


def _read_file(
    path: str,
    *,
    source: str | None,
    category_ids: Sequence[int] | None,
    training_parts: TrainingParts,
    ema: bool | None,
) -> _File:
    local = local_file(path)
    checkpoint = read_checkpoint(local.path, trusted=local.verified)
    entry, weights = pick_weights(checkpoint, path=path, ema=ema)
    source, conversion = _convert(weights, source, category_ids, training_parts, path)
    names = parse_description(checkpoint.get(ENTRY, {}), origin=path).class_names
    names = names or _mmdetection_classes(checkpoint, count_classes(conversion.weights))
    return _File(source, entry, weights, conversion, names)


def _mmdetection_classes(checkpoint: Mapping[str, Any], num_classes: int | None) -> list[str] | None:
    """mmdetection notes them beside the weights."""
    meta = checkpoint.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    is_list = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return list(names) if is_list and len(set(names)) == len(names) == num_classes else None


def _convert(
    foreign: Mapping[str, Tensor],
    source: str | None,
    category_ids: Sequence[int] | None,
    training_parts: TrainingParts,
    path: str,
) -> tuple[str, Conversion]:
    """The source, guessed if it is None, and the conversion to our names."""
    try:
        source = guess_source(foreign) if source is None else source
        return source, read(foreign, source, category_ids=category_ids, training_parts=training_parts)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error


def _is_backbone(conversion: Conversion) -> bool:
    return conversion.origin is not None and conversion.origin.is_backbone


def _null_overrides(model: nn.Module) -> Iterator[str]:
    """What leaves out of its config the parts that are there for training only; a part says so itself."""
    left_out: tuple[str, ...] = ()
    for name, part in model.named_modules():
        if getattr(part, "training_only", False) is True and not name.startswith(left_out):
            left_out = (*left_out, f"{name}.")
            yield f"model.{name}=null"


def _fit(model: nn.Module, conversion: Conversion, path: str, *, partial: bool) -> tuple[dict[str, Tensor], Comparison]:
    """Fill the model, and return the weights that it took. Raises CheckpointError unless file and model fit each other,
    or in part if that is allowed."""
    weights = fit_counters(model, conversion.weights)
    comparison = compare_weights(model, weights, backbone_only=_is_backbone(conversion))
    if not comparison.is_exact and not partial:
        raise CheckpointError(f"checkpoint {path}: {explain(comparison, model)}")
    if not comparison.used:
        raise CheckpointError(f"checkpoint {path}: {comparison.summary()}. There is nothing to write")
    used = {name: weights[name] for name in comparison.used}
    model.load_state_dict(used, strict=False)
    return used, comparison


def _certify(
    model: nn.Module, path: str | None, tolerance: float, conversion: Conversion
) -> certificate.Certificate | None:
    if path is None:
        return None
    found = certificate.compare(model, path, tolerance=tolerance, rows=conversion.class_rows)
    found.require()
    return found


def _apply_settings(cfg: DictConfig, conversion: Conversion, fixed: Sequence[str]) -> list[str]:
    """Set in ``cfg`` what the source's models compute otherwise, and say what was set."""
    settings = _settings_of(conversion)
    texts = [f"{key}={value}" for key, value in settings.items() if key not in fixed and _differs(cfg, key, value)]
    apply_overrides(cfg, texts)
    return texts


def _differs(cfg: DictConfig, key: str, value: Any) -> bool:
    """Whether the part that ``key`` belongs to computes with something else; no if it takes no such argument."""
    return (own := _argument(cfg, key)) is not _NO_ARGUMENT and own != value


def _argument(cfg: DictConfig, key: str) -> Any:
    """What an argument of a part is: as spelt in the config, else its default."""
    parent, _, name = key.rpartition(".")
    part = OmegaConf.select(cfg, parent)
    if not isinstance(part, DictConfig):
        return _NO_ARGUMENT
    if name in part:
        return part[name]
    taken = parameters(part) or {}
    return taken[name].default if name in taken else _NO_ARGUMENT


def _settings_of(conversion: Conversion) -> Settings:
    if conversion.origin is None or _is_backbone(conversion):
        return {}
    settings = dict(conversion.settings)
    if count_decoder_layers(conversion.weights) > 1:
        settings[_SHARED_HEADS] = not any(name.startswith("heads.class_heads.1.") for name in conversion.weights)
    return settings


def _notes(cfg: DictConfig, conversion: Conversion, foreign: Mapping[str, Tensor], target: str) -> Iterator[str]:
    if _is_backbone(conversion):
        caffe2 = any(name.endswith("_bn_s") for name in foreign)
        yield (
            "Caffe2's networks take BGR with mean 103.53, 116.28, 123.675 and std 1 (model.pixel_mean, .pixel_std, "
            ".input_format), and stride in the first 1x1 convolution of a block, where ours have it in the 3x3: "
            "weights to start from, not the same network"
            if caffe2
            else "the config's model.pixel_mean and model.pixel_std have to be those the network was trained with"
        )
    if conversion.origin is not None and target == OURS:
        yield from conversion.origin.notes
    if target != OURS:
        for key, value in find_format(conversion.weights, target).settings.items():
            if _differs(cfg, key, value):
                own = _argument(cfg, key)
                cure = "nothing sets it there" if key == MASK_MEMORY else "set it there"
                yield f"{target} computes with {key.rpartition('.')[2]}={value}, this model with {own}: {cure}"


def _description(cfg: DictConfig, file: _File) -> dict[str, Any] | None:
    """What the written file says about itself; a backbone alone is nobody's model."""
    if _is_backbone(file.conversion):
        return None
    return describe(cfg, file.class_names or _class_names(cfg, file.conversion))


def _class_names(cfg: DictConfig, conversion: Conversion) -> list[str] | None:
    """COCO's if the rows are those of COCO, else those of the config's dataset if there are as many."""
    if conversion.class_rows == COCO_IDS:
        return [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    dataset = names if isinstance(names, str) else next(iter(names or ()), None)
    classes = MetadataCatalog.get(dataset).get("thing_classes") if dataset in MetadataCatalog.list() else None
    return list(classes) if classes and len(classes) == cfg.model.get("num_classes") else None
