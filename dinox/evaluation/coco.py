"""detectron2's COCO evaluator, on datasets whose classes were matched to another's by name, or on some classes only."""

import copy
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dinox.data.class_numbering import own_class_names_of
from dinox.data.errors import DataError
from dinox.evaluation.coco_scoring import BoxTask, fast_implementation, score_boxes
from dinox.evaluation.detection_report import write_report
from dinox.evaluation.detection_store import DetectionStore, StoredDetections
from dinox.utils.whole_files import written_whole

RESULTS_FILE = "coco_instances_results.json"


class CocoEvaluator(COCOEvaluator):
    """detectron2's evaluator and its numbers, with memory that does not grow with the number of images, and with the
    right name for the AP of each class where classes are not numbered in the order of the json.

    Boxes wait in a temporary file, and are scored some classes at a time, with faster-coco-eval where
    it is installed. Masks, keypoints and proposals are detectron2's own matter, in its way. Of its files, the json is
    the same; ``instances_predictions.pth``, the same again as a pickle, is not written for boxes.

    Arguments are detectron2's, and:

    use_fast_impl: False: COCO's own implementation. All give the same numbers.
    classes: indices of the only classes that count, such as those that a model knows nothing about; objects and
        detections of other ones are as if they were not there. None: all.
    report_dir: where a report of the detections goes, ``dinox.evaluation.write_report``. None: there is none.
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
        report_dir: str | None = None,
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
        self._report_dir = report_dir
        self._check_classes()
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._store = DetectionStore()
        if self._classes is not None:  # now, since datasets may be numbered anew for a checkpoint
            self._coco_api = _of_categories(self._all_coco_api, self._category_ids())

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for x, output in zip(inputs, outputs):
            if self._classes is not None:
                found = output["instances"].to("cpu")
                wanted = [int(c) in self._classes for c in found.pred_classes]
                output = {**output, "instances": found[wanted]}
            if self._has_only_boxes(output):
                self._store.add(x["image_id"], output["instances"].to("cpu"))
            else:
                super().process([x], [output])

    def _has_only_boxes(self, output: dict) -> bool:
        if set(self._tasks or ["bbox"]) != {"bbox"} or "instances" not in output or "proposals" in output:
            return False
        return not (output["instances"].has("pred_masks") or output["instances"].has("pred_keypoints"))

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict:
        """img_ids: of the images that count; None: all. Returns metrics per task, on ranks but the first nothing."""
        others = len(self._predictions) > 0
        if any(comm.all_gather(others)) if self._distributed else others:
            self._predictions += self._store.read().as_predictions()
            return super().evaluate(img_ids)
        found = [self._store.read()]
        if self._distributed:
            comm.synchronize()
            found = comm.gather(found[0], dst=0)
            if not comm.is_main_process():
                return {}
        found = StoredDetections.joined(found)
        if len(found.image_ids) == 0:
            self._logger.warning("[CocoEvaluator] Did not receive valid predictions.")
            return {}
        self._results = OrderedDict()
        self._evaluate_boxes(found, img_ids)
        return copy.deepcopy(self._results)

    def _evaluate_boxes(self, found: StoredDetections, img_ids: Sequence[int] | None) -> None:
        """What detectron2's evaluator does with its predictions."""
        category_ids = self._ids_by_class()
        if category_ids is not None and not set(found.classes.tolist()) <= category_ids.keys():
            raise DataError(
                f"the model detects class {found.classes.max()} (counted from 0), but dataset {self._metadata.name!r} "
                f"has {len(category_ids)} classes"
            )
        if self._output_dir:
            path = os.path.join(self._output_dir, RESULTS_FILE)
            self._logger.info("Saving results to %s", path)
            _write_results(path, found.as_coco(category_ids))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        if len(found.rows) == 0:
            self._results["bbox"] = self._derive_coco_results(None, "bbox")
            return
        task = BoxTask(self._coco_api, found, category_ids, self._max_dets_per_image, img_ids)
        implementation = fast_implementation() if self._use_fast_impl else COCOeval
        self._logger.info("Evaluating with %s.%s ...", implementation.__module__, implementation.__name__)
        summary = score_boxes(task, implementation)
        names = self._metadata.get("thing_classes")
        self._results["bbox"] = self._derive_coco_results(summary, "bbox", class_names=names)
        if self._report_dir is not None:
            write_report(self._report_dir, task, summary, self._names_by_category())
            self._logger.info("Report of the detections: %s", self._report_dir)

    def _ids_by_class(self) -> dict[int, int] | None:
        """The dataset's categories by class index; None where detectron2 takes class indices for categories."""
        classes = self._metadata.get("thing_dataset_id_to_contiguous_id")
        return None if classes is None else {index: category for category, index in classes.items()}

    def _category_ids(self) -> list[int]:
        ids = self._ids_by_class()
        return [ids[index] for index in self._classes]

    def _names_by_category(self) -> list[str] | None:
        """Of the classes that count, in the order of the ids of their categories, which is COCO's."""
        names = own_class_names_of(self._metadata.name)
        if names is not None and self._classes is not None:
            positions = {category: i for i, category in enumerate(sorted(self._all_coco_api.getCatIds()))}
            names = [names[positions[category]] for category in sorted(self._category_ids())]
        return names

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
            class_names = self._names_by_category()
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


def _write_results(path: str, results: Iterable[dict]) -> None:
    """detectron2's file, to the byte, without a copy of it in memory."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        for number, result in enumerate(results):
            file.write((", " if number else "") + json.dumps(result))
        file.write("]")


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
