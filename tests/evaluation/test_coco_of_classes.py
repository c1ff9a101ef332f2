"""AP of some classes only: those that a model with known objects is to detect."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

from dinox.data import DataError
from dinox.data.class_numbering import number_alike
from dinox.evaluation import CocoEvaluator

NAME = "own_evaluated"
IDS = {"cat": 2, "dog": 5, "eel": 9}  # numbered 0, 1, 2 by detectron2
BOX = [10.0, 10.0, 20.0, 20.0]


@pytest.fixture(autouse=True)
def dataset(tmp_path):
    """One image with an object of each class side by side."""
    objects = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": [30.0 * i, *BOX[1:]], "area": 400.0, "iscrowd": 0}
        for i, c in enumerate(IDS.values(), start=1)
    ]
    categories = [{"id": c, "name": name} for name, c in IDS.items()]
    image = {"id": 1, "file_name": "1.png", "height": 64, "width": 160}
    (tmp_path / "own.json").write_text(
        json.dumps({"images": [image], "annotations": objects, "categories": categories})
    )
    register_coco_instances(NAME, {}, str(tmp_path / "own.json"), str(tmp_path))
    DatasetCatalog.get(NAME)
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def evaluate(evaluator: CocoEvaluator, *classes: int) -> dict:
    """Detections of the three objects, in their order, as these classes."""
    boxes = Boxes(torch.tensor([[30.0 * i, 10, 30.0 * i + 20, 30] for i in (1, 2, 3)]))
    found = Instances((64, 160), pred_boxes=boxes, scores=torch.ones(3), pred_classes=torch.tensor(classes))
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


def test_other_classes_do_not_count():
    """The dog is taken for an eel: that costs half of AP over all classes, and nothing over cats."""
    assert evaluate(CocoEvaluator(NAME), 0, 2, 2)["AP"] == pytest.approx(100 * (1 + 0 + 0.5) / 3, abs=1)
    only = evaluate(CocoEvaluator(NAME, classes=[0]), 0, 2, 2)
    assert only["AP"] == pytest.approx(100)
    assert [name for name in only if name.startswith("AP-")] == []  # detectron2 lists the classes of several only
    assert evaluate(CocoEvaluator(NAME, classes=[1]), 0, 2, 2)["AP"] != pytest.approx(100)


def test_classes_keep_their_names():
    result = evaluate(CocoEvaluator(NAME, classes=[2, 0]), 0, 0, 1)
    assert {name for name in result if name.startswith("AP-")} == {"AP-cat", "AP-eel"}
    assert result["AP-cat"] > 0 and result["AP-eel"] == 0


def test_all_classes_are_the_same_as_none_named():
    plain, named = (evaluate(CocoEvaluator(NAME, **each), 0, 2, 1) for each in ({}, {"classes": [0, 1, 2]}))
    assert plain == pytest.approx(named, nan_ok=True)


def test_classes_follow_a_new_numbering():
    """A checkpoint whose model numbers the classes otherwise; datasets are renumbered after the evaluator is built."""
    evaluator = CocoEvaluator(NAME, classes=[0, 1])
    number_alike(NAME, [], ["eel", "dog", "cat"])
    result = evaluate(evaluator, 2, 1, 0)  # all right
    assert {name: result[name] for name in result if name.startswith("AP-")} == pytest.approx(
        {"AP-dog": 100, "AP-eel": 100}
    )


@pytest.mark.parametrize("classes", [[3], [-1], [], ["cat"]])
def test_classes_that_are_not_there_are_an_error(classes):
    with pytest.raises(DataError, match=r"dataloader\.evaluator\.classes: expected class indices from 0 to 2"):
        CocoEvaluator(NAME, classes=classes)
