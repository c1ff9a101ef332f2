"""A detector that trains a step in a millisecond: for tests of everything around a model."""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F


class TinyDetector(nn.Module):
    """One box and one class per image from its mean features. ``min_score`` above 1 makes it detect nothing."""

    def __init__(self, *, num_classes: int, embed_dim: int = 8, min_score: float = 0.0, loss_weight: float = 1.0):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, embed_dim, 16, stride=16), nn.GroupNorm(2, embed_dim), nn.ReLU())
        self.box_head = nn.Linear(embed_dim, 4)
        self.class_head = nn.Linear(embed_dim, num_classes)
        self.min_score, self.loss_weight = min_score, loss_weight

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        device = self.box_head.weight.device
        features = [self.backbone(x["image"].to(device).float()[None] / 255).mean((2, 3)) for x in batched_inputs]
        features = torch.cat(features)
        boxes, logits = self.box_head(features).sigmoid(), self.class_head(features)
        if self.training:
            return self._losses(boxes.float(), logits.float(), [x["instances"].to(device) for x in batched_inputs])
        return [self._detections(*prediction) for prediction in zip(boxes, logits, batched_inputs)]

    def _losses(self, boxes: Tensor, logits: Tensor, instances: list[Instances]) -> dict[str, Tensor]:
        centers = torch.stack([x.gt_boxes.tensor.sum(0) / 200 / max(len(x), 1) for x in instances])
        classes = torch.stack(
            [F.one_hot(x.gt_classes, logits.shape[1]).amax(0) if len(x) else 0 * logits[0] for x in instances]
        )
        return {
            "loss_class": self.loss_weight * F.binary_cross_entropy_with_logits(logits, classes.to(logits)),
            "loss_bbox": self.loss_weight * F.l1_loss(boxes, centers),
        }

    def _detections(self, box: Tensor, logits: Tensor, x: dict) -> dict[str, Instances]:
        size = (x["height"], x["width"])
        score, label = logits.sigmoid().max(0)
        found = Instances(size)
        scale = torch.tensor([size[1], size[0], size[1], size[0]], device=box.device)
        found.pred_boxes = Boxes((torch.stack([box[0] * 0, box[1] * 0, box[2], box[3]]) * scale)[None])
        found.scores, found.pred_classes = score[None], label[None]
        return {"instances": found[found.scores > self.min_score]}
