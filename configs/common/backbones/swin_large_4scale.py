"""Swin-L with windows of 12 and four levels: res3 to res5 through the channel mapper, and one extra level (DINO,
appendix D.3)."""

from detectron2.config import LazyCall as L

from dinox.modeling import ChannelMapper, Swin

backbone = L(ChannelMapper)(
    bottom_up=L(Swin)(
        embed_dim=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        window_size=12,  # that of weights pre-trained at 384 pixels
        drop_path=0.2,
        out_features=["res3", "res4", "res5"],
        stage_norm="LN",
        norms="trained",
        freeze_at=0,
        gradient_checkpointing=False,
    ),
    embed_dim="${..embed_dim}",
    num_levels=4,
)
