"""Every detector learns: 8 images by heart in 150 steps. AP50 on the same images, by detectron2's COCO evaluator.

Small and narrow, so that one takes about half a minute of one core.
"""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator

from dinox.config import load_config
from dinox.data import DetectionMapper, register_shapes, resize_augmentation
from dinox.engine.optimizer import ClippedAdamW, get_optimizer_params

STEPS = 150
LR = 1e-3
BATCH = 4
DATASET = "test_overfit_shapes"
OVERRIDES = [
    "model.num_classes=6",
    "model.num_queries=40",
    "model.embed_dim=128",
    "model.encoder.num_layers=1",
    "model.encoder.num_heads=4",
    "model.encoder.feed_forward_dim=128",
    "model.decoder.num_layers=2",
    "model.query_groups.denoising.groups.num_queries=40",
    "model.backbone.bottom_up.depth=18",
    "model.backbone.bottom_up.width=32",
    "model.backbone.bottom_up.norm=BN",
    "model.backbone.bottom_up.freeze_at=0",
    "model.postprocess.num_detections=100",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """8 images of the embedded dataset, smaller than usual, with 2 to 4 objects each."""
    register_shapes(DATASET, seed=3, num_images=40, size=128, root=tmp_path_factory.mktemp("datasets"))
    chosen = [image for image in DatasetCatalog.get(DATASET) if 2 <= len(image["annotations"]) <= 4][:8]
    assert len(chosen) == 8
    yield chosen
    DatasetCatalog.remove(DATASET)


def overfit(config: str, images: list[dict]) -> float:
    """AP50 (percent) after training on ``images``."""
    torch.manual_seed(0)
    model = instantiate(load_config(config, OVERRIDES).model).train()
    params = get_optimizer_params(model, lr=LR, backbone_lr_factor=1.0)
    optimizer = ClippedAdamW(params, lr=LR, weight_decay=1e-4, max_grad_norm=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(STEPS * 0.8)], gamma=0.2)
    mapper = DetectionMapper(is_train=True, augmentations=resize_augmentation(short_edge=128))
    inputs = [mapper(dict(image)) for image in images]
    for step in range(STEPS):
        first = step * BATCH % len(inputs)
        losses = model(inputs[first : first + BATCH])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        scheduler.step()
    return average_precision(model, images)


def average_precision(model: torch.nn.Module, images: list[dict]) -> float:
    """AP50 (percent) on ``images`` alone, which are some of the dataset's."""
    mapper = DetectionMapper(is_train=False, augmentations=resize_augmentation(short_edge=128))
    evaluator = COCOEvaluator(DATASET, tasks=("bbox",), distributed=False)
    evaluator.reset()
    for image in images:
        inputs = [mapper(dict(image))]
        evaluator.process(inputs, model.eval()(inputs))
    return evaluator.evaluate(img_ids=[image["image_id"] for image in images])["bbox"]["AP50"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "config",
    [
        "dino/dino_r50_4scale_12ep",
        "dino/dino_r50_5scale_12ep",
        "dino/ablation_pure_selection",
        "dino/ablation_static_queries",
    ],
)
def test_detector_learns_eight_images_by_heart(config, images):
    assert overfit(config, images) > 90
