"""Inputs to measure a model with, where no dataset is needed."""

import torch
from detectron2.structures import Boxes, Instances

OBJECTS_PER_IMAGE = 7  # COCO train2017: 7.3 on average

_SMALLEST, _LARGEST = 0.05, 0.3  # sides of the boxes, as shares of the image's


def synthetic_inputs(
    *,
    size: tuple[int, int],
    batch_size: int,
    num_classes: int,
    objects_per_image: int = OBJECTS_PER_IMAGE,
    seed: int = 0,
) -> list[dict]:
    """A batch of noise with random boxes, in detectron2's format: the same for the same arguments.

    Args:
        size: (height, width) of every image.
        num_classes: labels are drawn from 0 .. num_classes - 1.

    Returns ``batch_size`` dicts with ``image`` (3, H, W) uint8, ``height``, ``width``, and ``instances`` with boxes as
    absolute xyxy.
    """
    generator = torch.Generator().manual_seed(seed)
    return [_one_input(size, num_classes, objects_per_image, generator) for _ in range(batch_size)]


def _one_input(size: tuple[int, int], num_classes: int, num_objects: int, generator: torch.Generator) -> dict:
    height, width = size
    corner = torch.rand(num_objects, 2, generator=generator) * (1 - _LARGEST)
    side = _SMALLEST + torch.rand(num_objects, 2, generator=generator) * (_LARGEST - _SMALLEST)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.cat([corner, corner + side], dim=1) * torch.tensor([width, height] * 2))
    instances.gt_classes = torch.randint(num_classes, (num_objects,), generator=generator)
    image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}
