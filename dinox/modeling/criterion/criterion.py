"""The one criterion: groups x decoder layers x losses.

Legend: A prediction sets of a group (decoder layers), B images, N queries, K classes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinox.matching import NonFiniteCosts
from dinox.structures import BACKGROUND, MATCHING, MatchedPredictions, PredictionSet, Targets
from dinox.utils.distributed import average_across_ranks, world_size
from dinox.utils.precision import at_least_float32
from dinox.utils.suggest import did_you_mean

logger = logging.getLogger(__name__)

Loss = Callable[[MatchedPredictions], Tensor]

#: How the groups appear in loss keys; any other group appears under its own name.
GROUP_SUFFIXES = {MATCHING: "", "denoising": "_dn", "encoder": "_enc"}


class Criterion(nn.Module):
    """Assigns targets to all predictions at once, and returns weighted losses under stable keys.

    matcher: called as ``matcher([(logits, boxes), ...], targets, repeats=[...])`` for the groups whose targets are not
    known by construction, once for all that learn the same objects; sub-groups are matched by themselves. class_loss,
    bbox_loss, giou_loss: parts of :mod:`dinox.losses`, ``None`` leaves one out; ``LossByGroup`` makes one differ by
    group. weights: by loss ("class", "bbox", "giou"). group_weights: exceptions, by group and loss; or, by group, a
    factor for all of its losses. A group's losses are divided by its positives, but for a loss whose
    ``normaliser(matched)`` returns another divisor, (A,), and not None.

    Divisors are those of the whole batch: averages over ranks, and, if ``targets`` are those of a part of this rank's
    batch, of all of its parts. So the parts' losses add up to the batch's, and the mean over ranks is the loss of one
    process with all images. That is exact where the objects tell the number of positives. Where predictions do
    (positive queries of auxiliary heads, a loss whose own divisor says nothing of the whole batch), it is estimated
    from the part: losses then add up to the average of the parts, each counting by its images.

    Keys: ``loss_class`` for the last decoder layer, ``loss_class_0`` ... for the earlier ones, ``loss_class_enc`` for
    the encoder's proposals, ``loss_class_dn``, ``loss_class_dn_0`` ... for denoising, ``_<group>`` for other groups;
    the same for every batch and rank. All values are already multiplied by their weight.

    Where the matcher refuses costs that are not finite, all losses are NaN, and ``non_finite_costs`` is what it said,
    until the next batch. An error of one rank would leave the others waiting for it; losses reach all of them.
    """

    non_finite_costs: str | None = None

    def __init__(
        self,
        *,
        matcher: Callable[..., list[Tensor]],
        class_loss: Loss | None,
        bbox_loss: Loss | None,
        giou_loss: Loss | None,
        weights: Mapping[str, float],
        group_weights: Mapping[str, Mapping[str, float] | float] | None = None,
    ):
        super().__init__()
        self.matcher = matcher
        parts = {"class": class_loss, "bbox": bbox_loss, "giou": giou_loss}
        self.losses = {name: loss for name, loss in parts.items() if loss is not None}
        self.weights = dict(weights)
        self.group_weights = {
            group: dict(exceptions) if isinstance(exceptions, Mapping) else float(exceptions)
            for group, exceptions in (group_weights or {}).items()
        }
        self._check_weights()

    def forward(self, predictions: Sequence[PredictionSet], targets: Targets) -> dict[str, Tensor]:
        """Returns {key: scalar}. Runs in float32 whatever the autocast dtype."""
        with torch.autocast(targets.boxes.device.type, enabled=False):
            predictions = [_in_float32(p) for p in predictions]
            self._check_groups(predictions)
            losses = {}
            views = self.view(predictions, targets)
            assigned, factor = self._assign_or_nan(predictions, targets)
            for group, seen, target_index in zip(predictions, views, assigned, strict=True):
                matched = MatchedPredictions.pair(
                    group.logits,
                    group.boxes,
                    target_index,
                    seen,
                    group=group.name,
                    padding_mask=group.padding_mask,
                    batch_positives=_batch_positives(group, seen),
                )
                positives = self.count_positives(group, seen)
                for name, loss in self.losses.items():
                    normaliser = _own_normaliser(loss, matched, positives)
                    values = factor * self.weight(group.name, name) * loss(matched) / normaliser  # (A,)
                    losses.update(_by_layer(f"loss_{name}{GROUP_SUFFIXES.get(group.name, '_' + group.name)}", values))
        return losses

    def _assign_or_nan(self, predictions: Sequence[PredictionSet], targets: Targets) -> tuple[list[Tensor], float]:
        """``assign``, and a factor of the losses: 1, or NaN if that cannot be done."""
        before, self.non_finite_costs = self.non_finite_costs, None
        try:
            return self.assign(predictions, targets), 1.0
        except NonFiniteCosts as error:
            self.non_finite_costs = str(error)
            if self.non_finite_costs != before:
                logger.warning("All losses are NaN: %s", error)
        unmatched = [p.boxes.new_full(p.boxes.shape[:3], BACKGROUND, dtype=torch.int64) for p in predictions]
        return unmatched, float("nan")

    def assign(self, predictions: Sequence[PredictionSet], targets: Targets) -> list[Tensor]:
        """target_index (A, B, N) of every group, into what it sees of the targets: known by construction, or from the
        matcher.
        """
        views = self.view(predictions, targets)
        assigned = [
            None if p.target_index is None else p.target_index.expand(len(p.logits), -1, -1) for p in predictions
        ]
        unknown = [i for i, each in enumerate(assigned) if each is None]
        while unknown:
            seen = views[unknown[0]]
            together = [i for i in unknown if views[i] is seen]
            subgroups = [_Subgroups.of(predictions[i]) for i in together]
            matches = self.matcher(
                [(each.logits, each.boxes) for each in subgroups], seen, repeats=[each.repeats for each in subgroups]
            )
            for i, each, match in zip(together, subgroups, matches, strict=True):
                assigned[i] = each.join(match)
            unknown = [i for i in unknown if views[i] is not seen]
        return assigned

    @staticmethod
    def view(predictions: Sequence[PredictionSet], targets: Targets) -> list[Targets]:
        """What every group sees of the targets; the same object for groups with the same view."""
        views = {None: targets}
        for group in predictions:
            if group.target_view not in views:
                views[group.target_view] = group.target_view(targets)
        return [views[group.target_view] for group in predictions]

    @staticmethod
    def count_positives(group: PredictionSet, targets: Targets) -> Tensor:
        """What a group's losses are divided by: its positives in the whole batch, averaged over ranks, at least one on
        all ranks together.

        Where a matcher decides, that is all objects (times ``repeats``), also if there are fewer queries than objects.
        """
        if group.target_index is None:
            positives = targets.batch.valid.sum() * group.repeats
        elif group.batch_positives is not None:
            positives = targets.boxes.new_full((), group.batch_positives)
        else:
            positives = (group.target_index != BACKGROUND).sum() / targets.share
        return average_across_ranks(positives.to(targets.boxes)).clamp(min=1 / world_size())

    def weight(self, group: str, loss: str) -> float:
        exceptions = self.group_weights.get(group, {})
        if isinstance(exceptions, float):
            return exceptions * self.weights[loss]
        return exceptions.get(loss, self.weights[loss])

    def _check_groups(self, predictions: Sequence[PredictionSet]) -> None:
        known = {*GROUP_SUFFIXES, *(p.name for p in predictions)}
        named = {"group_weights": set(self.group_weights)}
        named |= {f"{name}_loss": set(getattr(loss, "groups", ())) for name, loss in self.losses.items()}
        for argument, groups in named.items():
            for group in sorted(groups - known):
                raise ValueError(f"{argument}: there is no query group {group!r}.{did_you_mean(group, known)}")

    def _check_weights(self) -> None:
        missing = [name for name in self.losses if name not in self.weights]
        named = set(self.weights).union(*(each for each in self.group_weights.values() if isinstance(each, dict)))
        unknown = sorted(named - {"class", "bbox", "giou"})
        if missing or unknown:
            raise ValueError(f"loss weights are needed for {sorted(self.losses)}: missing {missing}, unknown {unknown}")


@dataclass(frozen=True)
class _Subgroups:
    """A group's sub-groups as so many more prediction sets, each to be matched by itself.

    logits: (A * G, B, N / G, K). boxes: (A * G, B, N / G, 4). repeats: of the objects in each of them. count: G.
    """

    logits: Tensor
    boxes: Tensor
    repeats: int
    count: int

    @classmethod
    def of(cls, group: PredictionSet) -> _Subgroups:
        if not group.subgroup_size:
            return cls(group.logits, group.boxes, group.repeats, 1)
        count = group.logits.shape[2] // group.subgroup_size
        return cls(cls._apart(group.logits, count), cls._apart(group.boxes, count), group.repeats // count, count)

    @staticmethod
    def _apart(values: Tensor, count: int) -> Tensor:
        """(A, B, N, C) -> (A * G, B, N / G, C)."""
        return values.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)

    def join(self, target_index: Tensor) -> Tensor:
        """(A * G, B, N / G) -> (A, B, N)."""
        return target_index.unflatten(0, (-1, self.count)).transpose(1, 2).flatten(2)


def _batch_positives(group: PredictionSet, targets: Targets) -> int | None:
    """Of the whole batch, in each prediction set; None where that is only known of these images."""
    if group.target_index is not None:
        return group.batch_positives
    if group.padding_mask is not None:
        return None
    subgroups = _Subgroups.of(group)
    queries = subgroups.boxes.shape[2]
    return subgroups.count * sum(min(count * subgroups.repeats, queries) for count in targets.batch.counts)


def _own_normaliser(loss: Loss, matched: MatchedPredictions, positives: Tensor) -> Tensor:
    """What this loss is divided by: (A,) or a scalar, of the whole batch, averaged over ranks."""
    own = loss.normaliser(matched) if hasattr(loss, "normaliser") else None
    if own is None:
        return positives
    return average_across_ranks(own / matched.targets.share).clamp(min=torch.finfo(matched.boxes.dtype).eps)


def _in_float32(predictions: PredictionSet) -> PredictionSet:
    logits, boxes = at_least_float32(predictions.logits), at_least_float32(predictions.boxes)
    return dataclasses.replace(predictions, logits=logits, boxes=boxes)


def _by_layer(key: str, values: Tensor) -> dict[str, Tensor]:
    """The last layer's value under ``key``, those of the earlier layers under ``key_0``, ``key_1``, ..."""
    *earlier, last = values.unbind()
    return {key: last, **{f"{key}_{layer}": value for layer, value in enumerate(earlier)}}
