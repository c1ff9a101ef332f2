"""detectron2's LVIS evaluator, which says what to install where its package is missing."""

import importlib.util
from collections.abc import Sequence

from detectron2.evaluation import LVISEvaluator

from dinox.data.errors import DataError

MAX_DETECTIONS = 300
"""Of an image, the best ones; LVIS's own number. What a model detects beyond is not counted."""


class LvisEvaluator(LVISEvaluator):
    """AP over LVIS's federated annotations: of a class, only those images count that say whether it is there.

    Arguments are detectron2's. Raises DataError if the package lvis is missing.
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
        if importlib.util.find_spec("lvis") is None:
            raise DataError(
                "evaluation on LVIS (dataloader.evaluator) needs the package lvis, which is not installed: "
                "pip install 'dinox[lvis]'"
            )
        super().__init__(dataset_name, tasks, distributed, output_dir, max_dets_per_image=max_dets_per_image)
