"""Softmax cross-entropy over classes and "no object" (DETR, section 3.1)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dinox.structures import MatchedPredictions

BACKGROUND_WEIGHT = 0.1  # of the term "no object" (DETR, appendix A.4)


class SoftmaxLoss:
    """Classification loss of DETR; the last of the K + 1 logits is "no object".

    background_weight: of predictions without an object. The sum is divided by that of the weights, not by the number of
    objects (see ``normaliser``), and averaged over ranks like all normalisers here; DETR's code divides on every rank.
    """

    def __init__(self, *, background_weight: float = BACKGROUND_WEIGHT):
        if background_weight < 0:
            raise ValueError(f"background_weight must not be negative, got {background_weight}")
        self.background_weight = background_weight

    def __call__(self, matched: MatchedPredictions) -> Tensor:
        """Returns (A,): one weighted sum per prediction set."""
        background = matched.logits.shape[-1] - 1
        labels = torch.where(matched.positive, matched.labels, background)  # (A, B, N)
        loss = F.cross_entropy(matched.logits.flatten(0, 2), labels.flatten(), reduction="none").view(labels.shape)
        return (loss * self._weights(matched)).sum(dim=(1, 2))

    def normaliser(self, matched: MatchedPredictions) -> Tensor:
        """(A,) sum of the predictions' weights. Of a part of a batch: its share of the sum over the whole batch, where
        that is known."""
        share = matched.targets.share
        if share == 1 or matched.batch_positives is None or matched.padding_mask is not None:
            return self._weights(matched).sum(dim=(1, 2))
        sets, images, queries = matched.positive.shape
        background = images * queries - matched.batch_positives * share
        weight = self.background_weight * background + matched.batch_positives * share
        return matched.boxes.new_full((sets,), weight)

    def _weights(self, matched: MatchedPredictions) -> Tensor:
        weights = torch.full_like(matched.positive, self.background_weight, dtype=matched.logits.dtype)
        weights = weights.masked_fill(matched.positive, 1.0)
        return weights if matched.padding_mask is None else weights.masked_fill(matched.padding_mask, 0.0)
