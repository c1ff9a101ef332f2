"""Evaluation on images that were fitted into squares and padded."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Instances

from dinox.data import DetectionMapper, load_dataset_dicts, resize_and_pad
from dinox.evaluation import evaluate_model
from dinox.model_zoo import get_config
from dinox.modeling.meta_arch.predictions import in_output_frames

from .coco_files import small_coco, write_coco

SIZE = 80


class Perfect(torch.nn.Module):
    """Detects what training would learn on the same squares."""

    def __init__(self, name: str):
        super().__init__()
        mapper = DetectionMapper(is_train=True, augmentations=resize_and_pad(size=SIZE))
        self.objects = {r["image_id"]: mapper(r)["instances"] for r in load_dataset_dicts(name, filter_empty=False)}

    def forward(self, inputs: list[dict]) -> list[dict]:
        found = []
        for x in inputs:
            assert x["image"].shape == (3, SIZE, SIZE)
            known = self.objects[x["image_id"]]
            fields = {"pred_boxes": known.gt_boxes.clone(), "pred_classes": known.gt_classes}
            found.append(Instances((SIZE, SIZE), scores=torch.ones(len(known)), **fields))
        return in_output_frames({"instances": found}, inputs)


def test_a_perfect_detector_scores_100(tmp_path, register):
    """Images of 64 x 48 pixels, so that a quarter of each square is padding."""
    name = register("to_pad", write_coco(tmp_path, small_coco()))
    cfg = get_config("common/data/coco_lsj")
    cfg.train = {"output_dir": str(tmp_path)}
    cfg.dataloader.train.mapper.augmentations.size = SIZE
    cfg.dataloader.test.dataset.names, cfg.dataloader.test.num_workers = name, 0
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    assert evaluate_model(Perfect(name), loader, evaluator)["bbox/AP"] == pytest.approx(100)
