"""Backbones. Those on timm's networks need timm (``pip install 'dinox[timm]'``)."""

from dinox.modeling.backbone.plain_vit import PlainViT
from dinox.modeling.backbone.resnet import build_resnet
from dinox.modeling.backbone.simple_feature_pyramid import SimpleFeaturePyramid, UpsampledFeaturePyramid
from dinox.modeling.backbone.swin import Swin
from dinox.modeling.backbone.timm_backbone import TimmBackbone
from dinox.modeling.backbone.vit_networks import build_eva02, build_vit

__all__ = [
    "PlainViT",
    "SimpleFeaturePyramid",
    "Swin",
    "TimmBackbone",
    "UpsampledFeaturePyramid",
    "build_eva02",
    "build_resnet",
    "build_vit",
]
