"""detectron2's COCO evaluator, on datasets whose classes were matched to another's by name, or on some classes only."""

from collections.abc import Sequence
from typing import Any

from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO

from dinox.data.class_numbering import own_class_names_of
from dinox.data.errors import DataError


class CocoEvaluator(COCOEvaluator):
    """Gives the AP of each class the right name where classes are not numbered in the order of the json.

    detectron2 takes the n-th category of the file for the n-th class. Otherwise its own evaluator.

    classes: indices of the only classes that count, such as those that a model knows nothing about; objects and
    detections of other ones are as if they were not there. None: all.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        classes: Sequence[int] | None = None,
    ):
        super().__init__(
            dataset_name,
            tasks,
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image,
            use_fast_impl=use_fast_impl,
            kpt_oks_sigmas=kpt_oks_sigmas,
        )
        self._all_coco_api = self._coco_api
        self._classes = None if classes is None else list(classes)
        self._check_classes()

    def reset(self) -> None:
        super().reset()
        if self._classes is not None:  # now, since datasets may be numbered anew for a checkpoint
            self._coco_api = _of_categories(self._all_coco_api, self._category_ids())

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        if self._classes is None:
            return super().process(inputs, outputs)
        wanted = set(self._classes)
        counted = []
        for output in outputs:
            found = output["instances"].to("cpu")
            counted.append({**output, "instances": found[[int(c) in wanted for c in found.pred_classes]]})
        return super().process(inputs, counted)

    def _category_ids(self) -> list[int]:
        ids = {index: category for category, index in self._metadata.thing_dataset_id_to_contiguous_id.items()}
        return [ids[index] for index in self._classes]

    def _check_classes(self) -> None:
        if self._classes is None:
            return
        num_classes = len(self._metadata.thing_classes)
        wrong = [c for c in self._classes if isinstance(c, bool) or not isinstance(c, int) or not 0 <= c < num_classes]
        wrong += [c for i, c in enumerate(self._classes) if c in self._classes[:i]]
        if wrong or not self._classes:
            raise DataError(
                f"dataloader.evaluator.classes: expected class indices from 0 to {num_classes - 1}, each once, as "
                f"dataset {self._metadata.name!r} has {num_classes} classes, got {wrong[0] if wrong else 'none'}"
            )

    def _derive_coco_results(self, coco_eval: Any, iou_type: str, class_names: list[str] | None = None) -> dict:
        if class_names is not None:
            class_names = own_class_names_of(self._metadata.name)
        if class_names is not None and self._classes is not None:
            positions = {category: i for i, category in enumerate(sorted(self._all_coco_api.getCatIds()))}
            class_names = [class_names[positions[category]] for category in sorted(self._category_ids())]
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


def _of_categories(coco: COCO, ids: Sequence[int]) -> COCO:
    """The same dataset with these categories only."""
    kept, filtered = set(ids), COCO()
    filtered.dataset = {
        **coco.dataset,
        "categories": [c for c in coco.dataset["categories"] if c["id"] in kept],
        "annotations": [a for a in coco.dataset["annotations"] if a["category_id"] in kept],
    }
    filtered.createIndex()
    return filtered
