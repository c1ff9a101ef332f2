"""Detections with NMS and without it, evaluated in one pass of the model."""

import logging
import pickle
import tempfile
from collections.abc import Iterator
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm

from dinox.structures import BEFORE_NMS

logger = logging.getLogger(__name__)

WITH, WITHOUT = "_wnms", "_wonms"
"""Behind the names of metrics; the first one as in Stable-DINO's release."""


class WithAndWithoutNMS(DatasetEvaluator):
    """Wraps an evaluator, which is asked twice where a model has NMS in its post-processing: such a model gives the
    detections before NMS beside its own.

    ``bbox/AP`` and so on stay what the model's own detections give, so with NMS where it has one. Then all metrics but
    those of single classes come again under two names that say which they are: ``bbox/AP_wnms`` with NMS, and
    ``bbox/AP_wonms`` without, plain ``AP`` in Stable-DINO's release. Without NMS in the model these are missing,
    and everything is as without this part.

    The model's own detections wait in a temporary file meanwhile.

    evaluator: detectron2's contract. The files that it writes are of the model's own detections.
    """

    def __init__(self, *, evaluator: DatasetEvaluator):
        self._evaluator = evaluator
        self._metadata = getattr(evaluator, "_metadata", None)  # of the dataset, as detectron2's evaluators have it
        self._own = _Waiting()

    @property
    def wrapped(self) -> DatasetEvaluator:
        return self._evaluator

    def reset(self) -> None:
        self._evaluator.reset()
        self._own = _Waiting()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Those before NMS now, so that the evaluator writes its files from the model's own, which come last."""
        if not all(BEFORE_NMS in output for output in outputs):
            self._evaluator.process(inputs, outputs)
            return
        self._evaluator.process(inputs, [{"instances": output[BEFORE_NMS]} for output in outputs])
        for x, output in zip(inputs, outputs, strict=True):
            self._own.add({k: v for k, v in x.items() if k != "image"}, output["instances"].to("cpu"))

    def evaluate(self) -> Any:
        if not any(comm.all_gather(len(self._own) > 0)):  # a rank may have had no image
            return self._evaluator.evaluate()
        logger.info("Without NMS:")
        without = self._evaluator.evaluate()
        self._evaluator.reset()
        for x, found in self._own:
            self._evaluator.process([x], [{"instances": found}])
        logger.info("With NMS, the model's own detections:")
        own = self._evaluator.evaluate()
        return own and {task: _named(metrics, (without or {}).get(task, {})) for task, metrics in own.items()}


class _Waiting:
    """Inputs, without their images, and detections, in a temporary file that is gone with this."""

    def __init__(self):
        self._file: Any = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, x: dict[str, Any], found: Instances) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 lives as long as this
        pickle.dump((x, found), self._file, protocol=pickle.HIGHEST_PROTOCOL)
        self._count += 1

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Instances]]:
        if self._file is not None:
            self._file.seek(0)
        for _ in range(self._count):
            yield pickle.load(self._file)


def _named(own: dict[str, float], without: dict[str, float]) -> dict[str, float]:
    """Metrics of one task. detectron2 calls those of single classes ``AP-<class>``."""
    named = dict(own)
    for suffix, metrics in ((WITH, own), (WITHOUT, without)):
        named |= {f"{name}{suffix}": value for name, value in metrics.items() if "-" not in name}
    return named
