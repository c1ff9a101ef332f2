"""Swin-S with windows of 7 and four levels: res3 to res5 through the channel mapper, and one extra level."""

from .swin_large_4scale import backbone

backbone.bottom_up.update(embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], window_size=7)
