"""Detections with NMS and without it, evaluated in one pass."""

import gc
import json
import math
import tracemalloc

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf

from dinox import model_zoo
from dinox.config.calls import innermost_evaluator
from dinox.evaluation import CocoEvaluator, WithAndWithoutNMS, evaluate_model
from dinox.evaluation.nms import comm
from dinox.modeling import ClassNMS, ClassSoftNMS, TopKDetections
from dinox.structures import BEFORE_NMS

NAME = "nms_evaluated"
LEFT, RIGHT = [10.0, 10, 30, 30], [40.0, 10, 60, 30]
LOADER = [[{"image_id": 1, "file_name": "1.png", "image": torch.zeros(3, 64, 96)}]]

WITHOUT = 100 * (51 + 50 * 2 / 3) / 101
"""AP of the two objects, one of them found twice before the other is found once: at recalls up to 0.5, 51 of COCO's
101, precision is 1, and 2/3 above."""


@pytest.fixture(autouse=True)
def dataset(tmp_path):
    """One image with two objects of the class "cat"; no object is a "dog"."""
    objects = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [x0, y0, 20.0, 20.0], "area": 400.0, "iscrowd": 0}
        for i, (x0, y0, _, _) in enumerate((LEFT, RIGHT), start=1)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    image = {"id": 1, "file_name": "1.png", "height": 64, "width": 96}
    content = {"images": [image], "annotations": objects, "categories": categories}
    (tmp_path / "own.json").write_text(json.dumps(content))
    register_coco_instances(NAME, {}, str(tmp_path / "own.json"), str(tmp_path))
    DatasetCatalog.get(NAME)
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def found(*boxes: list[float]) -> Instances:
    scores = torch.linspace(0.9, 0.1, len(boxes))
    classes = torch.zeros(len(boxes), dtype=torch.int64)
    return Instances((64, 96), pred_boxes=Boxes(torch.tensor(boxes)), scores=scores, pred_classes=classes)


def with_nms(inputs: list[dict]) -> list[dict]:
    """A model that finds one object twice, and both once behind its NMS."""
    return [{"instances": found(LEFT, RIGHT), BEFORE_NMS: found(LEFT, LEFT, RIGHT)} for _ in inputs]


def without_nms(inputs: list[dict]) -> list[dict]:
    return [{"instances": found(LEFT, LEFT, RIGHT)} for _ in inputs]


def test_detectron2s_inference_gives_both_and_plain_names_are_the_models_own():
    calls = []

    def model(inputs):
        calls.append(len(inputs))
        return with_nms(inputs)

    results = inference_on_dataset(model, LOADER, WithAndWithoutNMS(evaluator=CocoEvaluator(NAME)))
    assert calls == [1]  # one pass
    bbox = results["bbox"]
    # pycocotools adds an epsilon to precision.
    assert (bbox["AP"], bbox["AP_wnms"]) == pytest.approx((100, 100), abs=1e-6)
    assert bbox["AP_wonms"] == pytest.approx(WITHOUT, abs=1e-6)
    assert {"AP50_wnms", "APm_wonms", "AP-cat", "AP-dog"} <= bbox.keys()
    assert not [name for name in bbox if name.startswith("AP-") and name.endswith("nms")]
    assert flatten_results_dict(results)["bbox/AP"] == bbox["AP"]  # what detectron2's BestCheckpointer reads


def test_dinoxs_evaluation_gives_both_and_counts_the_models_own_detections():
    results = evaluate_model(with_nms, LOADER, WithAndWithoutNMS(evaluator=CocoEvaluator(NAME)))
    assert results["bbox/AP"] == results["bbox/AP_wnms"] == pytest.approx(100, abs=1e-6)
    assert results["bbox/AP_wonms"] == pytest.approx(WITHOUT, abs=1e-6)
    assert results["detections/count"] == 2


def test_a_model_without_nms_is_evaluated_as_by_the_wrapped_evaluator():
    wrapped, plain = (
        inference_on_dataset(without_nms, LOADER, each)["bbox"]
        for each in (WithAndWithoutNMS(evaluator=CocoEvaluator(NAME)), CocoEvaluator(NAME))
    )
    assert wrapped == pytest.approx(plain, nan_ok=True) and wrapped["AP"] == pytest.approx(WITHOUT, abs=1e-6)


def test_files_hold_the_models_own_detections_and_evaluations_do_not_add_up(tmp_path):
    evaluator = WithAndWithoutNMS(evaluator=CocoEvaluator(NAME, output_dir=str(tmp_path / "inference")))
    first, second = (inference_on_dataset(with_nms, LOADER, evaluator)["bbox"] for _ in range(2))
    assert second == pytest.approx(first, nan_ok=True)
    written = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert [each["bbox"][0] for each in written] == [LEFT[0], RIGHT[0]]


def test_a_model_that_detects_nothing_before_nms_has_a_score_too():
    def model(inputs):
        return [{"instances": found(LEFT)[:0], BEFORE_NMS: found(LEFT)[:0]} for _ in inputs]

    results = evaluate_model(model, LOADER, WithAndWithoutNMS(evaluator=CocoEvaluator(NAME)))
    assert results["bbox/AP"] == results["bbox/AP_wonms"] == 0 and not math.isnan(results["bbox/AP_wnms"])


def test_the_models_own_detections_do_not_wait_in_memory():
    """Python's part of an image's detections alone is over 1 kB."""
    evaluator, output = WithAndWithoutNMS(evaluator=CocoEvaluator(NAME)), with_nms([{}])
    evaluator.reset()
    evaluator.process(LOADER[0], output)
    tracemalloc.start()
    for _ in range(500):
        evaluator.process(LOADER[0], [{name: found.to("cpu") for name, found in output[0].items()}])
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 100_000


def test_a_rank_without_images_asks_as_often_as_the_others(monkeypatch):
    """detectron2's evaluators gather from all ranks: one that would not ask twice would leave the others waiting."""

    class Asked(CocoEvaluator):
        times = 0

        def evaluate(self):
            self.times += 1

    monkeypatch.setattr(comm, "all_gather", lambda own: [own, True])
    asked = Asked(NAME)
    evaluator = WithAndWithoutNMS(evaluator=asked)
    evaluator.reset()
    assert evaluator.evaluate() is None and asked.times == 2


def test_the_nodes_for_configs_make_both_of_a_paper():
    nms = model_zoo.get_config("common/nms.py")
    cfg = OmegaConf.create(
        {
            "model": {"num_queries": 900, "postprocess": nms.postprocess, "soft": nms.soft_postprocess},
            "dataloader": {"test": {"dataset": {"names": NAME}}, "evaluator": nms.evaluator},
            "train": {"output_dir": "run"},
        },
        flags={"allow_objects": True},
    )
    assert innermost_evaluator(cfg).dataset_name == NAME
    assert innermost_evaluator(cfg).output_dir == "run/inference"
    own, soft = instantiate(cfg.model.postprocess), instantiate(cfg.model.soft)
    assert isinstance(own, ClassNMS) and (own.iou_threshold, own.ranking.num_detections) == (0.8, 300)
    assert isinstance(soft, ClassSoftNMS) and isinstance(soft.ranking, TopKDetections)
    assert (soft.iou_threshold, soft.min_score, soft.num_detections, soft.ranking.num_detections) == (
        0.8,
        1e-3,
        300,
        900,
    )


def test_the_evaluator_of_a_dataset_is_found_within_others_or_alone():
    wrapped = L(WithAndWithoutNMS)(evaluator=L(CocoEvaluator)(dataset_name=NAME))
    for node in (wrapped, wrapped.evaluator):
        cfg = OmegaConf.create({"dataloader": {"evaluator": node}}, flags={"allow_objects": True})
        assert innermost_evaluator(cfg).dataset_name == NAME
