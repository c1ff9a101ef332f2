"""A run whose model has NMS: both evaluations in its metrics, and its checkpoint finds the parts again."""

import json

from detectron2.config import instantiate

from dinox import Predictor, model_zoo
from dinox.config import load_config
from dinox.engine import train
from dinox.modeling import ClassNMS
from tests.engine.conftest import TINY_DINO_CONFIG


def test_a_run_is_evaluated_with_and_without_nms_and_its_checkpoint_detects_with_it(tmp_path):
    cfg, nms = load_config(TINY_DINO_CONFIG), model_zoo.get_config("common/nms.py")
    cfg.model.postprocess, cfg.dataloader.evaluator = nms.postprocess, nms.evaluator
    cfg.train.update(output_dir=str(tmp_path / "run"), max_iter=2, eval_period=0)
    cfg.train.matching_metrics.enabled = False
    results = train(cfg, console="off")
    assert results["bbox/AP"] == results["bbox/AP_wnms"] and "bbox/AP_wonms" in results
    assert "bbox/AP50_wonms" in (tmp_path / "run" / "metrics.json").read_text()
    written = json.loads((tmp_path / "run" / "inference" / "coco_instances_results.json").read_text())
    assert len(written) == results["detections/count"]
    predictor = Predictor(tmp_path / "run" / "model_final.pth", device="cpu", score_threshold=0.0)
    assert isinstance(predictor.detector.model.postprocess, ClassNMS)
    assert len(predictor(instantiate(cfg.dataloader.test.dataset)[0]["file_name"])) > 0
