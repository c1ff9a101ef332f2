"""IoF-IoB curves: how well a map tells objects from the rest of the image (Co-DETR, section 3.4 and figure 2).

Legend: (H, W) the image, T thresholds.
"""

from dataclasses import dataclass

import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor

NUM_THRESHOLDS = 10001
"""At most. They are where the maps' values are: these may all lie within a few hundredths of 1, as norms of a
layer-normed memory do, or all but a peak near 0, as attention does."""

_KEPT = 1001
"""Values that are kept of an image's foreground, and of its background; its shares are exact to half a thousandth."""


@dataclass(frozen=True)
class Curve:
    """Means over images, at each threshold S: iof, iob (T,), both falling with S. images: how many."""

    thresholds: Tensor
    iof: Tensor
    iob: Tensor
    images: int

    @property
    def area(self) -> float:
        """Under IoF over IoB: .5 for a map that knows nothing, 1 for one that knows the objects. The curve is closed by
        a threshold that everything is above, and one that nothing is."""
        iof = torch.cat([torch.ones(1), self.iof.cpu().float(), torch.zeros(1)])
        iob = torch.cat([torch.ones(1), self.iob.cpu().float(), torch.zeros(1)])
        return float(-torch.trapezoid(iof, iob))

    def thinned(self, step: float = 0.002) -> "Curve":
        """The same without points that are nearer than ``step``, in IoF and in IoB, to the one kept before them."""
        kept = [0]
        for i, (iof, iob) in enumerate(zip(self.iof.tolist(), self.iob.tolist(), strict=True)):
            last = kept[-1]
            if max(self.iof[last] - iof, self.iob[last] - iob) >= step:
                kept.append(i)
        index = torch.tensor(kept)
        return Curve(self.thresholds[index], self.iof[index], self.iob[index], self.images)


def thresholds(values: Tensor, most: int = NUM_THRESHOLDS) -> Tensor:
    """(T,) of S, ascending: all values of maps, or quantiles that are evenly spread if they are more than ``most``."""
    return _evenly(values.flatten().sort().values, most).unique()


def _evenly(ascending: Tensor, most: int) -> Tensor:
    """So many of them at most, each the middle one of as many."""
    if len(ascending) <= most:
        return ascending
    steps = (torch.arange(most, device=ascending.device, dtype=torch.float64) + 0.5) * (len(ascending) / most)
    return ascending[steps.long()]


def activated_share(scores: Tensor, mask: Tensor, at: Tensor) -> Tensor:
    """Equation 8: the share of the mask where the score is above the threshold.

    scores: (H, W). mask: (H, W) bool, not empty. at: (T,) thresholds. Returns (T,).
    """
    return _share_above(scores[mask].sort().values, at)


def _share_above(ascending: Tensor, at: Tensor) -> Tensor:
    return 1 - torch.searchsorted(ascending, at, right=True) / len(ascending)


def iof_and_iob(scores: Tensor, foreground: Tensor, at: Tensor) -> tuple[Tensor, Tensor] | None:
    """IoF and IoB (T,) of one image: the activated shares of the foreground and of the background.

    The papers define the background's indicator as D < S, the share that is *not* activated. With that, "higher IoF
    values under the same IoB values" would be the worse encoder, contrary to what they conclude from it: so IoB is the
    activated share here, D > S, as IoF is.

    scores: (H, W). foreground: (H, W) bool. None for an image that is all foreground, or all background.
    """
    if foreground.all() or not foreground.any():
        return None
    return activated_share(scores, foreground, at), activated_share(scores, ~foreground, at)


def foreground_mask(instances: Instances) -> Tensor:
    """(H, W) bool: the union of the objects' ``gt_masks`` where there are any, else of their ``gt_boxes``.

    A pixel is in a box if its centre is. instances: in the frame of the image that the model sees.
    """
    height, width = instances.image_size
    if len(instances) == 0:
        return torch.zeros(height, width, dtype=torch.bool)
    if instances.has("gt_masks"):
        masks = instances.gt_masks
        if isinstance(masks, PolygonMasks):
            masks = BitMasks.from_polygon_masks(masks, height, width)
        return masks.tensor.any(0)
    x0, y0, x1, y1 = instances.gt_boxes.tensor[:, :, None].unbind(1)  # (M, 1) each
    x, y = torch.arange(width).to(x0) + 0.5, torch.arange(height).to(x0) + 0.5
    columns, rows = (x0 <= x) & (x < x1), (y0 <= y) & (y < y1)  # (M, W), (M, H)
    return (rows[:, :, None] & columns[:, None, :]).any(0)


class CurveSum:
    """Collects maps of images; ``curve()`` is the mean of their curves, or None without any.

    All curves have the same thresholds. Where these should be is known when all maps are: until then, quantiles of the
    foreground and of the background are kept of every image.
    """

    def __init__(self) -> None:
        self._images: list[tuple[Tensor, Tensor]] = []  # (at most _KEPT,) each, ascending

    def add(self, scores: Tensor, foreground: Tensor) -> None:
        """Raises ValueError for a map with NaN or infinity."""
        if not torch.isfinite(scores).all():
            raise ValueError("scores: expected a map of finite numbers, got NaN or infinity: are the weights finite?")
        if foreground.all() or not foreground.any():
            return
        parts = (scores[mask].sort().values for mask in (foreground, ~foreground))
        self._images.append(tuple(_evenly(part, _KEPT).cpu() for part in parts))

    def curve(self) -> Curve | None:
        if not self._images:
            return None
        at = thresholds(torch.cat([part for image in self._images for part in image]))
        shares = torch.zeros(2, len(at), dtype=torch.float64)
        for image in self._images:
            shares += torch.stack([_share_above(part, at) for part in image])
        iof, iob = shares / len(self._images)
        return Curve(at, iof, iob, len(self._images))
