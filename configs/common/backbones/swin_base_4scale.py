"""Swin-B with windows of 12 and four levels: res3 to res5 through the channel mapper, and one extra level."""

from .swin_large_4scale import backbone

backbone.bottom_up.update(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=12)
