"""Detections of a whole dataset without holding them in memory.

N detections in all images; boxes are x, y, width, height in pixels, as COCO's.
"""

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, Instances

_COLUMNS = 6  # x, y, width, height, score, class index


@dataclass(frozen=True)
class StoredDetections:
    """image_ids: of all images that were seen, in their order. counts: (images,) of detections in each.

    rows: (N, 6) of float64, which holds every number of a model exactly: x, y, width, height, score, class index.
    """

    image_ids: tuple[Any, ...]
    counts: np.ndarray
    rows: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """(N,) class indices."""
        return self.rows[:, 5].astype(np.int64)

    def of_classes(self, classes: Sequence[int]) -> "StoredDetections":
        kept = np.isin(self.classes, np.asarray(classes, dtype=np.int64))
        image = np.repeat(np.arange(len(self.image_ids)), self.counts)
        counts = np.bincount(image[kept], minlength=len(self.image_ids))
        return StoredDetections(self.image_ids, counts, self.rows[kept])

    def as_coco(self, category_ids: Mapping[int, int] | None) -> Iterator[dict]:
        """COCO's results, one dictionary after the other. category_ids: by class index; None: they are the same."""
        end = np.cumsum(self.counts)
        for image_id, first, last in zip(self.image_ids, end - self.counts, end):
            for *box, score, index in self.rows[first:last].tolist():
                category = int(index) if category_ids is None else category_ids[int(index)]
                yield {"image_id": image_id, "category_id": category, "bbox": box, "score": score}

    def as_predictions(self) -> list[dict]:
        """What detectron2's evaluator has of images with detections."""
        by_image = itertools.groupby(self.as_coco(None), key=lambda result: result["image_id"])
        return [{"image_id": image_id, "instances": list(results)} for image_id, results in by_image]

    @staticmethod
    def joined(parts: Sequence["StoredDetections"]) -> "StoredDetections":
        """Those of several ranks, in the order of the ranks."""
        return StoredDetections(
            tuple(image_id for part in parts for image_id in part.image_ids),
            np.concatenate([part.counts for part in parts]),
            np.concatenate([part.rows for part in parts]),
        )


class DetectionStore:
    """Collects boxes, scores and classes, 48 bytes each, in a temporary file, where the system has them (``TMPDIR``).

    It has no name, and is gone with the store.
    """

    def __init__(self):
        self._file: Any = None  # opened when it is needed, so that an evaluator that was not used can be copied
        self._image_ids: list[Any] = []
        self._counts: list[int] = []

    def __len__(self) -> int:
        """Images seen."""
        return len(self._image_ids)

    def add(self, image_id: Any, found: Instances) -> None:
        """found: on the CPU, with ``pred_boxes`` (absolute x0, y0, x1, y1), ``scores`` and ``pred_classes``."""
        # Widths are differences in the precision of the model, as detectron2 has them, and only then float64.
        boxes = BoxMode.convert(found.pred_boxes.tensor.detach().numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        rows = np.empty((len(found), _COLUMNS))
        rows[:, :4], rows[:, 4], rows[:, 5] = boxes, found.scores.numpy(), found.pred_classes.numpy()
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 lives as long as this
        self._file.write(rows.tobytes())
        self._image_ids.append(image_id)
        self._counts.append(len(rows))

    def read(self) -> StoredDetections:
        rows = np.empty((sum(self._counts), _COLUMNS))
        if self._file is not None:
            self._file.seek(0)
            got = self._file.readinto(memoryview(rows).cast("B")) if rows.size else 0
            assert got == rows.nbytes, f"expected {rows.nbytes} bytes in the store of detections, got {got}"
        return StoredDetections(tuple(self._image_ids), np.asarray(self._counts, dtype=np.int64), rows)
