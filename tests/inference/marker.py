"""A detector that needs no training, so that tests can say where its boxes have to be: one box around all red pixels
(class "red") and one around all blue ones (class "blue"), of what it sees after resizing."""

from pathlib import Path

import numpy as np
import torch
from detectron2.config import LazyCall as L
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dinox.checkpoint import describe
from dinox.data import DetectionMapper, resize_augmentation

SCORES = {0: 0.9, 1: 0.5}
CLASS_NAMES = ["red", "blue"]


class MarkerDetector(nn.Module):
    """``batch_sizes``: of all calls so far."""

    def __init__(self, *, num_classes: int = 2, input_format: str = "RGB"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_classes))
        self.input_format = input_format
        self.batch_sizes: list[int] = []

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        assert not self.training
        self.batch_sizes.append(len(batched_inputs))
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, x: dict) -> Instances:
        image = x["image"].float()
        assert image.dim() == 3 and len(image) == 3 and x["image"].dtype == torch.uint8
        red, green, blue = image if self.input_format == "RGB" else image.flip(0)
        size = image.shape[1:]
        boxes, classes = [], []
        for index, (channel, other) in enumerate(((red, blue), (blue, red))):
            rows, columns = ((channel > 150) & (other < 100) & (green < 100)).nonzero(as_tuple=True)
            if len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                classes.append(index)
        found = Instances(size)
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.pred_classes = torch.tensor(classes, dtype=torch.int64)
        found.scores = torch.tensor([SCORES[index] for index in classes])
        return detector_postprocess(found, x["height"], x["width"])


def marker_config(*, short_edge: int = 64, input_format: str = "RGB") -> DictConfig:
    return OmegaConf.create(
        {
            "model": L(MarkerDetector)(num_classes=2, input_format=input_format),
            "dataloader": {
                "test": {
                    "mapper": L(DetectionMapper)(
                        is_train=False,
                        augmentations=L(resize_augmentation)(short_edge=short_edge, max_size=4 * short_edge),
                        image_format=input_format,
                    )
                }
            },
        },
        flags={"allow_objects": True},
    )


def write_checkpoint(path: Path, cfg: DictConfig | None = None, class_names=CLASS_NAMES) -> str:
    """A file as training writes it; without a config, as other programs do."""
    entry = {} if cfg is None else {"dinox": describe(cfg, class_names)}
    torch.save({"model": MarkerDetector().state_dict(), **entry}, path)
    return str(path)


def picture(*, height=60, width=80, red=None, blue=None) -> np.ndarray:
    """Gray, RGB, with filled rectangles (x0, y0, x1, y1)."""
    image = np.full((height, width, 3), 128, np.uint8)
    for box, colour in ((red, (255, 0, 0)), (blue, (0, 0, 255))):
        if box is not None:
            image[box[1] : box[3], box[0] : box[2]] = colour
    return image
