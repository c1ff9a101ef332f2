"""The two networks that read a class and a box from a feature vector, and what the second one's numbers mean."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dinox.layers.feed_forward import MLP
from dinox.structures import inverse_sigmoid

PRIOR_PROBABILITY = 0.01  # of every class at the start of training (focal loss, section 3.3)


def make_class_head(*, embed_dim: int, num_classes: int) -> nn.Linear:
    """Features (..., D) -> class logits (..., K), starting at the prior probability."""
    head = nn.Linear(embed_dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    return head


def make_box_head(*, embed_dim: int, size_logit: float = 0.0) -> MLP:
    """Features (..., D) -> (..., 4) offsets to the logits of an anchor, all zero at the start: box = anchor.

    size_logit: where the offsets of width and height start; -2 (12 % of the image) where anchors are points.
    """
    head = MLP(in_dim=embed_dim, hidden_dim=embed_dim, out_dim=4, num_layers=3)
    nn.init.zeros_(head.layers[-1].weight)
    nn.init.zeros_(head.layers[-1].bias)
    nn.init.constant_(head.layers[-1].bias[2:], size_logit)
    return head


def move_anchors(offsets: Tensor, anchors: Tensor | None) -> Tensor:
    """Offsets (..., 4) in logit space from anchor boxes (..., 4), from points (..., 2), or from nothing -> boxes (...,
    4).

    All in [0, 1]; boxes cxcywh. Of a point, width and height are the offsets themselves. Runs in the dtype of the
    anchors.
    """
    if anchors is None:
        return offsets.sigmoid()
    with torch.autocast(offsets.device.type, enabled=False):
        start = F.pad(inverse_sigmoid(anchors), (0, offsets.shape[-1] - anchors.shape[-1]))
        return (offsets.to(anchors.dtype) + start).sigmoid()
