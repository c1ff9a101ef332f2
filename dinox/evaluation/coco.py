"""detectron2's COCO evaluator, on datasets whose classes were matched to another's by name."""

from typing import Any

from detectron2.evaluation import COCOEvaluator

from dinox.data.class_numbering import own_class_names_of


class CocoEvaluator(COCOEvaluator):
    """Gives the AP of each class the right name where classes are not numbered in the order of the json.

    detectron2 takes the n-th category of the file for the n-th class. Otherwise its own evaluator.
    """

    def _derive_coco_results(self, coco_eval: Any, iou_type: str, class_names: list[str] | None = None) -> dict:
        if class_names is not None:
            class_names = own_class_names_of(self._metadata.name)
        return super()._derive_coco_results(coco_eval, iou_type, class_names)
