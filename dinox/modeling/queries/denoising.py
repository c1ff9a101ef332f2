"""Denoising queries: noised ground truth that the decoder learns to restore (DN-DETR, section 4; DINO, section 3.3).

A group's queries are laid out as G sub-groups x P halves x M slots: P = 1 for DN-DETR (positives only), P = 2 for the
contrastive form (positives, then negatives); object j of an image sits at slot j of every half. Images with fewer
objects leave padded slots at the end of each half: content 0, anchor in the middle of the image. Those attend and are
trained as background like negatives, as in detrex and DINO's code; DN-DETR's authors leave them out of the loss.

Legend: B images, C = G * P copies of the ground truth, M slots, D channels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinox.layers import CenterShiftAndScale, ContrastiveBoxNoise, SameRangeBoxNoise, draw_box_noise
from dinox.modeling.queries.placement import AnchorBoxes
from dinox.structures import BACKGROUND, MATCHING, ClassRows, QueryContext, QueryGroup, inverse_sigmoid
from dinox.utils.distributed import max_across_ranks
from dinox.utils.image_random import draw_uniform
from dinox.utils.ranges import check_range

logger = logging.getLogger(__name__)

GROUP_NAME = "denoising"


@dataclass(frozen=True)
class DenoisingNoise:
    """The random numbers of one step, one entry per noised object.

    flip: (B, C, M) uniform in [0, 1), compared with the flip probability. new_labels: (B, C, M) classes to flip to.
    sign, magnitude: (B, C, M, 4), those of ``BoxNoiseDraws``.
    """

    flip: Tensor
    new_labels: Tensor
    sign: Tensor
    magnitude: Tensor


class LabelEmbedding(nn.Module):
    """Class labels -> content queries.

    ``unknown_class`` adds a row for "no known class", ``indicator`` a last channel that is 1 ("denoising query"); both
    are DN-DETR's (section 4.2, figure 5), DINO has neither.
    """

    def __init__(self, *, num_classes: int, embed_dim: int, unknown_class: bool = False, indicator: bool = False):
        super().__init__()
        self.table = nn.Embedding(num_classes + int(unknown_class), embed_dim - int(indicator))
        self.unknown_class, self.indicator = unknown_class, indicator

    def class_rows(self) -> dict[str, ClassRows]:
        return {"table.weight": ClassRows(others=int(self.unknown_class))}

    def forward(self, labels: Tensor) -> Tensor:
        """(...) int64 -> (..., D)."""
        content = self.table(labels)
        return nn.functional.pad(content, (0, 1), value=1.0) if self.indicator else content

    def unknown(self) -> Tensor:
        """(D,) of "no known class", the indicator 0. Raises ValueError without such a row."""
        if not self.unknown_class:
            raise ValueError("there is no embedding of an unknown class: give LabelEmbedding unknown_class=True")
        content = self.table.weight[-1]
        return nn.functional.pad(content, (0, 1)) if self.indicator else content


class FixedGroups:
    """Always the same number of sub-groups (DN-DETR: 5, with deformable encoder only: 10)."""

    def __init__(self, *, num_groups: int = 5):
        if num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {num_groups}")
        self.fewest = num_groups

    def __call__(self, max_objects: int) -> int:
        return self.fewest


class DynamicGroups:
    """As many sub-groups as ``num_queries`` positives allow, at least one (DINO, appendix D.1)."""

    fewest = 1

    def __init__(self, *, num_queries: int = 100):
        self.num_queries = num_queries

    def __call__(self, max_objects: int) -> int:
        return max(1, self.num_queries // max(max_objects, 1))


class DenoisingQueries(nn.Module):
    """Makes the query group "denoising" in training. At inference it exists where objects are known: their boxes and
    labels as they are, once; images that know fewer than others get padded slots, which nobody attends to.

    label_embedding: labels -> content; None: the one that all query groups share. box_noise: ``CenterShiftAndScale``,
    ``ContrastiveBoxNoise`` or ``SameRangeBoxNoise``. groups: ``FixedGroups`` or ``DynamicGroups``. flip_probability: of
    every label, to a class drawn uniformly (DN-DETR: gamma = 0.2; DINO's "label noise ratio" 0.5 is a probability of
    0.25 in the released code). max_queries: hard cap of the group; images with more objects than fit are subsampled,
    with one warning.
    placement: from content and noised boxes to what the decoder takes (:mod:`dinox.modeling.queries.placement`); None:
    the boxes are the anchors.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        label_embedding: nn.Module | None,
        box_noise: CenterShiftAndScale | ContrastiveBoxNoise | SameRangeBoxNoise,
        groups: FixedGroups | DynamicGroups,
        flip_probability: float = 0.25,
        max_queries: int = 400,
        placement: nn.Module | None = None,
    ):
        super().__init__()
        check_range("flip_probability", flip_probability, 0, 1)
        self.num_classes = num_classes
        self.label_embedding = label_embedding
        self.box_noise = box_noise
        self.groups = groups
        self.flip_probability = flip_probability
        self.max_queries = max_queries
        self.placement = AnchorBoxes() if placement is None else placement
        self.max_objects = max_queries // (groups.fewest * box_noise.halves)
        if self.max_objects == 0:
            raise ValueError(
                f"max_queries = {max_queries} has no room for {groups.fewest} denoising groups of one object "
                f"({box_noise.halves} queries each); raise max_queries or lower the number of groups"
            )
        self._warned = False

    def forward(self, context: QueryContext) -> QueryGroup | None:
        if context.targets is None:
            return self._known_objects(context)
        batch = context.targets.batch
        slots = batch.max_of_ranks  # M, the same in all parts of a batch and on all ranks, and so G
        if slots is None:
            slots = max_across_ranks(batch.max_count)
        objects = self._fill_slots(context, min(slots, self.max_objects))
        num_groups = self._count_groups(objects.shape[1])
        noise = self.sample_noise(objects.shape, num_groups * self.box_noise.halves, context)
        queries = self.placement(*self._noised_queries(context, objects, noise))
        return QueryGroup(
            GROUP_NAME,
            queries.content,
            queries.anchors,
            queries.positions,
            sees=frozenset({MATCHING}),
            subgroup_size=objects.shape[1] * self.box_noise.halves,
            target_index=self._positive_targets(objects, num_groups),
            batch_positives=num_groups * sum(min(count, objects.shape[1]) for count in batch.counts),
        )

    def _known_objects(self, context: QueryContext) -> QueryGroup | None:
        known = context.known
        if known is None or known.max_count == 0:
            return None
        content = torch.where(known.valid[..., None], label_embedding_of(self, context)(known.labels), 0.0)
        boxes = inverse_sigmoid(known.boxes).sigmoid()  # saturated as in training
        queries = self.placement(content, torch.where(known.valid[..., None], boxes, 0.5))
        return QueryGroup(
            GROUP_NAME,
            queries.content,
            queries.anchors,
            queries.positions,
            sees=frozenset({MATCHING}),
            padding_mask=~known.valid,
        )

    def sample_noise(self, shape: tuple[int, int], copies: int, context: QueryContext) -> DenoisingNoise:
        """shape: (B, M). The one place where this module draws random numbers; replace it to inject recorded ones."""
        shape = (shape[0], copies, shape[1])
        if context.generator is None and context.seeds is not None:
            return self._noise_of_images(shape, context)
        draw = {"generator": context.generator, "device": context.targets.valid.device}
        return DenoisingNoise(
            flip=torch.rand(shape, **draw),
            new_labels=torch.randint(self.num_classes, shape, **draw),
            **vars(draw_box_noise(shape, **draw)),
        )

    def _noise_of_images(self, shape: tuple[int, int, int], context: QueryContext) -> DenoisingNoise:
        """Drawn copy after copy of an image's own objects: more copies or more slots change none of its numbers."""
        uniform = draw_uniform(
            (*shape, 10),
            purpose="denoising",
            device=context.targets.valid.device,
            generator=None,
            seeds=context.seeds,
            counts=[min(count, shape[2]) for count in context.targets.counts],
            dim=2,
        )
        flip, new_label, sign, magnitude = uniform.split([1, 1, 4, 4], dim=-1)
        # A product that is rounded up to the number of classes is none of them.
        new_labels = (new_label[..., 0] * self.num_classes).long().clamp(max=self.num_classes - 1)
        return DenoisingNoise(flip[..., 0], new_labels, sign=torch.where(sign < 0.5, -1.0, 1.0), magnitude=magnitude)

    def _fill_slots(self, context: QueryContext, slots: int) -> Tensor:
        """(B, M) int64: which object of the image sits in each slot, -1 = padded slot."""
        targets = context.targets
        device, width = targets.valid.device, targets.valid.shape[1]
        slot = torch.arange(slots, device=device)
        if targets.max_count > self.max_objects:
            self._warn_once(targets.max_count)
            keys = draw_uniform(
                targets.valid.shape,
                purpose="choice of objects",
                device=device,
                generator=context.generator,
                seeds=context.seeds,
                counts=targets.counts,
            )
            shuffled = keys.masked_fill(~targets.valid, 2.0).argsort(dim=1)  # a random order, real objects first
            order = shuffled[:, :slots].sort(dim=1).values
        else:
            order = slot.clamp(max=width - 1).expand(len(targets.counts), -1)
        filled = targets.valid.gather(1, order) & (slot < width)
        return torch.where(filled, order, BACKGROUND)

    def _count_groups(self, slots: int) -> int:
        """Sub-groups for M slots; no more than the cap allows."""
        most = self.max_queries // max(slots * self.box_noise.halves, 1)
        return max(self.groups.fewest, min(self.groups(slots), most))

    def _noised_queries(self, context: QueryContext, objects: Tensor, noise: DenoisingNoise) -> tuple[Tensor, Tensor]:
        """Content (B, C * M, D) and boxes (B, C * M, 4)."""
        targets, embed = context.targets, label_embedding_of(self, context)
        filled = (objects != BACKGROUND)[:, None, :, None]  # (B, 1, M, 1)
        images = torch.arange(len(objects), device=objects.device)[:, None]
        index = objects.clamp(min=0)
        labels = targets.labels[images, index][:, None]  # (B, 1, M)
        labels = torch.where(noise.flip < self.flip_probability, noise.new_labels, labels)  # (B, C, M)
        content = torch.where(filled, embed(labels), 0.0)
        noised = self.box_noise(targets.boxes[images, index][:, None], noise)
        # Through logits and back: boxes saturate where the authors' do, and a padded slot (logit 0) is the centre.
        boxes = torch.where(filled, inverse_sigmoid(noised), 0.0).sigmoid()
        return content.flatten(1, 2), boxes.flatten(1, 2)

    def _positive_targets(self, objects: Tensor, num_groups: int) -> Tensor:
        """(B, C * M) target of every query: its object for positives, background for negatives and padded slots."""
        halves = [objects] + [torch.full_like(objects, BACKGROUND)] * (self.box_noise.halves - 1)
        return torch.cat(halves * num_groups, dim=1)

    def _warn_once(self, max_objects: int) -> None:
        if not self._warned:
            logger.warning(
                "an image has %d objects, but %d denoising queries have room for %d: denoising uses a random choice of "
                "them (matching uses all). Raise max_queries of the denoising group to change that. Said once.",
                max_objects,
                self.max_queries,
                self.max_objects,
            )
            self._warned = True


def label_embedding_of(maker: nn.Module, context: QueryContext) -> Callable[[Tensor], Tensor]:
    """The maker's own label embedding, or else the one that all query groups share."""
    own = getattr(maker, "label_embedding", None)
    if own is None and context.label_embedding is None:
        raise ValueError(
            f"{type(maker).__name__} needs a label embedding: give it one, or set model.query_groups.label_embedding"
        )
    return context.label_embedding if own is None else own
