"""The smallest DINO that has all parts: what torch.export traces in seconds."""

import detectron2.data.transforms as T
import torch

from ..small_models import DINO, build_small, randomise_heads

TINY = [
    "model.backbone.bottom_up.out_features=[res3]",
    "model.backbone.num_levels=2",
    "model.encoder.num_layers=1",
    "model.decoder.num_layers=2",
    "model.num_classes=5",
    "model.postprocess.num_detections=30",
]
"""Overrides after those of small_models.SMALL."""
ONE_LEVEL = "model.backbone.num_levels=1"
"""After those, for detectors that take no more."""

CLASS_NAMES = ("cat", "dog", "bird", "fish", "cow")
RESIZE = T.AugmentationList([T.ResizeShortestEdge((64,), 96, sample_style="choice")])


def build_tiny(*overrides: str, config: str = DINO) -> torch.nn.Module:
    """In evaluation mode, with weights that leave no part switched off."""
    model = randomise_heads(build_small(config, *TINY, *overrides)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return model


def make_images(*sizes: tuple[int, int], seed: int = 0) -> list[dict]:
    """Model inputs of these (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {"image": torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8), "height": 100, "width": 200}
        for size in sizes
    ]


def assert_same_detections(found: list[dict], expected: list[dict]) -> None:
    """Rank by rank: the scores of the tests' random models are far enough apart."""
    for one, other in zip(found, expected, strict=True):
        one, other = one["instances"], other["instances"]
        assert one.image_size == other.image_size and len(one) == len(other) > 0
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(one.pred_boxes.tensor, other.pred_boxes.tensor, atol=2e-2, rtol=0)  # pixels
        assert torch.equal(one.pred_classes, other.pred_classes)
