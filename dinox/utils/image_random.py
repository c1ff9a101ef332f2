"""Random numbers of images that depend neither on the images beside them, nor on rank or device.

An image that has a seed gets its own generator for each purpose, on the CPU: what is drawn for one purpose does not
move the numbers of another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dinox.utils.random_state import hashed_seed


def image_generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(hashed_seed(seed, purpose))


def draw_uniform(
    shape: Sequence[int],
    *,
    purpose: str,
    device: torch.device,
    generator: torch.Generator | None,
    seeds: Sequence[int] | None,
    counts: Sequence[int] | None = None,
    dim: int = 1,
) -> Tensor:
    """(B, ...) uniform in [0, 1).

    Args:
        generator: on ``device``, of all images together; it goes before ``seeds``. None: these, or else torch's own.
        seeds: of the B images.
        counts: how many entries each image has in ``dim``; those beyond are 0 if there are seeds. So the padding of a
            batch does not change an image's numbers. None: all images have all of them.
    """
    if generator is not None or seeds is None:
        return torch.rand(shape, generator=generator, device=device)
    drawn = torch.zeros(shape)
    for image, seed in enumerate(seeds):
        own = drawn[image] if counts is None else drawn[image].narrow(dim - 1, 0, counts[image])
        own.copy_(torch.rand(own.shape, generator=image_generator(seed, purpose)))
    return drawn.to(device, non_blocking=True)
