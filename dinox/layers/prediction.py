"""The two networks that read a class and a box from a feature vector."""

import math

from torch import nn

from dinox.layers.feed_forward import MLP

PRIOR_PROBABILITY = 0.01  # of every class at the start of training (focal loss, section 3.3)


def make_class_head(*, embed_dim: int, num_classes: int) -> nn.Linear:
    """Features (..., D) -> class logits (..., K), starting at the prior probability."""
    head = nn.Linear(embed_dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    return head


def make_box_head(*, embed_dim: int) -> MLP:
    """Features (..., D) -> (..., 4) offsets to the logits of an anchor box, all zero at the start: box = anchor."""
    head = MLP(in_dim=embed_dim, hidden_dim=embed_dim, out_dim=4, num_layers=3)
    nn.init.zeros_(head.layers[-1].weight)
    nn.init.zeros_(head.layers[-1].bias)
    return head
