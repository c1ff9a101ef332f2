"""Large images in overlapping tiles: where they lie, and one list of detections from those of all tiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import batched_nms

OVERLAP = 0.25
"""Of neighbouring tiles, as a share of their side: objects up to this size are whole in one of them."""

_SAME_OBJECT = 0.5
"""IoU above which two boxes of one class, from different tiles, are one object."""

_FRAGMENT = 0.7
"""Share of a cut-off box inside of a whole one above which it is a fragment of that object."""

_AT_EDGE = 0.01
"""Distance from a tile's edge, as a share of its side, below which a box counts as cut off there."""

_PAIRS = 1_000_000
"""Of boxes, compared at once."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of an image, in its pixels; x1 and y1 are the first ones outside."""

    x0: int
    y0: int
    x1: int
    y1: int


def make_tiles(height: int, width: int, *, size: int, overlap: float = OVERLAP) -> list[Tile]:
    """Tiles of ``size`` that cover the image, evenly spread, behind one that is all of it: for large objects.

    An image that fits into one tile is only that one.
    """
    whole = Tile(0, 0, width, height)
    if max(height, width) <= size:
        return [whole]
    rows, columns = (_intervals(length, size=size, overlap=overlap) for length in (height, width))
    return [whole, *(Tile(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns)]


def merge_tiles(
    tiles: Sequence[Tile], detections: Sequence[Instances], *, height: int, width: int, overlap: float
) -> Instances:
    """Detections of all tiles in the frame of the image, scores descending.

    Of the image as a whole, only objects count that are larger than the tiles' overlap: those up to it are whole in a
    tile, which sees them better. Then non-maximum suppression within each class, in which boxes that a tile's edge cuts
    off stand behind the others; and where they lie within one of these, they are left out as well.

    Args:
        tiles: as ``make_tiles`` gives them, the image as a whole first.
        detections: per tile, boxes in its own frame; with ``pred_boxes``, ``scores`` and ``pred_classes``.
        height, width: of the image.
        overlap: of neighbouring tiles, in pixels.
    """
    detections = [_larger_than(overlap, detections[0]), *detections[1:]]
    boxes = torch.cat(
        [
            found.pred_boxes.tensor + torch.tensor([tile.x0, tile.y0] * 2, dtype=torch.float32)
            for tile, found in zip(tiles, detections, strict=True)
        ]
    )
    scores = torch.cat([found.scores for found in detections])
    classes = torch.cat([found.pred_classes for found in detections])
    cut_off = torch.cat(
        [
            _cut_off(found.pred_boxes.tensor, tile, height=height, width=width)
            for tile, found in zip(tiles, detections, strict=True)
        ]
    )
    kept = batched_nms(boxes, scores - cut_off.float(), classes, _SAME_OBJECT)
    kept = kept[~_fragments(boxes[kept], classes[kept], cut_off[kept])]
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    return Instances((height, width), pred_boxes=Boxes(boxes[kept]), scores=scores[kept], pred_classes=classes[kept])


def overlap_in_pixels(*, size: int, overlap: float) -> int:
    return min(size - 1, round(size * overlap))


def _larger_than(length: float, found: Instances) -> Instances:
    sides = found.pred_boxes.tensor[:, 2:] - found.pred_boxes.tensor[:, :2]
    return found[sides.amax(1) > length]


def _intervals(length: int, *, size: int, overlap: float) -> list[tuple[int, int]]:
    """(start, end) of the tiles along one axis."""
    if length <= size:
        return [(0, length)]
    shared = overlap_in_pixels(size=size, overlap=overlap)
    count = math.ceil((length - shared) / (size - shared))
    starts = [round(index * (length - size) / (count - 1)) for index in range(count)]
    return [(start, start + size) for start in starts]


def _cut_off(boxes: Tensor, tile: Tile, *, height: int, width: int) -> Tensor:
    """(N,) whether a box of a tile ends at an edge of the tile that is not one of the image."""
    tile_width, tile_height = tile.x1 - tile.x0, tile.y1 - tile.y0
    margin_x, margin_y = _AT_EDGE * tile_width, _AT_EDGE * tile_height
    x0, y0, x1, y1 = boxes.unbind(-1)
    return (
        ((x0 < margin_x) & (tile.x0 > 0))
        | ((y0 < margin_y) & (tile.y0 > 0))
        | ((x1 > tile_width - margin_x) & (tile.x1 < width))
        | ((y1 > tile_height - margin_y) & (tile.y1 < height))
    )


def _fragments(boxes: Tensor, classes: Tensor, cut_off: Tensor) -> Tensor:
    """(N,) whether a box is cut off and lies within a whole box of its class."""
    fragments = torch.zeros_like(cut_off)
    whole, whole_classes = boxes[~cut_off], classes[~cut_off]
    rows = max(1, _PAIRS // max(1, len(whole)))
    for index in cut_off.nonzero().flatten().split(rows):
        corner = torch.maximum(boxes[index, None, :2], whole[:, :2])
        opposite = torch.minimum(boxes[index, None, 2:], whole[:, 2:])
        shared = (opposite - corner).clamp(min=0).prod(-1)  # (rows, whole boxes)
        area = (boxes[index, 2:] - boxes[index, :2]).prod(-1)
        within = (shared >= _FRAGMENT * area[:, None]) & (classes[index, None] == whole_classes)
        fragments[index] = within.any(1)
    return fragments
