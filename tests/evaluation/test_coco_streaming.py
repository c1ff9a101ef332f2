"""CocoEvaluator gives detectron2's numbers without holding the detections."""

import json
import sys
import tracemalloc

import pytest
import torch
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from dinox.data import DataError
from dinox.evaluation import CocoEvaluator, coco_scoring
from tests.evaluation import synthetic
from tests.evaluation.synthetic import NAME, process, same

PICKLE, JSON = "instances_predictions.pth", "coco_instances_results.json"


@pytest.fixture(autouse=True)
def without_faster_coco_eval(monkeypatch):
    """Whose numbers differ by the last bit, from another order of additions; see test_faster_coco_eval.py."""
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)


@pytest.fixture
def pairs(tmp_path):
    synthetic.register(tmp_path)
    yield synthetic.detections(tmp_path)
    synthetic.unregister()


@pytest.mark.parametrize("portion", [1, 150, 10**9], ids=["class by class", "some classes", "all at once"])
@pytest.mark.parametrize("options", [{}, {"max_dets_per_image": 7}, {"use_fast_impl": False}], ids=str)
def test_numbers_and_json_are_detectron2s_to_the_last_digit(pairs, tmp_path, monkeypatch, options, portion):
    monkeypatch.setattr(coco_scoring, "_PORTION", portion)
    ours, theirs = (
        process(kind(NAME, output_dir=str(tmp_path / kind.__name__), **options), pairs).evaluate()
        for kind in (CocoEvaluator, COCOEvaluator)
    )
    assert same(ours["bbox"], theirs["bbox"]) and 5 < ours["bbox"]["AP"] < 95
    assert {"APs", "APm", "APl", "AP-kind 7"} <= ours["bbox"].keys()
    written, expected = ((tmp_path / kind / JSON).read_bytes() for kind in ("CocoEvaluator", "COCOEvaluator"))
    assert written == expected
    assert not (tmp_path / "CocoEvaluator" / PICKLE).exists()


def test_only_some_images_may_count(pairs):
    some = [pairs[0][0]["image_id"], pairs[5][0]["image_id"]]
    ours, theirs = (process(kind(NAME), pairs).evaluate(some)["bbox"] for kind in (CocoEvaluator, COCOEvaluator))
    assert same(ours, theirs)
    assert not same(ours, process(CocoEvaluator(NAME), pairs).evaluate()["bbox"])


def test_evaluating_again_counts_nothing_twice(pairs):
    evaluator = process(CocoEvaluator(NAME), pairs[:6])
    first = evaluator.evaluate()["bbox"]
    assert same(first, evaluator.evaluate()["bbox"])  # what was read is still there
    for x, output in pairs[6:]:
        evaluator.process([x], [output])
    assert same(evaluator.evaluate()["bbox"], process(COCOEvaluator(NAME), pairs).evaluate()["bbox"])
    assert same(first, process(evaluator, pairs[:6]).evaluate()["bbox"])


def test_ranks_are_gathered_on_the_first(pairs, monkeypatch):
    first, second = (process(CocoEvaluator(NAME), half) for half in (pairs[:5], pairs[5:]))
    others = second._store.read()
    monkeypatch.setattr(comm, "gather", lambda own, dst: [own, others])
    assert same(first.evaluate()["bbox"], process(COCOEvaluator(NAME, distributed=False), pairs).evaluate()["bbox"])
    monkeypatch.setattr(comm, "gather", lambda own, dst: [])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert second.evaluate() == {}


def test_masks_go_detectron2s_way(pairs):
    """Their AP is its alone, and boxes from before the first mask are not lost."""

    def with_masks(pair):
        found = pair[1]["instances"]
        masked = Instances(found.image_size, **found.get_fields(), pred_masks=torch.ones(len(found), 240, 320) > 0)
        return pair[0], {"instances": masked}

    mixed = [*pairs[:2], *map(with_masks, pairs[2:])]
    ours, theirs = (process(kind(NAME, ["bbox"]), mixed).evaluate()["bbox"] for kind in (CocoEvaluator, COCOEvaluator))
    assert same(ours, theirs)
    evaluator = process(CocoEvaluator(NAME), mixed)
    assert len(evaluator._store) == 2 and len(evaluator._predictions) == len(pairs) - 2
    evaluator._tasks = ["bbox"]  # the json has no masks: only the boxes can be scored
    assert same(evaluator.evaluate()["bbox"], theirs)


def test_without_detections_or_images_it_is_as_in_detectron2(pairs):
    nothing = [(x, {"instances": output["instances"][:0]}) for x, output in pairs]
    ours, theirs = (process(kind(NAME), nothing).evaluate() for kind in (CocoEvaluator, COCOEvaluator))
    assert same(ours["bbox"], theirs["bbox"])
    assert process(CocoEvaluator(NAME), []).evaluate() == {}


def test_detections_of_another_dataset_are_refused(pairs):
    with pytest.raises(DataError, match="image_id 999"):
        process(CocoEvaluator(NAME), [({"image_id": 999}, pairs[0][1])]).evaluate()
    pairs[0][1]["instances"].pred_classes[0] = 4
    with pytest.raises(DataError, match=r"class 4 .* has 4 classes"):
        process(CocoEvaluator(NAME), pairs).evaluate()


# ----------------------------------------------------------------------------------------------------------- memory


def growth(evaluator, *, images: int) -> int:
    """Bytes that are held after so many images more, of 300 detections each."""
    generator = torch.Generator().manual_seed(0)
    found = Instances(
        (240, 320),
        pred_boxes=Boxes(torch.rand(300, 4, generator=generator)),
        scores=torch.rand(300, generator=generator),
        pred_classes=torch.arange(300) % 4,
    )
    evaluator.reset()
    evaluator.process([{"image_id": 5}], [{"instances": found}])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for image_id in range(images):
        evaluator.process([{"image_id": image_id}], [{"instances": found}])
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return held


def test_memory_is_flat_over_5000_images(pairs):
    """Python's and numpy's. Dictionaries take some 200 kB of an image; here it is the image's id and a count."""
    assert growth(CocoEvaluator(NAME), images=5000) < 1_000_000
    assert growth(COCOEvaluator(NAME), images=20) > 2_000_000  # or this test would not see detections at all


def test_scoring_holds_one_portion_of_the_classes(pairs, monkeypatch):
    def peak(portion: int) -> int:
        monkeypatch.setattr(coco_scoring, "_PORTION", portion)
        evaluator = process(CocoEvaluator(NAME, use_fast_impl=False), pairs)
        tracemalloc.start()
        evaluator.evaluate()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    detections = sum(len(output["instances"]) for _, output in pairs)
    # Of four classes three wait in the store. pycocotools takes about 1 kB for a detection.
    assert peak(10**9) - peak(1) > 500 * 3 / 4 * detections


def test_results_are_json_also_where_there_are_none(pairs, tmp_path):
    process(CocoEvaluator(NAME, output_dir=str(tmp_path / "out")), pairs[3:4]).evaluate()
    assert json.loads((tmp_path / "out" / JSON).read_text()) == []
