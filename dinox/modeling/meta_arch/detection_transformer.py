"""The one detection transformer; every paper is a choice of its parts.

Legend: B images, N queries, K classes, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from dinox.modeling.meta_arch.from_yaml import arguments_from_yaml
from dinox.modeling.meta_arch.known_inputs import KnownInputs
from dinox.modeling.meta_arch.predictions import Predictions, detect, in_output_frames
from dinox.structures import (
    ANY_CLASS,
    MATCHING,
    FeaturePyramid,
    KnownClasses,
    Memory,
    PredictionSet,
    Proposals,
    QueryContext,
    RawPredictions,
    Targets,
)
from dinox.structures.memory import count_valid_cells


@META_ARCH_REGISTRY.register()
class DetectionTransformer(nn.Module):
    """features -> memory -> query groups -> decoder -> losses (training) or detections (inference).

    Args:
        backbone: a detectron2 ``Backbone`` whose maps all have ``embed_dim`` channels (see ``ChannelMapper``).
        memory_builder: flattens the maps into a :class:`~dinox.structures.Memory`.
        encoder: refines the memory.
        query_selection: ranks the memory's tokens as proposals; None: queries are static.
        query_groups: makes the query groups, "matching" among them.
        decoder: refines the queries.
        heads: classes and boxes of the decoder's states.
        criterion: predictions and targets to losses; None: a model for inference only.
        postprocess: raw predictions to ``Instances``.
        num_classes, num_queries, embed_dim: the numbers that the parts of a config refer to.
        class_names: by class index; None: nobody has said them. Known classes can be given by these names.
        pixel_mean, pixel_std: of the channels in ``input_format``, on 0..255.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        memory_builder: nn.Module,
        encoder: nn.Module,
        query_selection: nn.Module | None,
        query_groups: nn.Module,
        decoder: nn.Module,
        heads: nn.Module,
        criterion: nn.Module | None,
        postprocess: Callable[[RawPredictions, list[tuple[int, int]]], list[Instances]],
        num_classes: int,
        num_queries: int,
        embed_dim: int,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        input_format: str = "RGB",
        class_names: Sequence[str] | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.memory_builder = memory_builder
        self.encoder = encoder
        self.query_selection = query_selection
        self.query_groups = query_groups
        self.decoder = decoder
        self.heads = heads
        self.criterion = criterion
        self.postprocess = postprocess
        self.num_classes, self.num_queries, self.embed_dim = num_classes, num_queries, embed_dim
        self.input_format = input_format
        self.class_names = class_names
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """For detectron2's ``build_model(cfg)``; see ``dinox.add_dinox_config``."""
        return arguments_from_yaml(cls, cfg)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """detectron2's contract.

        Args:
            batched_inputs: dicts with ``image``, (3, H, W) in ``input_format`` order, 0..255; optionally ``height`` and
                ``width`` of the output; ``instances`` with ``gt_boxes`` (absolute xyxy in the frame of ``image``) and
                ``gt_classes`` in training. At inference, ``content_size`` is (height, width) of what is no padding in
                ``image``, if it was padded to the right and below. Of models that were trained for it: ``known_boxes``
                (n, 4), in the same frame, with ``known_labels`` (n,) are objects that help to detect the others, and
                ``known_classes`` are all classes that are there (DN-DETR, section 5.7). Other keys are ignored.

        Returns:
            in training, a dict of weighted scalar losses; else a list of ``{"instances": Instances}`` with
            ``pred_boxes``, ``scores``, ``pred_classes``; those before NMS beside them, as ``BEFORE_NMS``, where the
            post-processing has one.
        """
        if not self.training:
            return self.inference(batched_inputs)
        if self.criterion is None:
            raise ValueError("this model has no criterion, so it can only detect: call model.eval(), or give it one")
        targets = self.prepare_targets(batched_inputs)
        return self.criterion(self.predict(batched_inputs, targets).for_losses(), targets)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True) -> list[Any]:
        """Detections; ``do_postprocess`` rescales them to ``height`` and ``width``, clips, and drops empty boxes."""
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        detections = detect(self.postprocess, self.raw_predictions(batched_inputs), sizes)
        if not do_postprocess:
            return detections["instances"]
        return in_output_frames(detections, batched_inputs)

    def raw_predictions(self, batched_inputs: list[dict[str, Any]]) -> RawPredictions:
        """Predictions of the matching group before post-processing, in the current mode; needs no ground truth."""
        return self.predict(batched_inputs).of_matching()

    def predict(
        self,
        batched_inputs: list[dict[str, Any]],
        targets: Targets | None = None,
        generator: torch.Generator | None = None,
    ) -> Predictions:
        """Everything from images to the predictions of all groups.

        Groups made from ground truth need ``targets``; ``generator``, on the model's device, draws their noise. Without
        ``targets``, what the inputs say is known is used.
        """
        images, known = self.preprocess_image(batched_inputs), {}
        if targets is None:
            known = self.prepare_known(batched_inputs)
        memory = self.encode(images)
        proposals = None if self.query_selection is None else self.query_selection(memory)
        return self.decode(memory, proposals, targets, generator, **known)

    def decode(
        self,
        memory: Memory,
        proposals: Proposals | None,
        targets: Targets | None = None,
        generator: torch.Generator | None = None,
        known: Targets | None = None,
        known_classes: KnownClasses | None = None,
    ) -> Predictions:
        """From the encoder's memory and proposals to the predictions of all groups."""
        groups = self.query_groups(
            QueryContext(memory, proposals, targets, generator, known=known, known_classes=known_classes)
        )
        decoded = self.decoder(groups, memory, self.heads.boxes)
        logits = torch.stack([self.heads.logits(i, states) for i, states in enumerate(decoded.states)])
        boxes = torch.stack(
            [
                self.heads.boxes(i, states, anchors)
                for i, (states, anchors) in enumerate(zip(decoded.states, decoded.anchors, strict=True))
            ]
        )
        sizes = [group.size for group in groups]
        sets = {
            group.name: PredictionSet(
                group.name,
                _of_only_class(group_logits, group.only_class, self.num_classes),
                group_boxes,
                group.target_index,
                group.repeats,
                group.target_view,
                group.subgroup_size,
            )
            for group, group_logits, group_boxes in zip(
                groups, logits.split(sizes, 2), boxes.split(sizes, 2), strict=True
            )
        }
        matching = next(group for group in groups if group.name == MATCHING)
        return Predictions(sets, proposals, matching.padding_mask, matching.anchors)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
        """Normalised images (3, H, W) on the model's device, not padded yet."""
        channels = len(self.pixel_mean)
        for name, x in zip(_names(batched_inputs), batched_inputs, strict=True):
            if x["image"].dim() != 3 or len(x["image"]) != channels:
                got = tuple(x["image"].shape)
                raise ValueError(f"{name}: expected an image of shape ({channels}, height, width), got {got}")
        return [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]

    def prepare_targets(self, batched_inputs: list[dict[str, Any]]) -> Targets:
        names = _names(batched_inputs)
        missing = [name for name, x in zip(names, batched_inputs, strict=True) if "instances" not in x]
        if missing:
            raise ValueError(
                f"training needs `instances` with gt_boxes and gt_classes in every input, missing for {missing[0]} "
                f"({len(missing)} of {len(names)}); call model.eval() for inference"
            )
        instances = [x["instances"] for x in batched_inputs]
        return Targets.from_instances(instances, num_classes=self.num_classes, names=names, device=self.device)

    def prepare_known(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """What the inputs say is known, as ``known`` and ``known_classes`` of ``decode``."""
        names = _names(batched_inputs)
        known = KnownInputs(num_classes=self.num_classes, class_names=self.class_names, device=self.device)
        return {
            "known": known.objects(batched_inputs, names),
            "known_classes": known.classes(batched_inputs, names),
        }

    def encode(self, images: list[Tensor]) -> Memory:
        """Images (3, H, W) of any sizes to the encoder's memory."""
        pyramid = self._padded_pyramid(images) if self.training else self._unpadded_pyramid(images)
        return self.encoder(self.memory_builder(pyramid))

    def encode_batch(self, images: Tensor) -> Memory:
        """Normalised images (B, 3, H, W) without padding to the encoder's memory."""
        pyramid = FeaturePyramid.unpadded(list(self.backbone(images).values()))
        return self.encoder(self.memory_builder(pyramid))

    def _padded_pyramid(self, images: list[Tensor]) -> FeaturePyramid:
        """All images in one padded batch through the backbone, as in the papers' training."""
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        maps = list(self.backbone(torch.stack([_pad(image, height, width) for image in images])).values())
        heights, widths = torch.tensor([image.shape[1:] for image in images]).unbind(1)
        valid = [
            torch.stack(
                [count_valid_cells(heights, height, m.shape[2]), count_valid_cells(widths, width, m.shape[3])], dim=-1
            )
            for m in maps
        ]
        return FeaturePyramid(maps, torch.stack(valid, dim=1).tolist())

    def _unpadded_pyramid(self, images: list[Tensor]) -> FeaturePyramid:
        """Every image through the backbone without padding (equal sizes together); the maps are padded afterwards.

        Zero padding is not neutral to frozen-norm shifts and group norms, so that padded images would depend on their
        batch.
        """
        maps: list[list[Tensor]] = [[] for _ in images]  # per image, L x (D, h, w)
        by_size = sorted(range(len(images)), key=lambda i: images[i].shape)
        for _, same_size in groupby(by_size, key=lambda i: images[i].shape):
            indices = list(same_size)
            batch = self.backbone(torch.stack([images[i] for i in indices])).values()
            for row, i in enumerate(indices):
                maps[i] = [m[row] for m in batch]
        valid = [[(m.shape[1], m.shape[2]) for m in levels] for levels in maps]  # B x L x (h, w)
        padded = []
        for level, sizes in enumerate(zip(*valid, strict=True)):
            height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
            padded.append(torch.stack([_pad(levels[level], height, width) for levels in maps]))
        return FeaturePyramid(padded, valid)


def _of_only_class(logits: Tensor, only_class: Tensor | None, num_classes: int) -> Tensor:
    """logits: (A, B, N, K), of other classes than the one that a query may detect as low as they can be."""
    if only_class is None:
        return logits
    classes = torch.arange(logits.shape[-1], device=logits.device)  # a softmax has one more: no object
    only = only_class[..., None]
    excluded = (only != ANY_CLASS) & (classes != only) & (classes < num_classes)
    return logits.masked_fill(excluded, torch.finfo(logits.dtype).min)


def _names(batched_inputs: list[dict[str, Any]]) -> list[str]:
    """What errors call the images."""
    return [str(x.get("file_name", f"image {i} of the batch")) for i, x in enumerate(batched_inputs)]


def _pad(image: Tensor, height: int, width: int) -> Tensor:
    """Zeros to the right and below: (C, h, w) -> (C, height, width)."""
    return F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
