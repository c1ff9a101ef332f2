"""Distribution focal loss (Generalized Focal Loss, Li et al. 2020, equation 6)."""

from torch import Tensor
from torch.nn import functional as F


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy with the two whole numbers around the target, each by its nearness; not reduced.

    logits: (..., n + 1) of the numbers 0 ... n. target: (...) in [0, n). Returns (...).
    """
    below = target.floor()
    share_above = target - below
    log_probability = F.log_softmax(logits, dim=-1)
    below = below.long()[..., None]  # (..., 1)
    pair = log_probability.gather(-1, below), log_probability.gather(-1, below + 1)
    return -((1 - share_above) * pair[0].squeeze(-1) + share_above * pair[1].squeeze(-1))
