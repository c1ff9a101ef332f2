"""The report of detections, against counts by hand."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from PIL import Image

from dinox.evaluation import CocoEvaluator, WithAndWithoutNMS, detection_report
from dinox.evaluation.detection_matches import ClassMatches, count_duplicates, sweep
from dinox.structures import BEFORE_NMS

NAME = "own_reported"
LEFT, RIGHT, CROWD, NOWHERE = [0, 0, 20, 20], [40, 0, 60, 20], [0, 40, 60, 60], [70, 0, 90, 20]
LEFT_AGAIN = [2, 0, 22, 20]  # IoU 18 / 22 with LEFT
HALF_LEFT = [6, 0, 26, 20]  # IoU 14 / 26 with LEFT, and 16 / 24 with LEFT_AGAIN
CLASSES = ("cat", "dog", "eel")


@pytest.fixture(autouse=True)
def dataset(tmp_path):
    """Two cats and a crowd of them in the first image; a dog in the second; no eel."""
    objects = [(1, 1, LEFT, 0), (1, 1, RIGHT, 0), (1, 1, CROWD, 1), (2, 2, LEFT, 0)]
    annotations = [
        {
            "id": i,
            "image_id": image,
            "category_id": category,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": crowd,
        }
        for i, (image, category, (x0, y0, x1, y1), crowd) in enumerate(objects, start=1)
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 96} for i in (1, 2)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
    }
    (tmp_path / "own.json").write_text(json.dumps(content))
    register_coco_instances(NAME, {}, str(tmp_path / "own.json"), str(tmp_path))
    DatasetCatalog.get(NAME)
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture(autouse=True)
def drawing(monkeypatch):
    """Nothing is drawn, which takes a while, unless a test undoes this."""
    with monkeypatch.context() as patch:
        for name in ("draw_curves", "draw_scores", "draw_class_aps"):
            patch.setattr(detection_report, name, lambda *_: None)
        yield patch


def found(*detections: tuple[list[int], float, int]) -> Instances:
    boxes, scores, classes = zip(*detections, strict=True) if detections else ([], [], [])
    return Instances(
        (64, 96),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )


CATS = [(LEFT, 0.875, 0), (LEFT_AGAIN, 0.75, 0), (CROWD, 0.6875, 0), (RIGHT, 0.625, 0), (NOWHERE, 0.5, 0)]


def report(tmp_path, first: Instances, second: Instances | None = None, **options) -> dict:
    evaluator = CocoEvaluator(NAME, report_dir=str(tmp_path / "report"), **options)
    evaluator.reset()
    outputs = [{"instances": each} for each in (first, found() if second is None else second)]
    evaluator.process([{"image_id": 1}, {"image_id": 2}], outputs)
    results = evaluator.evaluate()["bbox"]
    return json.loads((tmp_path / "report" / "report.json").read_text()) | {"results": results}


def test_the_best_f1_of_a_class_is_that_of_counting_by_hand(tmp_path):
    """From 0.875 down: right, wrong, (of the crowd: neither), right, wrong; of two cats."""
    cat = report(tmp_path, found(*CATS))["classes"][0]
    assert (cat["class"], cat["objects"], cat["detections"]) == ("cat", 2, 4)
    assert cat["best_f1"] == {"score": 0.625, "precision": 2 / 3, "recall": 1.0, "f1": pytest.approx(0.8)}


def test_one_score_for_all_classes_counts_their_detections_together(tmp_path):
    """A dog at 0.25 as well: at 0.625 2 right of 3, of 3 objects; at 0.25 3 right of 5."""
    best = report(tmp_path, found(*CATS), found((LEFT, 0.25, 1)))["best_f1"]
    assert best == {"score": 0.25, "precision": 0.6, "recall": 1.0, "f1": pytest.approx(0.75)}


def test_duplicates_and_objects_found_twice_are_those_counted_by_hand(tmp_path):
    duplicates = {each["score"]: each for each in report(tmp_path, found(*CATS))["duplicates"]}
    assert sorted(duplicates) == [0.05, 0.1, 0.3, 0.5, 0.625]
    assert duplicates[0.625] == {
        "score": 0.625,
        "detections": 3,
        "duplicates": 1,
        "duplicate_rate": 1 / 3,
        "objects_found": 2,
        "objects_found_twice": 1,
        "found_twice_rate": 0.5,
    }
    assert duplicates[0.5]["detections"] == 4 and duplicates[0.5]["duplicate_rate"] == 0.25


def test_a_second_detection_of_an_object_need_not_be_a_duplicate(tmp_path):
    """It lies on the object by more than 0.5, and on the better detection by less than 0.7."""
    duplicates = report(tmp_path, found((LEFT_AGAIN, 0.75, 0), (HALF_LEFT, 0.5, 0)))["duplicates"][0]
    assert (duplicates["duplicates"], duplicates["objects_found"], duplicates["objects_found_twice"]) == (0, 1, 1)


@pytest.mark.parametrize("other", [(LEFT, 0.5, 1), (NOWHERE, 0.5, 0)], ids=["another class", "another place"])
def test_what_is_no_duplicate(tmp_path, other):
    duplicates = report(tmp_path, found((LEFT, 0.75, 0), other))["duplicates"][0]
    assert (duplicates["detections"], duplicates["duplicates"], duplicates["objects_found_twice"]) == (2, 0, 0)


def test_the_same_place_in_another_image_is_no_duplicate(tmp_path):
    duplicates = report(tmp_path, found((LEFT, 0.75, 0)), found((LEFT, 0.5, 0)))["duplicates"][0]
    assert (duplicates["duplicates"], duplicates["objects_found_twice"]) == (0, 0)


def test_equal_scores_are_kept_or_left_out_together():
    matches = ClassMatches(
        scores=np.array([0.5, 0.5, 0.25]),
        right=np.array([True, False, True]),
        duplicate=np.zeros(3, dtype=bool),
        found=np.array([0.5, 0.25]),
        found_again=np.array([-1.0, -1.0]),
    )
    curve = sweep(matches)
    assert curve.scores.tolist() == [0.5, 0.25]
    assert curve.precision.tolist() == [0.5, 2 / 3] and curve.recall.tolist() == [0.5, 1.0]
    assert curve.best().score == 0.25
    assert count_duplicates(matches, score=0.5).detections == 2


def test_aps_are_the_evaluators_and_a_class_without_objects_has_none(tmp_path):
    written = report(tmp_path, found(*CATS), found((LEFT_AGAIN, 0.25, 1), (LEFT, 0.125, 2)))
    cat, dog, eel = written["classes"]
    assert (cat["AP"], dog["AP"]) == pytest.approx((written["results"]["AP-cat"], written["results"]["AP-dog"]))
    assert cat["AP50"] > 80 and dog["AP50"] == pytest.approx(100)
    assert (eel["AP"], eel["objects"], eel["detections"], eel["best_f1"]["f1"]) == (None, 0, 1, 0)
    curves = written["precision_recall"]
    assert len(curves["recall"]) == 101 and np.shape(curves["precision"]) == (10, 101)
    # The mean over classes with objects and over all IoUs and recalls is AP.
    assert 100 * np.mean(curves["precision"]) == pytest.approx(written["results"]["AP"])
    assert curves["precision_of_classes_at_iou_50"]["cat"][100] == pytest.approx(2 / 3)


def test_there_are_pictures_also_of_next_to_nothing(tmp_path, drawing):
    drawing.undo()
    for first in (found(*CATS), found((NOWHERE, 0.5, 2))):
        report(tmp_path, first)
        for name in ("precision_recall", "scores", "classes"):
            with Image.open(tmp_path / "report" / f"{name}.png") as picture:
                assert picture.width > 300 and len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_classes_that_do_not_count_are_not_in_it(tmp_path):
    written = report(tmp_path, found(*CATS), found((LEFT, 0.25, 1)), classes=[1])
    assert [each["class"] for each in written["classes"]] == ["dog"]
    assert written["best_f1"] == {"score": 0.25, "precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_with_nms_it_is_of_the_models_own_detections(tmp_path):
    evaluator = WithAndWithoutNMS(evaluator=CocoEvaluator(NAME, report_dir=str(tmp_path / "report")))
    evaluator.reset()
    own, before = found((LEFT, 0.875, 0)), found((LEFT, 0.875, 0), (LEFT_AGAIN, 0.75, 0))
    evaluator.process([{"image_id": 1}], [{"instances": own, BEFORE_NMS: before}])
    evaluator.evaluate()
    assert json.loads((tmp_path / "report" / "report.json").read_text())["detections"] == 1


def test_without_a_folder_there_is_none(tmp_path):
    evaluator = CocoEvaluator(NAME, output_dir=str(tmp_path / "out"))
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found(*CATS)}])
    evaluator.evaluate()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["coco_instances_results.json"]
