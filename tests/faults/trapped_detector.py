"""A tiny detector for which some images are poison."""

from torch import nn

from tests.engine.tiny import TinyDetector


class Trap(nn.Module):
    """Passes on what it is given, or NaN where ``is_armed``."""

    is_armed = False

    def forward(self, x):
        return x * float("nan") if self.is_armed else x


class TrappedDetector(TinyDetector):
    """poison: ends of the names of images whose features become NaN. of_gradient: their losses are finite, and only the
    gradient of the features is not."""

    def __init__(self, *, num_classes: int, poison: list[str], of_gradient: bool = False):
        super().__init__(num_classes=num_classes)
        self.poison, self.of_gradient = tuple(poison), of_gradient
        self.trap = Trap()
        self.backbone.append(self.trap)

    def forward(self, batched_inputs):
        is_poisoned = any(x["file_name"].endswith(self.poison) for x in batched_inputs) if self.poison else False
        self.trap.is_armed = is_poisoned and not self.of_gradient
        losses = super().forward(batched_inputs)
        if self.training and is_poisoned and self.of_gradient:
            losses["loss_bbox"] = losses["loss_bbox"] + (self.box_head.weight.sum() * 0).sqrt()
        return losses
