"""Small pyramids with objects, for tests of auxiliary heads."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances

from dinox.structures import HeadPyramid

STRIDES = (8, 16, 32)
EMBED_DIM, NUM_CLASSES = 16, 5


def make_pyramid(image_sizes: Sequence[tuple[int, int]], *, strides=STRIDES, channels=EMBED_DIM, seed=0) -> HeadPyramid:
    """Noise; the maps are as large as the largest sides of the images need."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(sides) for sides in zip(*image_sizes))
    maps = [
        torch.randn(len(image_sizes), channels, -(-height // s), -(-width // s), generator=generator) for s in strides
    ]
    return HeadPyramid(maps, strides, tuple(image_sizes))


def make_objects(image_size: tuple[int, int], count: int, *, seed: int = 0) -> Instances:
    """Random boxes inside the image with sides of 4 to 64 pixels."""
    generator = torch.Generator().manual_seed(seed)
    height, width = image_size
    size = torch.tensor([width, height]).float()
    sides = (4 + 60 * torch.rand(count, 2, generator=generator)).minimum(size)
    corners = torch.rand(count, 2, generator=generator) * (size - sides)
    boxes = torch.cat([corners, corners + sides], dim=1)
    classes = torch.randint(NUM_CLASSES, (count,), generator=generator)
    return Instances(image_size, gt_boxes=Boxes(boxes), gt_classes=classes)
