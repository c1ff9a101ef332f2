"""How much GPU memory training will take: a forecast, made without a GPU.

    weights, gradients and AdamW's two moments: 16 bytes for each trainable parameter, 4 for each frozen one
  + images per GPU x what autograd keeps of one image for the backward pass (``measure_activation_memory``)
  + a quarter of that, for what operators need for a moment, and what the allocator cannot use

What autograd keeps is counted on two small images of different size, with as many objects as COCO's images have on
average, and continued as a straight line in the number of pixels: convolutions and the encoder grow with the pixels,
the decoder does not. Images are taken at the largest size that the augmentation gives them; a batch is padded to its
largest image.
The CUDA context (0.3 to 0.5 GiB) and memory that other programs use are not counted. Mixed precision takes less.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from dinox.analysis.activations import measure_activation_memory
from dinox.analysis.inputs import synthetic_inputs
from dinox.data.inspection.limits import ModelLimits

BYTES_PER_PARAMETER = 16
OVERHEAD = 0.25
"""An assumption, not a measurement: see the module."""

DEFAULT_SHORT_EDGE, DEFAULT_MAX_SIZE = 800, 1333
IMAGES_PER_GPU = (1, 2, 4, 8)

_MEASURED_SIZES = ((256, 256), (320, 320))
"""Small enough for a CPU, and with more tokens than a detector selects of them."""

_GIB = 2**30


@dataclass(frozen=True)
class StepMemory:
    """What a training step needs, in bytes: ``fixed``, ``per_image`` and ``per_pixel`` of the padded batch."""

    fixed: float
    per_image: float
    per_pixel: float

    def gib(self, images: int, pixels_per_image: float) -> float:
        return (self.fixed + images * (self.per_image + self.per_pixel * pixels_per_image) * (1 + OVERHEAD)) / _GIB


DINO_R50_4SCALE = StepMemory(fixed=750e6, per_image=253e6, per_pixel=3015)
"""What ``measure_step_memory`` gives for dino/dino_r50_4scale_12ep, so that it is known without building a model."""


@dataclass(frozen=True)
class MemoryForecast:
    """A forecast in GiB for fp32. typical_size, largest_size: (width, height) that the images are trained at.

    typical, largest: (images per GPU, GiB), if all images of a batch are typical, or if one is as large as can be.
    """

    config: str
    typical_size: tuple[int, int]
    largest_size: tuple[int, int]
    typical: tuple[tuple[int, float], ...]
    largest: tuple[tuple[int, float], ...]


def forecast_memory(memory: StepMemory, sizes: np.ndarray, limits: ModelLimits) -> MemoryForecast | None:
    """``sizes``: (images, 2) height and width of the files; None if there is none that is known."""
    trained = training_sizes(sizes[np.isfinite(sizes).all(1)], limits)
    if len(trained) == 0:
        return None
    # detectron2 puts wide images into one batch and high ones into another; each is padded to its largest.
    wide = trained[:, 1] > trained[:, 0]
    frames = [trained[group].max(0) for group in (wide, ~wide) if group.any()]
    largest = max(frames, key=lambda frame: frame.prod())
    typical = trained[np.argsort(trained.prod(1))[len(trained) // 2]]

    def column(size: np.ndarray) -> tuple[tuple[int, float], ...]:
        return tuple((images, memory.gib(images, float(size.prod()))) for images in IMAGES_PER_GPU)

    return MemoryForecast(
        config=limits.config,
        typical_size=(int(typical[1]), int(typical[0])),
        largest_size=(int(largest[1]), int(largest[0])),
        typical=column(typical),
        largest=column(largest),
    )


def training_sizes(sizes: np.ndarray, limits: ModelLimits) -> np.ndarray:
    """(images, 2) height and width after the largest resize of the config's augmentation."""
    short_edge, max_size = limits.short_edge or DEFAULT_SHORT_EDGE, limits.max_size or DEFAULT_MAX_SIZE
    scale = np.minimum(short_edge / sizes.min(1, initial=np.inf), max_size / sizes.max(1, initial=0.0))
    return np.rint(sizes * scale[:, None]).clip(1)


def measure_step_memory(cfg: DictConfig) -> StepMemory:
    """Build a config's model and count what it keeps for the backward pass. Takes seconds."""
    model: nn.Module = instantiate(copy.deepcopy(cfg.model))
    model.to("cpu")
    num_classes = cfg.model.get("num_classes", 1)
    kept, pixels = [], []
    for height, width in _MEASURED_SIZES:
        inputs = synthetic_inputs(size=(height, width), batch_size=1, num_classes=num_classes)
        kept.append(measure_activation_memory(model, inputs).total)
        pixels.append(height * width)
    per_pixel = (kept[1] - kept[0]) / (pixels[1] - pixels[0])
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trainable
    return StepMemory(
        fixed=BYTES_PER_PARAMETER * trainable + 4 * frozen,
        per_image=max(kept[0] - per_pixel * pixels[0], 0.0),
        per_pixel=per_pixel,
    )
