"""The one detection transformer; every paper is a choice of its parts.

Legend: B images, N queries, K classes, D channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn

from dinox.modeling.meta_arch.collaboration import join_heads, require_fields, without_training_parts
from dinox.modeling.meta_arch.from_yaml import arguments_from_yaml
from dinox.modeling.meta_arch.known_inputs import KnownInputs
from dinox.modeling.meta_arch.predictions import Predictions, detect, in_output_frames
from dinox.modeling.meta_arch.pyramids import padded_pyramid, unpadded_pyramid
from dinox.structures import (
    ANY_CLASS,
    MATCHING,
    FeaturePyramid,
    HeadOutput,
    KnownClasses,
    Memory,
    PredictionSet,
    Proposals,
    QueryContext,
    RawPredictions,
    Targets,
    WholeBatch,
)
from dinox.structures.whole_batch import NOISE_SEED


@META_ARCH_REGISTRY.register()
class DetectionTransformer(nn.Module):
    """features -> memory -> [auxiliary heads] -> query groups -> decoder -> losses (training) or detections.

    Args:
        backbone: a detectron2 ``Backbone`` whose maps all have ``embed_dim`` channels (see ``ChannelMapper``).
        memory_builder: flattens the maps into a :class:`~dinox.structures.Memory`.
        encoder: refines the memory.
        query_selection: ranks the memory's tokens as proposals; None: queries are static.
        auxiliary_heads: one-to-many heads that teach the encoder in training (``AuxiliaryHeads``; Co-DETR); None: none.
        query_groups: makes the query groups, "matching" among them.
        decoder: refines the queries.
        heads: classes and boxes of the decoder's states.
        criterion: predictions and targets to losses; None: a model for inference only.
        postprocess: raw predictions to ``Instances``.
        num_classes, num_queries, embed_dim: the numbers that the parts of a config refer to.
        class_names: by class index; None: nobody has said them. Known classes can be given by these names.
        pixel_mean, pixel_std: of the channels in ``input_format``, on 0..255.
    """

    losses_add_up = True
    """Of the parts of a batch that are told about the whole batch (see :mod:`dinox.structures.whole_batch`)."""

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
        auxiliary_heads: nn.Module | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.memory_builder = memory_builder
        self.encoder = encoder
        self.query_selection = query_selection
        self.auxiliary_heads = auxiliary_heads
        self.query_groups = query_groups
        self.decoder = decoder
        self.heads = heads
        self.criterion = criterion
        self.postprocess = postprocess
        self.num_classes, self.num_queries, self.embed_dim = num_classes, num_queries, embed_dim
        self.input_format = input_format
        self.class_names = class_names
        join_heads(auxiliary_heads, backbone, query_groups)
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
                ``known_classes`` are all classes that are there (DN-DETR, section 5.7). What a trainer may add is in
                :mod:`dinox.structures.whole_batch`. Other keys are ignored.

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
        predictions = self.predict(batched_inputs, targets)
        return {**self.criterion(predictions.for_losses(), targets), **predictions.auxiliary_losses(targets.share)}

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True) -> list[Any]:
        """Detections; ``do_postprocess`` rescales them to ``height`` and ``width``, clips, and drops empty boxes."""
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        if self.auxiliary_heads is not None and self.auxiliary_heads.detect_with is not None:
            memory = self.encode(self.preprocess_image(batched_inputs))
            detections = {"instances": self.auxiliary_heads.detect(memory, sizes)}
        else:
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

        Groups made from ground truth need ``targets``, and so do auxiliary heads, with the ``instances`` of the inputs;
        ``generator``, on the model's device, draws their noise; None: the images' own do, or torch's if they have none.
        Without ``targets``, what the inputs say is known is used.
        """
        images, more = self.preprocess_image(batched_inputs), {}
        if targets is None:
            more = self.prepare_known(batched_inputs)
        memory = self.encode(images)
        proposals = None if self.query_selection is None else self.query_selection(memory)
        if targets is not None and self.auxiliary_heads is not None:
            sizes = [tuple(image.shape[-2:]) for image in images]
            instances = [x["instances"] for x in batched_inputs]
            auxiliary = self.auxiliary_heads(memory, sizes, instances, generator, targets.seeds)
            more = {"auxiliary": auxiliary, "image_sizes": sizes}
        return self.decode(memory, proposals, targets, generator, **more)

    def decode(
        self,
        memory: Memory,
        proposals: Proposals | None,
        targets: Targets | None = None,
        generator: torch.Generator | None = None,
        known: Targets | None = None,
        known_classes: KnownClasses | None = None,
        auxiliary: Mapping[str, HeadOutput] | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Predictions:
        """From the encoder's memory and proposals, and what auxiliary heads made of them, to the predictions of all
        groups.
        """
        groups = self.query_groups(
            QueryContext(
                memory,
                proposals,
                targets,
                generator,
                known=known,
                known_classes=known_classes,
                samples=None if auxiliary is None else {name: each.samples for name, each in auxiliary.items()},
                image_sizes=image_sizes,
            )
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
                padding_mask=group.padding_mask,
                batch_positives=group.batch_positives,
            )
            for group, group_logits, group_boxes in zip(
                groups, logits.split(sizes, 2), boxes.split(sizes, 2), strict=True
            )
        }
        matching = next(group for group in groups if group.name == MATCHING)
        return Predictions(sets, proposals, matching.padding_mask, matching.anchors, auxiliary)

    def drop_training_parts(self) -> None:
        """Delete what detection has no use for: auxiliary heads, but for the one that detects, and query groups that
        exist in training alone. What is left has the parameters of the detector that they were added to. (Denoising
        stays: known objects, and embeddings that groups share, are for detection too.)
        """
        self.auxiliary_heads = without_training_parts(self.auxiliary_heads, self.query_groups)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
        """Normalised images (3, H, W) on the model's device, not padded yet."""
        channels = len(self.pixel_mean)
        for name, x in zip(_names(batched_inputs), batched_inputs, strict=True):
            if x["image"].dim() != 3 or len(x["image"]) != channels:
                got = tuple(x["image"].shape)
                raise ValueError(f"{name}: expected an image of shape ({channels}, height, width), got {got}")
        return [
            (x["image"].to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std for x in batched_inputs
        ]

    def prepare_targets(self, batched_inputs: list[dict[str, Any]]) -> Targets:
        """Ground truth on the model's device. Inputs that are a part of a batch know that of the whole one."""
        whole = WholeBatch.of(batched_inputs)
        targets = dataclasses.replace(self._targets_of(whole.inputs), max_of_ranks=whole.max_objects)
        return targets if whole.inputs is batched_inputs else targets.part(whole.start, len(batched_inputs))

    def _targets_of(self, batched_inputs: Sequence[dict[str, Any]]) -> Targets:
        names = _names(batched_inputs)
        missing = [name for name, x in zip(names, batched_inputs, strict=True) if "instances" not in x]
        if missing:
            raise ValueError(
                f"training needs `instances` with gt_boxes and gt_classes in every input, missing for {missing[0]} "
                f"({len(missing)} of {len(names)}); call model.eval() for inference"
            )
        instances = [x["instances"] for x in batched_inputs]
        require_fields(self.auxiliary_heads, instances, names)
        targets = Targets.from_instances(instances, num_classes=self.num_classes, names=names, device=self.device)
        seeds = tuple(x.get(NOISE_SEED) for x in batched_inputs)
        return targets if None in seeds else dataclasses.replace(targets, seeds=seeds)

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
        pyramid = (padded_pyramid if self.training else unpadded_pyramid)(self.backbone, images)
        return self.encoder(self.memory_builder(pyramid))

    def encode_batch(self, images: Tensor) -> Memory:
        """Normalised images (B, 3, H, W) without padding to the encoder's memory."""
        pyramid = FeaturePyramid.unpadded(list(self.backbone(images).values()))
        return self.encoder(self.memory_builder(pyramid))


def _of_only_class(logits: Tensor, only_class: Tensor | None, num_classes: int) -> Tensor:
    """logits: (A, B, N, K), of other classes than the one that a query may detect as low as they can be."""
    if only_class is None:
        return logits
    classes = torch.arange(logits.shape[-1], device=logits.device)  # a softmax has one more: no object
    only = only_class[..., None]
    excluded = (only != ANY_CLASS) & (classes != only) & (classes < num_classes)
    return logits.masked_fill(excluded, torch.finfo(logits.dtype).min)


def _names(batched_inputs: Sequence[dict[str, Any]]) -> list[str]:
    """What errors call the images."""
    return [str(x.get("file_name", f"image {i} of the batch")) for i, x in enumerate(batched_inputs)]
