"""timm's plain vision transformers for ``PlainViT``: for any image size, without class token and classifier."""

from torch import nn

from dinox.utils.ranges import check_range
from dinox.utils.timm_library import import_timm

_FOR_MAPS = {"class_token": False, "global_pool": "", "num_classes": 0, "dynamic_img_size": True}


def build_vit(
    *,
    embed_dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    mlp_ratio: float = 4.0,
    patch_size: int = 16,
    position_grid: int = 14,
    drop_path: float = 0.1,
    layer_scale: float | None = None,
) -> nn.Module:
    """ViT (Dosovitskiy et al. 2021); defaults are ViT-B's.

    Pixels of most weights in timm (augreg) are RGB, mean and std 127.5; those of MAE, DeiT and DINOv2 are ImageNet's.

    Args:
        embed_dim, depth, num_heads: 1024, 24, 16 for ViT-L.
        mlp_ratio: hidden channels of a block's MLP, times its channels.
        patch_size: side of a patch in pixels, the stride of the map.
        position_grid: side of the learned map of position embeddings: that of pre-training's image over the patch's.
        drop_path: probability to skip the last block in training; grows linearly from 0 (stochastic depth).
        layer_scale: what the scales of residual branches begin with; None: there are none.
    """
    check_range("drop_path", drop_path, 0, 1)
    network = import_timm("timm.models.vision_transformer", purpose="ViT").VisionTransformer(
        img_size=position_grid * patch_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        init_values=layer_scale,
        drop_path_rate=drop_path,
        **_FOR_MAPS,
    )
    return _without_classifier(network)


def build_eva02(
    *,
    embed_dim: int = 1024,
    depth: int = 24,
    num_heads: int = 16,
    mlp_ratio: float = 8 / 3,
    mlp_norm: bool = True,
    fused_qkv: bool = False,
    patch_size: int = 16,
    position_grid: int = 16,
    rotary_grid: int = 16,
    drop_path: float = 0.4,
) -> nn.Module:
    """EVA-02: ViT with rotary embeddings, SwiGLU and a norm inside the MLP (Fang et al. 2023); defaults are its Large.

    Pixels are CLIP's: RGB, mean 122.771, 116.746, 104.094, std 68.501, 66.632, 70.323.

    Args:
        embed_dim, depth, num_heads: 768, 12, 12 for Base; 384, 12, 6 for Small; 192, 12, 3 for Tiny.
        mlp_norm: the norm inside the MLP; Small and Tiny have none.
        fused_qkv: one projection for query, key and value, as in Small and Tiny.
        position_grid: as in ``build_vit``; 32 for weights of 448 pixels and patches of 14.
        rotary_grid: side of the map whose coordinates rotary embeddings have; maps of other sizes are stretched to it.
        mlp_ratio, patch_size, drop_path: as in ``build_vit``.
    """
    check_range("drop_path", drop_path, 0, 1)
    network = import_timm("timm.models.eva", purpose="EVA-02").Eva(
        img_size=position_grid * patch_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        qkv_fused=fused_qkv,
        swiglu_mlp=True,
        scale_mlp=mlp_norm,
        use_rot_pos_emb=True,
        ref_feat_shape=(rotary_grid, rotary_grid),
        drop_path_rate=drop_path,
        **_FOR_MAPS,
    )
    return _without_classifier(network)


def _without_classifier(network: nn.Module) -> nn.Module:
    network.norm = network.fc_norm = nn.Identity()
    if not hasattr(network, "norm_pre"):  # EVA's of older versions of timm
        network.norm_pre = nn.Identity()
    return network
