"""What an exported file says about itself: all that a program needs to run it on images."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

import detectron2.data.transforms as T

from dinox.structures.memory import Size

Place = Literal["inside", "outside"]
Ranking = Literal["pairs", "queries"]
Method = Literal["nms", "linear soft-nms"]
ENTRY = "dinox"
"""The name of the description in ONNX's metadata_props; ``ENTRY.json`` among the extra files of a .pt2."""

INPUT = "images"
OUTPUTS: dict[Place, tuple[str, ...]] = {"outside": ("logits", "boxes"), "inside": ("boxes", "scores", "classes")}
"""By the place of the post-processing."""


@dataclass(frozen=True)
class OutsideNMS:
    """Suppression of the model that is no part of a file, for it keeps another number of detections of every image.

    Within each class, of boxes in pixels of the file's input. method: "nms": ``iou_threshold``; "linear soft-nms":
    scores times 1 - IoU above it, then those below ``min_score`` go, and ``num_detections`` are kept. See
    ``dinox.modeling.ClassNMS`` and ``ClassSoftNMS``.
    """

    method: Method
    iou_threshold: float
    min_score: float | None = None
    num_detections: int | None = None


@dataclass(frozen=True)
class FileDescription:
    """Written into exported files as json.

    version: of dinox. class_names: by class index. input_format: the order of the channels, "RGB" or "BGR".
    preprocessing: "inside": the file takes 0..255 in ``input_dtype``; "outside": float32, from which ``pixel_mean`` was
    subtracted and which was divided by ``pixel_std``. postprocessing: "inside": the file gives ``boxes`` (B, M, 4),
    xyxy in pixels of its input, ``scores`` and ``classes`` (B, M), best first; "outside": ``logits`` (B, N, K) and
    ``boxes`` (B, N, 4), cxcywh as shares of the image; ``num_detections`` of them are detections. ranking: "pairs": the
    best pairs of query and class, by the sigmoid of their logit; "queries": the best queries, each with its most likely
    class, by a softmax in which the last logit is "no object".
    sampler: the operators of deformable attention, "grid" or "gather". short_edge, max_size: what images are resized
    to; None: unknown. size, batch: what the file is fixed to; None: free. strides: of the feature levels. least_cells:
    how many cells an image has on all levels together, at least, unless the size is fixed: the number of proposals.
    nms_outside: what has to run on the best ``num_detections`` to get the model's detections, wherever the
    post-processing is; None: nothing.
    """

    version: str
    class_names: tuple[str, ...]
    input_format: str
    input_dtype: str
    preprocessing: Place
    postprocessing: Place
    sampler: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    short_edge: int | None
    max_size: int | None
    size: Size | None
    batch: int | None
    strides: tuple[int, ...]
    least_cells: int
    num_detections: int
    ranking: Ranking = "pairs"  # of files that were written before there were others
    nms_outside: OutsideNMS | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str, *, path: str) -> FileDescription:
        """Raises ValueError if this is not what ``to_json`` of this version of dinox writes."""
        try:
            values: dict[str, Any] = json.loads(text)
            read = cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
            if read.ranking not in get_args(Ranking):
                raise ValueError(f"its ranking is {read.ranking!r}")
            if read.nms_outside is None:
                return read
            nms = OutsideNMS(**read.nms_outside)
            if nms.method not in get_args(Method):
                raise ValueError(f"its NMS is {nms.method!r}")
            return dataclasses.replace(read, nms_outside=nms)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}: its description cannot be read ({error}): it was written by another version of dinox. Export "
                "the model again"
            ) from error

    @property
    def resize(self) -> T.Augmentation | T.Transform | None:
        """What takes an image to the size that the file was made for."""
        if self.size is not None:
            return T.Resize(self.size)
        if self.short_edge is None:
            return None
        return T.ResizeShortestEdge((self.short_edge,), self.max_size, sample_style="choice")

    def check_size(self, height: int, width: int, *, path: str) -> None:
        """Raises ValueError for images that the file cannot run on."""
        cells = count_cells(height, width, self.strides)
        if self.size is not None:
            if (height, width) == self.size:
                return
            expected = f"images of {self.size[1]} x {self.size[0]} pixels, to which it is fixed"
        elif min(height, width) <= max(self.strides):
            expected = f"images of more than {max(self.strides)} pixels on each side"
        elif cells < self.least_cells:
            expected = (
                f"larger images, of at least as many feature cells as proposals ({self.least_cells}, not {cells})"
            )
        else:
            return
        raise ValueError(f"{path}: expected {expected}, got {width} x {height}: resize them as the model was trained")

    @property
    def smallest_square(self) -> int:
        """The side of the smallest square image that the file takes, if its size is free."""
        side = max(self.strides) + 1
        while count_cells(side, side, self.strides) < self.least_cells:
            side += 1
        return side


def count_cells(height: int, width: int, strides: tuple[int, ...]) -> int:
    """Memory tokens of an image."""
    return sum(-(-height // stride) * -(-width // stride) for stride in strides)
