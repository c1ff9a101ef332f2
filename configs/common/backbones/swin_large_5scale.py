"""Swin-L and five levels: res2 as well (DINO, appendix D.3)."""

from .swin_large_4scale import backbone

backbone.bottom_up.out_features = ["res2", "res3", "res4", "res5"]
backbone.num_levels = 5
