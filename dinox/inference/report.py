"""What a run over many files found, counted, for people and for programs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dinox.evaluation.drawing import class_name
from dinox.inference.files import Prediction
from dinox.inference.results import detections_as_json

_LISTED = 20
"""Up to so many inputs get a line of their own."""


class Report:
    """Counts predictions.

    Args:
        class_names: by class index.
        score_threshold: the predictor's, for the text.
        keep_detections: of images, for ``as_json``. Those of videos are in files of their own.
    """

    def __init__(self, class_names: Sequence[str], *, score_threshold: float, keep_detections: bool):
        self.failures: list[Prediction] = []
        self._class_names, self._score_threshold = class_names, score_threshold
        self._keep_detections = keep_detections
        self._images: list[dict[str, Any]] = []
        self._num_images = 0
        self._frames: Counter[str] = Counter()  # by video
        self._counts: Counter[str] = Counter()  # by class
        self._lines: dict[str, Counter[str]] = {}  # by input, for as many as are listed

    @property
    def num_inputs(self) -> int:
        """Those that are finished, or at least begun."""
        failed = {failure.file.path for failure in self.failures} - self._frames.keys()
        return self._num_images + len(self._frames) + len(failed)

    @property
    def num_videos(self) -> int:
        return len(self._frames)

    @property
    def has_results(self) -> bool:
        return self._num_images + len(self._frames) > 0

    def add(self, prediction: Prediction) -> None:
        if prediction.error is not None:
            self.failures.append(prediction)
            return
        path = prediction.file.path
        names = [class_name(self._class_names, index) for index in prediction.instances.pred_classes.tolist()]
        if prediction.frame is None:
            self._num_images += 1
        else:
            self._frames[path] += 1
        self._counts.update(names)
        if path in self._lines or len(self._lines) <= _LISTED:
            self._lines.setdefault(path, Counter()).update(names)
        if self._keep_detections and prediction.frame is None:
            height, width = prediction.size
            detections = detections_as_json(prediction.instances, self._class_names)
            self._images.append({"file": path, "height": height, "width": width, "detections": detections})

    def text(self) -> str:
        """One line for each of a few inputs, and a summary."""
        lines = []
        if 1 < len(self._lines) <= _LISTED:
            width = max(map(len, self._lines))
            lines = [f"{path:{width}}  {_listed(counts) or 'nothing'}" for path, counts in self._lines.items()]
            lines.append("")
        seen = [_count(self._num_images, "image")] if self._num_images or not self._frames else []
        if self._frames:
            seen.append(f"{_count(len(self._frames), 'video')} of {_count(self._frames.total(), 'frame')}")
        found = f"{_count(self._counts.total(), 'detection')} with a score of at least {self._score_threshold:g}"
        by_class = f": {_listed(self._counts)}" if self._counts else ""
        return "\n".join([*lines, f"{' and '.join(seen)}, {found}{by_class}"])

    def as_json(self) -> dict[str, Any]:
        return {
            "class_names": list(self._class_names),
            "score_threshold": self._score_threshold,
            "images": self._images,
            "videos": [{"file": path, "frames": frames} for path, frames in self._frames.items()],
            "failures": [{"file": failure.file.path, "error": failure.error} for failure in self.failures],
        }


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.most_common())


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
