"""What auxiliary heads (Co-DETR, section 3.2) see, and what they give: losses, and samples for positive queries.

A head is a module that is called in training as ``head(pyramid, instances)``, with detectron2's ground truth of every
image, in the frame of the image and on its device, and returns a :class:`HeadOutput`. It may have:

* ``detect(pyramid)``: a list of detectron2's ``Instances`` with ``pred_boxes``, ``scores`` and ``pred_classes`` in the
  frames of the images, after the head's own NMS; to be evaluated in the decoder's place;
* ``check_strides(strides)``: raises ValueError, before any training, for a pyramid that the head is not made for;
* ``needs``: the names of fields of ``instances`` beside ``gt_boxes`` and ``gt_classes``, such as ``gt_masks``.

Legend: B images, L levels, P samples of a head per image, N chosen ones, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dinox.utils.image_random import image_generator


@dataclass(frozen=True)
class HeadPyramid:
    """The feature maps that all auxiliary heads read.

    maps: L tensors (B, D, h_l, w_l), highest resolution first. strides: L, in pixels, such as (8, 16, 32, 64, 128).
    image_sizes: B x (height, width) of the images without padding, in pixels; they fill the maps from the top left.
    generator: of what heads draw at random; None: that of each image, by ``seeds``, or torch's default one.
    """

    maps: list[Tensor]
    strides: tuple[int, ...]
    image_sizes: tuple[tuple[int, int], ...]
    generator: torch.Generator | None = None
    seeds: tuple[int, ...] | None = None

    def generator_of(self, image: int, purpose: str) -> torch.Generator | None:
        """Of what is drawn for one image of the batch."""
        if self.generator is not None or self.seeds is None:
            return self.generator
        return image_generator(self.seeds[image], purpose)


@dataclass(frozen=True)
class HeadSamples:
    """The places that one head has assigned objects or background to.

    boxes: (B, P, 4) absolute xyxy, detached: sampled boxes, or anchors of all cells. target_index: (B, P) int64 into
    the objects of the image, -1 = background. features_at: (B, N) indices of samples -> (B, N, D) their features, with
    gradient; a function, because a head has many samples and few of them become queries. P is at least 1.
    """

    boxes: Tensor
    target_index: Tensor
    features_at: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class HeadOutput:
    """losses: scalars by name ("class", "giou", ...), weighted by the head's own weights and normalised over ranks; the
    same names for every batch. samples: see :class:`HeadSamples`."""

    losses: dict[str, Tensor]
    samples: HeadSamples
