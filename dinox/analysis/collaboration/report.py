"""Everything ``dinox analyze collaboration`` tells about models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from dinox.analysis.collaboration.conflicts import ConflictSum, mean_to_others
from dinox.analysis.collaboration.discrimination import Curve, CurveSum
from dinox.analysis.collaboration.maps import as_distribution
from dinox.analysis.collaboration.measuring import DETR, ImageCollaboration, measure_image, prepare
from dinox.analysis.collaboration.positives import GapSum, QueryGaps
from dinox.checkpoint import load_weights
from dinox.checkpoint.building import build_model
from dinox.data.checks import check_data, dataset_names
from dinox.data.class_numbering import number_like_checkpoint
from dinox.evaluation.matching import GroundTruthImages, require_matcher


@dataclass(frozen=True)
class NamedModel:
    """What is to be analyzed. name: in tables and pictures. origin: of the config, for errors. class_names: of the
    checkpoint, by class index."""

    name: str
    checkpoint: str
    cfg: DictConfig
    origin: str
    class_names: Sequence[str] | None = None


@dataclass(frozen=True)
class Conflicts:
    """heads: in the order of rows and columns. distances: S_ij. means: S_i. images: that each distance is a mean of."""

    heads: tuple[str, ...]
    distances: torch.Tensor
    means: torch.Tensor
    images: torch.Tensor

    @property
    def overall(self) -> float:
        """The mean over all pairs of different heads (first version of the paper, appendix A); NaN without any."""
        return float(self.means.nanmean())


@dataclass(frozen=True)
class ModelCollaboration:
    """foreground: what it is the union of. encoder, attention: curves; attention is None where the decoder's cannot be
    watched. conflicts: None for a model with one head. positives_per_object: by head. gaps: by auxiliary head, those
    that have positives. notes: one sentence for each part that does not apply. pictures: of the images that are drawn,
    by their index.
    """

    name: str
    checkpoint: str
    images: int
    objects: int
    foreground: Literal["boxes", "masks"]
    encoder: Curve | None
    attention: Curve | None
    conflicts: Conflicts | None
    positives_per_object: dict[str, float]
    gaps: dict[str, QueryGaps]
    notes: tuple[str, ...]
    pictures: dict[int, ImageCollaboration]

    @property
    def auxiliary_heads(self) -> list[str]:
        return [head for head in self.positives_per_object if head != DETR]


@dataclass(frozen=True)
class CollaborationReport:
    models: Sequence[ModelCollaboration]
    images: GroundTruthImages
    datasets: Sequence[str]
    input_format: str
    device: str


def analyze_collaboration(
    models: Sequence[NamedModel],
    *,
    device: torch.device,
    num_images: int | None = None,
    num_pictures: int = 0,
    seed: int = 0,
    ema: bool = True,
) -> CollaborationReport:
    """Run every model on the test images of its config, one image at a time, with progress bars.

    Args:
        models: at least one; their test sets have to be the same images.
        num_images: so many, evenly spread over the test set; None: all.
        num_pictures: images whose maps are kept to be drawn, evenly spread over those with objects.
        seed: of what heads sample at random; an image has the same samples in every run.
        ema: of checkpoints that hold both, take the averaged weights, not those of the last step.

    Raises ValueError (of various kinds) for a config, a dataset or a checkpoint that does not fit.
    """
    if num_images is not None and num_images < 1:
        raise ValueError(f"--images: expected a number of at least 1, got {num_images}")
    analyzed, first, drawn = [], None, set()
    for model in models:
        images, built = _images_and_model(model, num_images)
        if first is None:
            first, drawn = images, _evenly(images, num_pictures)
        _check_same_images(first, images, models[0], model)
        missing = _load(built, model, ema=ema)
        prepare(built.to(device))
        analyzed.append(_measure(model, built, images, drawn, seed, missing))
        del built
    return CollaborationReport(
        models=analyzed,
        images=first,
        datasets=dataset_names(models[0].cfg.dataloader.test),
        input_format=models[0].cfg.model.get("input_format", "RGB"),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def _images_and_model(model: NamedModel, num_images: int | None) -> tuple[GroundTruthImages, nn.Module]:
    cfg, origin = model.cfg, model.origin
    if "dataloader" not in cfg or cfg.dataloader.get("test") is None:
        raise ValueError(f"{origin} has no dataloader.test, whose images are measured on: give another --config-file")
    built = build_model(cfg, origin=origin)
    require_matcher(built, origin=origin)
    check_data(cfg, training=False)
    if model.class_names is not None:
        for name in dataset_names(cfg.dataloader.test):
            number_like_checkpoint(name, model.class_names, checkpoint=model.checkpoint)
    return GroundTruthImages.of_test_set(cfg, num_images=num_images), built


def _check_same_images(
    first: GroundTruthImages, images: GroundTruthImages, first_model: NamedModel, model: NamedModel
) -> None:
    if first.names != images.names:
        raise ValueError(
            f"{model.origin}: dataloader.test: expected the {len(first)} images of {first_model.origin}, got "
            f"{len(images)} others: models are compared on the same images. Give both the same test set, as "
            "dataloader.test.dataset.names=..."
        )


def _load(built: nn.Module, model: NamedModel, *, ema: bool) -> list[str]:
    """Returns notes. Heads that the file has no weights for say nothing of the model: they are left out."""
    report = load_weights(built, model.checkpoint, purpose="evaluate", ema=ema)
    if any(name.startswith("auxiliary_heads.") for name in report.training_only):
        built.auxiliary_heads = None
        return ["The checkpoint has no weights of its auxiliary heads: they are left out."]
    return []


def _evenly(images: GroundTruthImages, number: int) -> set[int]:
    """Indices of images with objects, evenly spread."""
    candidates = [
        i
        for i, record in enumerate(images.records)
        if any(annotation.get("iscrowd", 0) == 0 for annotation in record.get("annotations", ()))
    ]
    number = min(number, len(candidates))
    return {candidates[i * len(candidates) // number] for i in range(number)}


def _measure(
    model: NamedModel,
    built: nn.Module,
    images: GroundTruthImages,
    drawn: set[int],
    seed: int,
    notes: Sequence[str],
) -> ModelCollaboration:
    sums = _Sums(heads=[] if built.auxiliary_heads is None else list(built.auxiliary_heads))
    pictures = {}
    for i, (inputs,) in enumerate(_with_progress(images.batches(), model.name)):
        generator = torch.Generator(built.device).manual_seed(seed + i)
        found = measure_image(built, inputs, generator)
        sums.add(found)
        if i in drawn:
            pictures[i] = found
    return sums.result(model, pictures, notes)


def _with_progress(batches: Iterable[list[dict]], name: str) -> Iterable[list[dict]]:
    return tqdm(batches, desc=name, unit="image", leave=False, disable=None)  # None: off where there is no terminal


class _Sums:
    """Of one model, over images."""

    def __init__(self, *, heads: Sequence[str]) -> None:
        self.heads = list(heads)
        self.encoder, self.attention = CurveSum(), CurveSum()
        self.conflicts = ConflictSum([DETR, *heads])
        self.gaps = {head: GapSum() for head in heads}
        self.positives = dict.fromkeys([DETR, *heads], 0)
        self.images = self.objects = 0
        self.foreground: Literal["boxes", "masks"] = "boxes"
        self.with_anchors = True
        self.explained: set[str] = set()  # heads that have had a class activation map

    def add(self, image: ImageCollaboration) -> None:
        self.images += 1
        self.foreground = image.foreground_of
        self.objects += image.num_objects
        foreground = image.foreground.to(image.encoder.device)
        self.encoder.add(image.encoder, foreground)
        if image.attention is not None:
            self.attention.add(image.attention, foreground)
        if self.heads:
            self.conflicts.add({head: as_distribution(cam) for head, cam in image.cams.items()})
        self.explained |= set(image.cams)
        self.positives[DETR] += image.num_matched
        self.with_anchors = image.queries is not None
        for head, positives in image.positives.items():
            self.positives[head] += len(positives.centers)
            if image.queries is not None:
                self.gaps[head].add(image.queries, positives)

    def result(
        self, model: NamedModel, pictures: dict[int, ImageCollaboration], notes: Sequence[str]
    ) -> ModelCollaboration:
        conflicts = None
        if self.heads:
            matrix = self.conflicts.matrix()
            conflicts = Conflicts(self.conflicts.heads, matrix, mean_to_others(matrix), self.conflicts.images)
        gaps = {head: each.gaps() for head, each in self.gaps.items()}
        attention = self.attention.curve()
        return ModelCollaboration(
            name=model.name,
            checkpoint=model.checkpoint,
            images=self.images,
            objects=self.objects,
            foreground=self.foreground,
            encoder=self.encoder.curve(),
            attention=attention,
            conflicts=conflicts,
            positives_per_object={head: count / max(self.objects, 1) for head, count in self.positives.items()},
            gaps={head: each for head, each in gaps.items() if each is not None},
            notes=(*notes, *self._notes(attention)),
            pictures=pictures,
        )

    def _notes(self, attention: Curve | None) -> list[str]:
        notes = []
        if not self.heads:
            notes.append("No auxiliary heads: no distances between heads, and none to customised queries.")
        silent = [head for head in self.positives if self.positives[head] and head not in self.explained]
        if silent:
            notes.append(f"No class logits are known of {', '.join(silent)}: no class activation maps.")
        without = [head for head in self.heads if not self.positives[head]]
        if without:
            notes.append(f"No positives of {', '.join(without)} in these images: no class activation maps.")
        if attention is None:
            notes.append("The decoder's attention to the memory is of an unknown kind: no maps and no curve of it.")
        if self.heads and not self.with_anchors:
            notes.append("The decoder's queries have no anchors: no distances to customised queries.")
        return notes
