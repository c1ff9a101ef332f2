"""Backbones on timm's networks, narrow and shallow."""

import inspect

from dinox.modeling import (
    PlainViT,
    SimpleFeaturePyramid,
    Swin,
    TimmBackbone,
    UpsampledFeaturePyramid,
    build_eva02,
    build_vit,
)

SWIN = {"embed_dim": 8, "depths": (1, 2, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4, "drop_path": 0.0}
VIT = {"embed_dim": 16, "depth": 3, "num_heads": 2, "position_grid": 3, "drop_path": 0.0}
CONVNEXT = {"model_name": "convnext_tiny", "options": {"depths": [1, 1, 2, 1], "dims": [8, 16, 16, 24]}}
RESNET = {"model_name": "resnet18", "options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}}
WINDOWS = {"window_size": 2, "global_blocks": (1,)}


def plain_vit(build, **options):
    """PlainViT around a narrow network; options of either."""
    own = {name: options.pop(name) for name in inspect.signature(PlainViT).parameters if name in options}
    return PlainViT(network=build(**{**VIT, **options}), **own)


def vit(**options):
    return plain_vit(build_vit, **options)


def eva02(**options):
    return plain_vit(build_eva02, **options)


def pyramid(bottom_up, **options):
    return SimpleFeaturePyramid(bottom_up=bottom_up(**{**WINDOWS, **options}), embed_dim=8)


def upsampled_pyramid(bottom_up, **options):
    return UpsampledFeaturePyramid(bottom_up=bottom_up(**WINDOWS), embed_dim=8, **options)


BUILDERS = {
    "swin": lambda: Swin(**SWIN, out_features=("res2", "res3", "res4", "res5")),
    "swin, checkpointing": lambda: Swin(**SWIN, gradient_checkpointing=True),
    "convnext": lambda: TimmBackbone(**CONVNEXT, stage_norm="LN"),
    "resnet": lambda: TimmBackbone(**RESNET),
    "vit": lambda: pyramid(vit),
    "vit, checkpointing": lambda: pyramid(vit, gradient_checkpointing=True, layer_scale=0.1),
    "eva02": lambda: pyramid(eva02),
    "eva02, upsampled": lambda: upsampled_pyramid(eva02),
    "eva02, small": lambda: pyramid(eva02, fused_qkv=True, mlp_norm=False, stage_norm="LN"),
}
