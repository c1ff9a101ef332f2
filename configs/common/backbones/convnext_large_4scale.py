"""ConvNeXt-L and four levels: res3 to res5 through the channel mapper, and one extra level."""

from detectron2.config import LazyCall as L

from dinox.modeling import ChannelMapper, TimmBackbone

backbone = L(ChannelMapper)(
    bottom_up=L(TimmBackbone)(
        model_name="convnext_large",
        options={"depths": [3, 3, 27, 3], "dims": [192, 384, 768, 1536]},  # of timm's ConvNeXt
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
