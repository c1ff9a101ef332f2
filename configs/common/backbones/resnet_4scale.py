"""ResNet-50 and four levels: res3 to res5 through the channel mapper, and one extra level (DINO, appendix D.3)."""

from detectron2.config import LazyCall as L

from dinox.modeling import ChannelMapper, build_resnet

backbone = L(ChannelMapper)(
    bottom_up=L(build_resnet)(
        depth=50,
        width=64,
        norm="FrozenBN",
        out_features=["res3", "res4", "res5"],
        freeze_at=1,  # the stem; the authors' own code freezes res2 as well (2)
    ),
    embed_dim="${..embed_dim}",
    num_levels=4,
)
