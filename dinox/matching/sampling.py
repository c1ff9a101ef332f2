"""Random choice of places to learn from, where background far outnumbers objects (Faster R-CNN, section 3.1.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinox.structures import BACKGROUND


@dataclass(frozen=True)
class Sampled:
    """Indices of the chosen places of one image: positive (n,), background (m,)."""

    positive: Tensor
    background: Tensor

    @property
    def index(self) -> Tensor:
        """(n + m,), positives first."""
        return torch.cat([self.positive, self.background])


def sample_balanced(
    assigned: Tensor, *, num_samples: int, positive_fraction: float, generator: torch.Generator | None = None
) -> Sampled:
    """At most ``positive_fraction`` of ``num_samples`` places with an object, and background for the rest.

    assigned: (P,) int64 of one image: the object, -1 = background, others are not chosen. detectron2's
    ``subsample_labels`` does the same without a generator.
    """
    positive = _choose(assigned >= 0, int(num_samples * positive_fraction), generator)
    return Sampled(positive, _choose(assigned == BACKGROUND, num_samples - len(positive), generator))


def _choose(wanted: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
    """Indices of ``wanted`` (P,) bool, or a random choice of ``most`` of them."""
    index = wanted.nonzero()[:, 0]
    if len(index) <= most:
        return index
    drawn_on = index.device if generator is None else generator.device  # an image's own generator is on the CPU
    order = torch.randperm(len(index), generator=generator, device=drawn_on)[:most]
    return index[order.to(index.device, non_blocking=True)]
