"""Focal loss (Lin et al. 2017, equation 5) on sigmoid logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dinox.structures import MatchedPredictions


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """logits, targets (0 or 1, or soft): same shape -> loss of the same shape, not reduced."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    miss = probability * (1 - targets) + (1 - probability) * targets
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * miss**gamma * cross_entropy


def quality_focal_loss(
    logits: Tensor, quality: Tensor, positive: Tensor, *, alpha: float | None = None, gamma: float = 2.0
) -> Tensor:
    """Focal loss towards a quality in [0, 1] (GFL, Li et al. 2020, equation 2): |q - p|^gamma BCE(p, q), not reduced.

    logits, quality: same shape; quality is 0 where ``positive`` (bool, same shape) is False. alpha: the balance of
    positives, 1 - alpha being that of all other entries; None: neither is scaled.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    loss = (quality - logits.sigmoid()).abs() ** gamma * cross_entropy
    return loss if alpha is None else torch.where(positive, alpha, 1 - alpha) * loss


class FocalLoss:
    """Classification loss of the DINO family: alpha .25, gamma 2, summed over queries and classes."""

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0):
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, matched: MatchedPredictions) -> Tensor:
        """Returns (A,): one sum per prediction set."""
        targets = matched.one_hot_labels()
        loss = sigmoid_focal_loss(matched.logits, targets, alpha=self.alpha, gamma=self.gamma)
        return loss.sum(dim=(1, 2, 3))
