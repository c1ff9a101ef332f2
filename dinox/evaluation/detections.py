"""Running a model over a dataset with detectron2's evaluators."""

import contextlib
import datetime
import io
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from dinox.data.conversions import count_conversions_of
from dinox.data.errors import DataError
from dinox.utils.distributed import long_wait
from dinox.utils.progress import evaluation_progress

logger = logging.getLogger(__name__)

_TASK, _NAME = "detections", "count"
COUNT = f"{_TASK}/{_NAME}"
"""Key of the number of detections in all images."""


def evaluate_model(
    model: Callable, data_loader: Collection[list[dict]], evaluator: DatasetEvaluator | Sequence[DatasetEvaluator]
) -> dict[str, float]:
    """Run ``model`` in eval mode over ``data_loader`` and score its detections.

    Returns detectron2's metrics (0..100) under flat names, ``bbox/AP``, ``bbox/AP50``, ..., ``bbox/AP-<class>``, and
    ``detections/count``. A metric that has no objects to count, such as ``bbox/APs`` without small objects, is NaN as
    in detectron2; but a model that detects nothing scores 0, where detectron2 says NaN. All ranks have to call it;
    only the first gets results, the others an empty dict.
    """
    evaluators = [evaluator] if isinstance(evaluator, DatasetEvaluator) else [*evaluator]
    with long_wait() as wait:
        scoring = [*map(_PrintsToLog, evaluators), _WaitForFirstRank(wait)]
        evaluators = [*map(_KnownClasses, evaluators), *scoring, _DetectionCounter()]
        results = inference_on_dataset(model, _WithProgress(data_loader), DatasetEvaluators(evaluators))
    if not comm.is_main_process():
        return {}
    print_csv_format({task: metrics for task, metrics in results.items() if task != _TASK})
    flat = flatten_results_dict(results)
    if flat[COUNT] == 0:
        flat = {name: 0.0 if math.isnan(value) else value for name, value in flat.items()}
    return flat


class _DetectionCounter(DatasetEvaluator):
    """Counts the detections of all ranks."""

    def reset(self) -> None:
        self._count = 0

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self._count += sum(len(output["instances"]) for output in outputs)

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {_TASK: {_NAME: float(sum(comm.all_gather(self._count)))}}


class _KnownClasses(DatasetEvaluator):
    """Refuses detections of classes that an evaluator's dataset does not have. Comes before that evaluator.

    detectron2's evaluators notice when all images are done, or not at all.
    """

    def __init__(self, evaluator: DatasetEvaluator):
        metadata = getattr(evaluator, "_metadata", None)  # in all of detectron2's
        self._dataset = getattr(metadata, "name", None)
        self._classes = getattr(metadata, "thing_classes", None)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs):
            classes = output["instances"].pred_classes
            if self._classes is None or len(classes) == 0 or int(classes.max()) < len(self._classes):
                continue
            raise DataError(
                f"{image.get('file_name')}: the model detects class {int(classes.max())} (counted from 0), but dataset "
                f"{self._dataset!r} has {len(self._classes)} classes. Evaluate on the dataset that the model was made "
                f"for, or set model.num_classes={len(self._classes)} and train it"
            )


class _PrintsToLog(DatasetEvaluator):
    """Sends what an evaluator prints (pycocotools its tables) where everything else goes."""

    def __init__(self, evaluator: DatasetEvaluator):
        self._evaluator = evaluator
        self.reset, self.process = evaluator.reset, evaluator.process

    def evaluate(self) -> Any:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            results = self._evaluator.evaluate()
        if printed.getvalue():
            logger.info("%s", printed.getvalue().rstrip())
        return results


class _WaitForFirstRank(DatasetEvaluator):
    """Behind the evaluators whose scores the first rank computes alone, of LVIS for many minutes."""

    def __init__(self, wait: Callable[[], None]):
        self._wait = wait

    def evaluate(self) -> dict[str, Any]:
        self._wait()
        return {}


class _WithProgress:
    """A data loader that logs, every few seconds, how many of its batches have been used."""

    PERIOD = 10.0  # seconds

    def __init__(self, data_loader: Collection[list[dict]]):
        self._data_loader = data_loader

    def __len__(self) -> int:
        return len(self._data_loader)

    def __iter__(self) -> Iterator[list[dict]]:
        start = last = time.perf_counter()
        for done, batch in enumerate(self._data_loader):
            now = time.perf_counter()
            if done > 0 and now - last > self.PERIOD:
                last = now
                left = datetime.timedelta(seconds=round((now - start) / done * (len(self) - done)))
                evaluation_progress.info("%d/%d  %s left", done, len(self), left)
            count_conversions_of(batch)
            yield batch
