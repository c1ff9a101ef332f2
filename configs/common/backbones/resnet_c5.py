"""ResNet-50 and one level: res5 (stride 32) through a 1x1 convolution without a norm (DETR, section 3.2).

``bottom_up.res5_dilation=2`` makes it DC5: stride 16.
"""

from detectron2.config import LazyCall as L

from dinox.modeling import ChannelMapper, build_resnet

backbone = L(ChannelMapper)(
    bottom_up=L(build_resnet)(
        depth=50,
        width=64,
        norm="FrozenBN",
        out_features=["res5"],
        freeze_at=1,  # the stem; the authors' own code freezes res2 as well (2)
        res5_dilation=1,
    ),
    embed_dim="${..embed_dim}",
    num_levels=1,
    norm="",
)
