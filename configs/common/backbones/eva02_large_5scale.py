"""EVA-02 Large with attention in windows of 24 patches, and Co-DETR's feature pyramid of five levels (strides 4 to 64).

The numbers are those of Co-DETR's code, whose pixels are ImageNet's. Weights are pre-trained on 512 x 512 pixels.
"""

from detectron2.config import LazyCall as L

from dinox.modeling import PlainViT, UpsampledFeaturePyramid, build_eva02

backbone = L(UpsampledFeaturePyramid)(
    bottom_up=L(PlainViT)(
        network=L(build_eva02)(
            embed_dim=1024,
            depth=24,
            num_heads=16,
            mlp_ratio=8 / 3,
            patch_size=16,
            position_grid=32,
            rotary_grid=16,
            drop_path=0.4,
        ),
        window_size=24,
        global_blocks=[3, 7, 11, 15, 19, 23],
        freeze_at=0,
        gradient_checkpointing=True,
    ),
    embed_dim="${..embed_dim}",
    num_levels=5,
    finest_stride=4,
)
