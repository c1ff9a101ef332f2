"""One-to-one label assignment (DETR, equation 1) for all decoder layers and images at once.

Legend: A prediction sets, B images, N queries, K classes, M targets.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dinox.structures import BACKGROUND, Targets
from dinox.utils.precision import at_least_float32

Cost = Callable[[Tensor, Tensor, Targets], Tensor]


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
        background. All cost matrices travel to the host in one copy, all results back in another.

        Raises:
            ValueError: a cost is NaN or infinite; names the term, the prediction set and the image.
        """
        matrices = [self.cost_matrix(logits, boxes, targets) for logits, boxes in predictions]
        on_host = _through_one_tensor(matrices, torch.device("cpu"))
        repeats = repeats or [1] * len(on_host)
        matches = [self._solve(m, targets.counts, times) for m, times in zip(on_host, repeats, strict=True)]
        if any(m is None for m in matches):
            raise ValueError(self._explain_non_finite(predictions, targets))
        return _through_one_tensor(matches, predictions[0][0].device)

    def cost_matrix(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """(A, B, N, M) total cost."""
        logits, boxes = at_least_float32(logits), at_least_float32(boxes)
        return torch.stack([cost(logits, boxes, targets) for cost in self.costs.values()]).sum(0)

    @staticmethod
    def _solve(cost: Tensor, counts: Sequence[int], repeats: int = 1) -> Tensor | None:
        """cost: (A, B, N, M) on the host -> target_index (A, B, N), or None where a cost is not finite."""
        target_index = torch.full(cost.shape[:3], BACKGROUND, dtype=torch.int64)
        for b, count in enumerate(counts):
            matrices = cost[:, b, :, :count]  # (A, N, count)
            if not torch.isfinite(matrices).all():
                return None
            for a, matrix in enumerate(matrices.numpy()):
                queries, columns = linear_sum_assignment(np.tile(matrix, repeats))
                target_index[a, b, torch.from_numpy(queries)] = torch.from_numpy(columns % max(count, 1))
        return target_index

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


def _through_one_tensor(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Move tensors to ``device`` in a single copy."""
    flat = torch.cat([t.flatten() for t in tensors]).to(device)
    return [piece.view(t.shape) for piece, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]
