"""One-to-one label assignment (DETR, equation 1) for all decoder layers and images at once.

Legend: A prediction sets, B images, N queries, K classes, M targets.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from dinox.matching.assignment import solve_assignments
from dinox.structures import Targets
from dinox.utils.precision import at_least_float32

Cost = Callable[[Tensor, Tensor, Targets], Tensor]


class NonFiniteCosts(ValueError):
    """A cost of matching is NaN or infinite."""


class HungarianMatcher:
    """Assigns every object of an image to the one prediction that makes the total cost least.

    ``class_cost``, ``bbox_cost`` and ``giou_cost`` are parts (see :mod:`dinox.matching.costs`); ``None`` leaves one
    out. With more objects than queries, as many objects as there are queries are matched.
    """

    def __init__(self, *, class_cost: Cost | None, bbox_cost: Cost | None, giou_cost: Cost | None):
        parts = {"class_cost": class_cost, "bbox_cost": bbox_cost, "giou_cost": giou_cost}
        self.costs = {name: cost for name, cost in parts.items() if cost is not None}
        if not self.costs:
            raise ValueError("HungarianMatcher needs at least one of class_cost, bbox_cost, giou_cost; all are None")

    @torch.no_grad()
    def __call__(
        self, predictions: Sequence[tuple[Tensor, Tensor]], targets: Targets, repeats: Sequence[int] | None = None
    ) -> list[Tensor]:
        """predictions: (logits (A, B, N, K), boxes (A, B, N, 4) normalised cxcywh) of each group; A and N may differ.
        repeats: by group, how many queries every object is assigned to; None: one. An object that stands in the list
        several times (H-DETR) is matched as often; repeated here are only the columns of the cost matrix.

        Returns, per group, target_index (A, B, N) int64 on the device of the logits: the matched target, -1 =
        background. All cost matrices travel to the host in one copy, the only time that it waits for the device, and
        all results back in another. Matrices are solved in threads.

        Raises:
            NonFiniteCosts: a cost is NaN or infinite; names the term, the prediction set and the image.
        """
        repeats = repeats or [1] * len(predictions)
        groups = zip(self.costs_on_host(predictions, targets), repeats, strict=True)
        found = solve_assignments(
            (matrix[b, :, :count].numpy(), times)
            for matrices, times in groups
            for matrix in matrices
            for b, count in enumerate(targets.counts)
        )
        if any(target_index is None for target_index in found):
            raise NonFiniteCosts(self._explain_non_finite(predictions, targets))
        shapes = [logits.shape[:3] for logits, _ in predictions]
        return _on_device(found, shapes, predictions[0][0].device)

    def cost_matrix(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """(A, B, N, M) total cost."""
        logits, boxes = at_least_float32(logits), at_least_float32(boxes)
        return reduce(torch.add, (cost(logits, boxes, targets) for cost in self.costs.values()))

    def costs_on_host(
        self, predictions: Sequence[tuple[Tensor, Tensor]], targets: Targets
    ) -> Sequence[Sequence[Tensor]]:
        """By group and prediction set: (B, N, M)."""
        if predictions[0][0].device.type == "cpu":
            return self._costs_set_by_set(predictions, targets)
        return self._costs_in_one_copy(predictions, targets)

    def _costs_set_by_set(self, predictions: Sequence[tuple[Tensor, Tensor]], targets: Targets) -> list[list[Tensor]]:
        """A cache's worth is computed faster."""
        return [
            [self.cost_matrix(logits[a, None], boxes[a, None], targets)[0] for a in range(len(logits))]
            for logits, boxes in predictions
        ]

    def _costs_in_one_copy(self, predictions: Sequence[tuple[Tensor, Tensor]], targets: Targets) -> list[Tensor]:
        matrices = [self.cost_matrix(logits, boxes, targets) for logits, boxes in predictions]
        flat = torch.cat([m.mT.flatten() for m in matrices]).cpu()  # as they mostly lie in memory
        sizes = [m.numel() for m in matrices]
        return [piece.view(m.mT.shape).mT for piece, m in zip(flat.split(sizes), matrices, strict=True)]

    def _explain_non_finite(self, predictions: Sequence[tuple[Tensor, Tensor]], targets: Targets) -> str:
        for group, (logits, boxes) in enumerate(predictions):
            for name, values in (("logits", logits), ("boxes", boxes), *self._terms(logits, boxes, targets)):
                bad = ~torch.isfinite(values)
                if name not in ("logits", "boxes"):
                    bad &= targets.valid[:, None]
                if bad.any():
                    layer, image = (int(i) for i in bad.nonzero()[0][:2])
                    return (
                        f"matching needs finite costs, but {name} of prediction set {group}, layer {layer}, image "
                        f"{image} of the batch holds NaN or infinity. The model diverged before this step: lower the "
                        "learning rate, check clipping, or train in bf16 or fp32 instead of fp16."
                    )
        return "matching needs finite costs, but their sum is not finite."

    def _terms(self, logits: Tensor, boxes: Tensor, targets: Targets) -> list[tuple[str, Tensor]]:
        logits, boxes = at_least_float32(logits), at_least_float32(boxes)
        return [(name, cost(logits, boxes, targets)) for name, cost in self.costs.items()]


def _on_device(
    target_index: Sequence[np.ndarray], shapes: Sequence[tuple[int, int, int]], device: torch.device
) -> list[Tensor]:
    """(N,) of every group, prediction set and image -> (A, B, N) of every group, moved in a single copy."""
    flat = torch.from_numpy(np.concatenate(target_index)).to(device, non_blocking=True)
    sizes = [images * sets * queries for sets, images, queries in shapes]
    return [piece.view(shape) for piece, shape in zip(flat.split(sizes), shapes, strict=True)]
