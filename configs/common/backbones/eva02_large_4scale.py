"""EVA-02 Large with attention in windows, and a simple feature pyramid of four levels (strides 8 to 64).

Its pixels are CLIP's: a config that takes it sets ``model.pixel_mean`` and ``model.pixel_std``, which are here too.
"""

from detectron2.config import LazyCall as L

from dinox.modeling import ChannelMapper, PlainViT, SimpleFeaturePyramid, build_eva02

backbone = L(ChannelMapper)(
    bottom_up=L(SimpleFeaturePyramid)(
        bottom_up=L(PlainViT)(
            network=L(build_eva02)(
                embed_dim=1024,
                depth=24,
                num_heads=16,
                mlp_ratio=8 / 3,
                patch_size=16,
                position_grid=16,
                rotary_grid=16,
                drop_path=0.3,
            ),
            window_size=16,
            global_blocks=[2, 5, 8, 11, 14, 17, 20, 23],
            freeze_at=0,
            gradient_checkpointing=False,
        ),
        embed_dim="${..embed_dim}",
        strides=[8, 16, 32, 64],
    ),
    embed_dim="${..embed_dim}",
    num_levels=4,
)

pixel_mean = [122.771, 116.746, 104.094]
pixel_std = [68.501, 66.632, 70.323]
