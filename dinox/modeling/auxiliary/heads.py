"""The named container of auxiliary heads (Co-DETR, section 3.2): they teach the encoder in training, and are not there
at inference, unless one of them is to detect in the decoder's place.

Legend: B images, L levels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from dinox.modeling.auxiliary.pyramid import level_maps
from dinox.structures import HeadOutput, HeadPyramid, Memory
from dinox.utils.suggest import did_you_mean


class AuxiliaryHeads(nn.Module):
    """``AuxiliaryHeads(roi=..., atss=...)``: heads by name, which their losses carry (``loss_atss_class``). Heads that
    are None are left out; two of one kind are possible. What a head is, :mod:`dinox.structures.auxiliary` says.

    Args:
        adapter: the memory's maps to the pyramid of all heads (:mod:`dinox.modeling.auxiliary.pyramid`).
        num_decoder_layers, loss_weight: L and lambda2 of equation 6. There, lambda2 times the heads' loss stands inside
            of the sum over the decoder's L layers, so that it counts L times: with 6 layers and lambda2 = 2, every loss
            of a head is multiplied by 12 - the factor of the authors' configs.
        strides: of the memory's levels, in pixels; None: the model tells those of its backbone.
        detect_with: the head whose detections are the model's at inference, after the head's own NMS (table 11); None:
            the decoder's, and nothing of the heads is needed.
    """

    def __init__(
        self,
        *,
        adapter: nn.Module,
        num_decoder_layers: int,
        loss_weight: float = 2.0,
        strides: Sequence[int] | None = None,
        detect_with: str | None = None,
        **heads: nn.Module | None,
    ):
        super().__init__()
        self.adapter = adapter
        self.factor = loss_weight * num_decoder_layers
        self.detect_with = detect_with
        self._names = [name for name, head in heads.items() if head is not None]
        if not self._names:
            raise ValueError("AuxiliaryHeads has no head: give it one, or set model.auxiliary_heads=null")
        for name in self._names:
            self.add_module(name, heads[name])
        if detect_with is not None:
            self._check_detects(detect_with)
        self.memory_strides: tuple[int, ...] | None = None
        self.strides: tuple[int, ...] | None = None  # of the pyramid
        if strides is not None:
            self.fit(strides)

    @property
    def training_only(self) -> bool:
        """Whether inference needs nothing of this."""
        return self.detect_with is None

    @property
    def needs(self) -> set[str]:
        """Fields of ``instances`` that the heads learn from, beside ``gt_boxes`` and ``gt_classes``."""
        return {field for name in self for field in getattr(self[name], "needs", ())}

    def fit(self, memory_strides: Sequence[int]) -> None:
        """Tell the strides of the memory's levels. Raises ValueError if the adapter or a head is not made for them."""
        self.memory_strides = tuple(memory_strides)
        self.strides = self.adapter.strides(memory_strides)
        for name in self:
            self._check_strides(name)

    def forward(
        self,
        memory: Memory,
        image_sizes: Sequence[tuple[int, int]],
        instances: Sequence[Instances],
        generator: torch.Generator | None = None,
        seeds: tuple[int, ...] | None = None,
    ) -> dict[str, HeadOutput]:
        """What every head gives, its losses under ``loss_<head>_<term>`` and multiplied by ``factor``.

        image_sizes: (height, width) of every image without padding. instances: ground truth in these frames. generator,
        seeds: of what is drawn, see :class:`~dinox.structures.HeadPyramid`.
        """
        pyramid = self.pyramid(memory, image_sizes, generator, seeds)
        on_device = [each.to(memory.tokens.device) for each in instances]
        outputs = {}
        for name in self:
            output = self[name](pyramid, on_device)
            losses = {f"loss_{name}_{term}": self.factor * loss for term, loss in output.losses.items()}
            outputs[name] = HeadOutput(losses, output.samples)
        return outputs

    def detect(self, memory: Memory, image_sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """Detections of ``detect_with``, in the frames of the images.

        Of every image the adapter and the head see its own cells alone, as they do of a batch without padding: their
        norms are over whole maps, so that detections would depend on what else is in the batch. Images of equal size go
        together.
        """
        self._check_fitted()
        maps, by_size = level_maps(memory), defaultdict(list)
        for image, (height, width) in enumerate(image_sizes):
            by_size[int(height), int(width)].append(image)
        found = {}
        for size, images in by_size.items():
            own = self._own_cells(maps, size, images)
            pyramid = HeadPyramid(self.adapter(own), self.strides, (size,) * len(images))
            found.update(zip(images, self[self.detect_with].detect(pyramid), strict=True))
        return [found[image] for image in range(len(image_sizes))]

    def pyramid(
        self,
        memory: Memory,
        image_sizes: Sequence[tuple[int, int]],
        generator: torch.Generator | None = None,
        seeds: tuple[int, ...] | None = None,
    ) -> HeadPyramid:
        self._check_fitted()
        maps = self.adapter(level_maps(memory))
        return HeadPyramid(maps, self.strides, tuple((int(h), int(w)) for h, w in image_sizes), generator, seeds)

    def drop_training_parts(self) -> None:
        """Keep the one head that detects."""
        for name in [name for name in self if name != self.detect_with]:
            delattr(self, name)
            self._names.remove(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._names:
            raise KeyError(f"no auxiliary head {name!r}, only {self._names}")
        return getattr(self, name)

    def _own_cells(self, maps: Sequence[Tensor], size: tuple[int, int], images: Sequence[int]) -> list[Tensor]:
        """L maps (B, D, h_l, w_l) -> those of some images of one size, without the cells beyond it."""
        own = []
        for level_map, stride in zip(maps, self.memory_strides, strict=True):
            rows, columns = (math.ceil(pixels / stride) for pixels in size)
            own.append(torch.stack([level_map[image, :, :rows, :columns] for image in images]))
        return own

    def _check_fitted(self) -> None:
        if self.strides is None:
            raise ValueError("AuxiliaryHeads knows no strides: give it strides, those of the memory's levels in pixels")

    def _check_strides(self, name: str) -> None:
        head, strides = self[name], list(self.strides)
        if getattr(head, "num_levels", len(strides)) != len(strides):
            raise ValueError(
                f"auxiliary_heads.{name}.num_levels is {head.num_levels}, but the pyramid has {len(strides)} levels "
                f"(strides {strides}): set model.auxiliary_heads.{name}.num_levels={len(strides)}"
            )
        if hasattr(head, "check_strides"):
            try:
                head.check_strides(strides)
            except ValueError as error:
                raise ValueError(f"auxiliary_heads.{name}: {error}") from error

    def _check_detects(self, name: str) -> None:
        if name not in self._names:
            raise ValueError(
                f"auxiliary_heads.detect_with: there is no head {name!r}, only {', '.join(self._names)}."
                f"{did_you_mean(name, self._names)}"
            )
        if not hasattr(self[name], "detect"):
            raise ValueError(f"auxiliary_heads.detect_with: {name!r} is a {type(self[name]).__name__}, which cannot")
