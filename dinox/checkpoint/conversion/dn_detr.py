"""Names of DN-DETR's authors (IDEA-Research), which are DAB-DETR's.

Class rows are those of their DINO (see :mod:`dinox.checkpoint.conversion.dino`), but the label embedding's last row is
used: matching queries start as the unknown class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from dinox.checkpoint.conversion import dino
from dinox.checkpoint.conversion.backbones import torchvision_resnet
from dinox.checkpoint.conversion.dab_detr import (
    CONDITIONAL_DECODER,
    DEFORMABLE_DECODER,
    DENSE_ENCODER_SCALE,
    POSITION_HEAD,
    anchors_and_patterns,
)
from dinox.checkpoint.conversion.deformable_detr import (
    DECODER_LAYER,
    ENCODER_LAYER,
    LABELS,
    LAYER_HEADS,
    SHARED_HEADS,
    SHARED_HEADS_IN_DECODER,
    heads_in_decoder,
)
from dinox.checkpoint.conversion.rules import Rename, Rule

_PROJECTIONS = {
    "self_attention": {
        "sa_qcontent_proj": "content_query",
        "sa_qpos_proj": "position_query",
        "sa_kcontent_proj": "content_key",
        "sa_kpos_proj": "position_key",
        "sa_v_proj": "value",
        "self_attn.out_proj": "output",
    },
    "cross_attention": {
        "ca_qcontent_proj": "content_query",
        "ca_qpos_proj": "position_query",
        "ca_qpos_sine_proj": "place_query",
        "ca_kcontent_proj": "content_key",
        "ca_kpos_proj": "position_key",
        "ca_v_proj": "value",
        "cross_attn.out_proj": "output",
        # To several levels, each attended to apart: projected, then mixed, which is the same as the other way round.
        "ca_out_v_proj": "output",
        "lvl_attn": "level_weights",
    },
}
_NORMS = {"norm1": "self_attention_norm", "norm2": "cross_attention_norm", "norm3": "feed_forward_norm"}

_DENSE_DECODER: Sequence[Rule] = (
    *(
        Rename(f"{DECODER_LAYER}{theirs}.{{affine}}", f"decoder.layers.{{i}}.{attention}.{ours}.{{affine}}")
        for attention, projections in _PROJECTIONS.items()
        for theirs, ours in projections.items()
    ),
    *(
        Rename(f"{DECODER_LAYER}{theirs}.{{affine}}", f"decoder.layers.{{i}}.{ours}.{{affine}}")
        for theirs, ours in _NORMS.items()
    ),
    *dino.FEED_FORWARDS,
    *CONDITIONAL_DECODER,
    POSITION_HEAD,
    Rename("transformer.decoder.norm.{affine}", "decoder.norm.{affine}"),
)

_ENCODER: Sequence[Rule] = (
    *dino.ENCODER_LAYERS,
    Rename(ENCODER_LAYER + "self_attn.{attention}", "encoder.layers.{i}.self_attention.attention.{attention}"),
    DENSE_ENCODER_SCALE,
    dino.LEVELS,
)


def dense_decoder_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """Of DN-DETR, with an encoder of either kind."""
    return (
        *_backbone(weights),
        *_ENCODER,
        *_DENSE_DECODER,
        *anchors_and_patterns(weights, "refpoint_embed.weight"),
        *SHARED_HEADS,
        SHARED_HEADS_IN_DECODER,
        Rename("label_enc.weight", "query_groups.label_embedding.table.weight"),
    )


def deformable_decoder_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """Of DN-Deformable-DETR, whose heads are separate by layer."""
    return (
        *_backbone(weights),
        *_ENCODER,
        *dino.DECODER_LAYERS,
        *DEFORMABLE_DECODER,
        *LAYER_HEADS,
        *heads_in_decoder(weights),
        LABELS,
    )


def _backbone(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """Neck included: one convolution without a norm, or one with a norm for every level."""
    single_level = Rename("input_proj.{affine}", "backbone.convs.0.conv.{affine}")
    return (*torchvision_resnet("backbone.0.body."), *(dino.neck(weights) or [single_level]))
