"""Any config of the zoo, small enough for a test: only overrides, so that the config's own parts are what is tested."""

import functools
from collections.abc import Sequence

import torch
from detectron2.config import instantiate
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, OmegaConf

from dinox.config import load_config
from dinox.modeling import DetectionTransformer, PlainViT, Swin, TimmBackbone, build_resnet
from dinox.structures import FeaturePyramid, Memory, flatten_pyramid

DINO = "dino/dino_r50_4scale_12ep"
RCNN = "dn_detr/dn_faster_rcnn_r50_fpn_1x"
SMALL_TRANSFORMER = [
    "model.embed_dim=32",
    "model.num_queries=20",
    "model.encoder.num_layers=2",
    "model.encoder.num_heads=4",
    "model.encoder.feed_forward_dim=64",
    "model.decoder.num_layers=3",
]
SMALL = ["model.backbone.bottom_up.depth=18", "model.backbone.bottom_up.width=16", *SMALL_TRANSFORMER]
SMALL_RCNN = [
    "model.proposal_generator.pre_nms_topk=[50,50]",
    "model.proposal_generator.post_nms_topk=[20,20]",
    "model.roi_heads.batch_size_per_image=16",
    "model.roi_heads.box_head.fc_dims=[32,32]",
    "model.roi_heads.box_predictor.test_score_thresh=0.0",  # untrained ones detect nothing above any other
]
_SMALL = {DetectionTransformer: SMALL_TRANSFORMER, GeneralizedRCNN: SMALL_RCNN}
_SMALL_BACKBONES = {
    build_resnet: ["depth=18", "width=16"],
    Swin: ["embed_dim=8", "depths=[1,1,2,1]", "num_heads=[1,1,2,2]", "window_size=3"],
    TimmBackbone: ["options.depths=[1,1,1,1]", "options.dims=[8,8,16,16]"],
    PlainViT: [
        *(f"network.{x}" for x in ("embed_dim=16", "depth=3", "num_heads=2")),
        "window_size=2",
        "global_blocks=[1]",
    ],
}


@functools.cache
def small_overrides(config: str) -> tuple[str, ...]:
    """What makes the model of a config small, by its meta-architecture and its backbone."""
    model = load_config(config).model
    key, backbone = "model.backbone", model.backbone
    while "bottom_up" in backbone:
        key, backbone = f"{key}.bottom_up", backbone.bottom_up
    of_backbone = _SMALL_BACKBONES.get(backbone["_target_"], [])
    return *(f"{key}.{override}" for override in of_backbone), *_SMALL[model["_target_"]], *_without_counts(model)


def _without_counts(model: DictConfig) -> list[str]:
    """The federated loss draws classes by counts in a dataset that is not here."""
    counts = "criterion.class_loss.image_counts"
    return [] if OmegaConf.select(model, counts) is None else [f"model.{counts}=null"]


def load_small(config: str = DINO, *overrides: str) -> DictConfig:
    """The config of a small model."""
    return load_config(config, [*small_overrides(config), *overrides])


def build_small(config: str = DINO, *overrides: str, seed: int = 0) -> torch.nn.Module:
    """A small model in training mode with seeded weights."""
    torch.manual_seed(seed)
    return instantiate(load_small(config, *overrides).model).train()


def make_input(height: int, width: int, num_objects: int, *, num_classes: int = 80, seed: int = 0) -> dict:
    """One element of detectron2's input list: noise with random boxes, which their masks fill."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_objects, 2, generator=generator) * 0.7
    size = torch.rand(num_objects, 2, generator=generator) * 0.25 + 0.05
    boxes = torch.cat([corner, corner + size], dim=1) * torch.tensor([width, height, width, height])
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes)
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    left, top, right, bottom = boxes[..., None, None].unbind(1)  # (M, 1, 1) each
    instances.gt_masks = BitMasks((x > left) & (x < right) & (y > top) & (y < bottom))
    instances.gt_classes = torch.randint(num_classes, (num_objects,), generator=generator)
    image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width, "file_name": f"{seed}.png"}


def make_memory(
    tokens: torch.Tensor, shapes: Sequence[tuple[int, int]] = ((1, 1),), valid_sizes: Sequence | None = None
) -> Memory:
    """tokens: (B, S, D), of levels with these (height, width); valid_sizes: B x L x (h, w), all of it by default."""
    pieces = tokens.split([h * w for h, w in shapes], dim=1)
    maps = [piece.transpose(1, 2).unflatten(2, size) for piece, size in zip(pieces, shapes, strict=True)]
    pyramid = FeaturePyramid(maps, valid_sizes or [list(shapes)] * len(tokens))
    return flatten_pyramid(pyramid, lambda level, mask: torch.zeros_like(pieces[level]))


def randomise_heads(model: torch.nn.Module) -> torch.nn.Module:
    """Heads start with zeros, so that boxes are anchors and scores the prior whatever the decoder does; undo that."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "class_head" in name or "box_head" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def loss_keys(num_layers: int = 3, *, groups: tuple[str, ...] = ("", "_dn"), encoder: bool = True) -> set[str]:
    """The stable loss keys of a model."""
    layers = ["", *(f"_{i}" for i in range(num_layers - 1))]
    suffixes = [group + layer for group in groups for layer in layers] + (["_enc"] if encoder else [])
    return {f"loss_{kind}{suffix}" for kind in ("class", "bbox", "giou") for suffix in suffixes}


def assert_trains_one_step(model: torch.nn.Module, inputs: list[dict]) -> dict[str, torch.Tensor]:
    """Finite losses, and a finite gradient on every trainable parameter (zero is fine)."""
    model.zero_grad()
    with EventStorage():  # detectron2's own models insist on one
        losses = model(inputs)
    sum(losses.values()).backward()
    for key, value in losses.items():
        assert value.dim() == 0 and torch.isfinite(value), (key, value)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} got no gradient"
            assert torch.isfinite(parameter.grad).all(), f"{name} got a gradient that is not finite"
    return losses
