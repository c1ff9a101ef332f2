"""detectron2's LVIS evaluator, which says what to install where its package is missing."""

import importlib
import importlib.util
from collections.abc import Sequence

from detectron2.evaluation import LVISEvaluator

from dinox.data.errors import DataError
from dinox.utils.compat import removed_numpy_names
from dinox.utils.ranges import check_whole

MAX_DETECTIONS = 300
"""Of an image, the best ones; LVIS's own number. What a model detects beyond is not counted."""

_PARTS = ("LVIS", "LVISResults", "LVISEval")
"""What detectron2 uses of the package; the last two only when all images have been through the model."""

_INSTALL = "pip install 'dinox[lvis]'"


class LvisEvaluator(LVISEvaluator):
    """AP over LVIS's federated annotations: of a class, only those images count that say whether it is there.

    Arguments are detectron2's. Raises DataError if the package lvis is missing or cannot be used, before the first
    image.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int = MAX_DETECTIONS,
    ):
        check_whole("max_dets_per_image", max_dets_per_image, 1)
        _check_package()
        super().__init__(dataset_name, tasks, distributed, output_dir, max_dets_per_image=max_dets_per_image)

    def evaluate(self) -> dict | None:
        with removed_numpy_names():
            return super().evaluate()


def _check_package() -> None:
    asked = "evaluation on LVIS (dataloader.evaluator) needs the package lvis, which"
    if importlib.util.find_spec("lvis") is None:
        raise DataError(f"{asked} is not installed: {_INSTALL}")
    try:
        with removed_numpy_names():
            package = importlib.import_module("lvis")
    except Exception as error:  # such as a package that it needs
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{asked} cannot be imported ({reason}): {_INSTALL}, with what it needs") from error
    missing = [name for name in _PARTS if not hasattr(package, name)]
    if missing:
        raise DataError(f"{asked} has no {', '.join(missing)} here ({package.__name__} is another one): {_INSTALL}")
