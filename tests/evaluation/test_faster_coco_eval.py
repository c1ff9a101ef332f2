"""The evaluation's inner loops are faster-coco-eval's where it is installed."""

import importlib.machinery
import sys
import types

import pytest
from pycocotools.cocoeval import COCOeval

from dinox.evaluation import CocoEvaluator
from dinox.evaluation.coco_scoring import fast_implementation
from tests.evaluation import synthetic
from tests.evaluation.synthetic import NAME, process, same


@pytest.fixture
def pairs(tmp_path):
    synthetic.register(tmp_path)
    yield synthetic.detections(tmp_path)
    synthetic.unregister()


def test_faster_coco_eval_gives_the_same_numbers(pairs):
    pytest.importorskip(
        "faster_coco_eval", reason="faster-coco-eval is not installed: pip install 'dinox[faster-eval]'"
    )
    assert fast_implementation().__module__.startswith("faster_coco_eval")
    for options in ({}, {"max_dets_per_image": 7}):
        fast, official = (
            process(CocoEvaluator(NAME, use_fast_impl=fast, **options), pairs).evaluate()["bbox"]
            for fast in (True, False)
        )
        # Sums of the same numbers in another order: they differ by some 1e-15.
        assert fast == pytest.approx(official, abs=1e-12, nan_ok=True)


@pytest.fixture
def stand_in(monkeypatch):
    """A module of that name, whose evaluation is COCO's."""

    class COCOeval_faster(COCOeval):
        runs = 0

        def evaluate(self):
            type(self).runs += 1
            super().evaluate()

    module = types.ModuleType("faster_coco_eval")
    module.__spec__ = importlib.machinery.ModuleSpec("faster_coco_eval", loader=None)
    module.COCOeval_faster = COCOeval_faster
    monkeypatch.setitem(sys.modules, "faster_coco_eval", module)
    return COCOeval_faster


def test_faster_coco_eval_is_used_where_it_is_installed_and_wanted(pairs, stand_in):
    result = process(CocoEvaluator(NAME), pairs).evaluate()["bbox"]
    assert stand_in.runs == 1
    official = process(CocoEvaluator(NAME, use_fast_impl=False), pairs).evaluate()["bbox"]
    assert stand_in.runs == 1 and same(result, official)
