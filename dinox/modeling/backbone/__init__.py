"""Backbones."""

from dinox.modeling.backbone.resnet import build_resnet

__all__ = ["build_resnet"]
