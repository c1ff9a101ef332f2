"""detrex's names: one table for each of its detectors, of rules that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dinox.checkpoint.conversion.backbones import detectron2_resnet, torchvision_resnet
from dinox.checkpoint.conversion.dab_detr import (
    CONDITIONAL_DECODER,
    DEFORMABLE_DECODER,
    DENSE_ENCODER_SCALE,
    POSITION_HEAD,
    anchors_and_patterns,
)
from dinox.checkpoint.conversion.deformable_detr import (
    DECODER_LAYER,
    DINO_PARTS,
    ENCODER_LAYER,
    LAYER_HEADS,
    PROPOSALS,
    SHARED_HEADS,
    SHARED_HEADS_IN_DECODER,
    encoder_heads,
    heads_in_decoder,
    queries,
)
from dinox.checkpoint.conversion.rules import Constant, Duplicate, Ignore, Rename, Rule
from dinox.checkpoint.conversion.transformers import swin, swin_norms
from dinox.losses.softmax import BACKGROUND_WEIGHT

_CONSTANTS: Sequence[Rule] = (
    Ignore("pixel_mean", "a constant, which the config has"),
    Ignore("pixel_std", "a constant, which the config has"),
)


def _make_class_weights(weights: Mapping[str, Tensor]) -> Tensor:
    """(K + 1,): the weight of every class in DETR's loss, last that of "no object"."""
    weight = torch.ones_like(weights["heads.class_heads.0.bias"])
    weight[-1] = BACKGROUND_WEIGHT
    return weight


_BACKBONE: Sequence[Rule] = (*detectron2_resnet("backbone."), *swin("backbone."), *swin_norms("backbone."))

_NECK: Sequence[Rule] = tuple(
    Rename(f"neck.{convs}.{{i}}.{part}.{{affine}}", f"backbone.{convs}.{{i}}.{part}.{{affine}}")
    for convs in ("convs", "extra_convs")
    for part in ("conv", "norm")
)

# ------------------------------------------------------------------------------------------------------ transformer
# layers


def _layer_frame(theirs: str, ours: str, attentions: Sequence[str]) -> list[Rule]:
    """Norms and feed-forward of a layer, whatever its attentions (in their order) are."""
    frame: list[Rule] = [
        Rename(f"{theirs}norms.{index}.{{affine}}", f"{ours}{name}_norm.{{affine}}")
        for index, name in enumerate([*attentions, "feed_forward"])
    ]
    return [
        *frame,
        Rename(theirs + "ffns.0.layers.0.0.{affine}", ours + "feed_forward.expand.{affine}"),
        Rename(theirs + "ffns.0.layers.1.{affine}", ours + "feed_forward.contract.{affine}"),
        # PReLU is registered twice.
        Rename(theirs + "ffns.0.activation.weight", ours + "feed_forward.activation.weight"),
        Duplicate(theirs + "ffns.0.layers.0.1.weight", of=theirs + "ffns.0.activation.weight"),
    ]


_OUR_ENCODER_LAYER, _OUR_DECODER_LAYER = "encoder.layers.{i}.", "decoder.layers.{i}."
_ENCODER_FRAME = _layer_frame(ENCODER_LAYER, _OUR_ENCODER_LAYER, ["self_attention"])
_DECODER_FRAME = _layer_frame(DECODER_LAYER, _OUR_DECODER_LAYER, ["self_attention", "cross_attention"])
_DENSE_SELF_ATTENTION = Rename(
    DECODER_LAYER + "attentions.0.attn.{attention}", _OUR_DECODER_LAYER + "self_attention.attention.{attention}"
)

_DENSE_ENCODER: Sequence[Rule] = (
    Rename(
        ENCODER_LAYER + "attentions.0.attn.{attention}", _OUR_ENCODER_LAYER + "self_attention.attention.{attention}"
    ),
    DENSE_ENCODER_SCALE,
    *_ENCODER_FRAME,
)
_DENSE_DECODER: Sequence[Rule] = (
    _DENSE_SELF_ATTENTION,
    Rename(
        DECODER_LAYER + "attentions.1.attn.{attention}", _OUR_DECODER_LAYER + "cross_attention.attention.{attention}"
    ),
    *_DECODER_FRAME,
)
_CONDITIONAL_PROJECTIONS = {
    "query_content_proj": "content_query",
    "query_pos_proj": "position_query",
    "query_pos_sine_proj": "place_query",
    "key_content_proj": "content_key",
    "key_pos_proj": "position_key",
    "value_proj": "value",
    "out_proj": "output",
}
_CONDITIONAL_DECODER: Sequence[Rule] = (
    *(
        Rename(
            f"{DECODER_LAYER}attentions.{index}.{theirs}.{{affine}}",
            f"{_OUR_DECODER_LAYER}{attention}.{ours}.{{affine}}",
        )
        for index, attention in enumerate(["self_attention", "cross_attention"])
        for theirs, ours in _CONDITIONAL_PROJECTIONS.items()
    ),
    *CONDITIONAL_DECODER,
    *_DECODER_FRAME,
)
DEFORMABLE_LAYERS: Sequence[Rule] = (
    Rename(ENCODER_LAYER + "attentions.0.{deformable}", _OUR_ENCODER_LAYER + "self_attention.{deformable}"),
    *_ENCODER_FRAME,
    _DENSE_SELF_ATTENTION,
    Rename(DECODER_LAYER + "attentions.1.{deformable}", _OUR_DECODER_LAYER + "cross_attention.{deformable}"),
    *_DECODER_FRAME,
    Rename("transformer.level_embeds", "memory_builder.level_embeddings"),
)

# ------------------------------------------------------------------------------------------------ detectors with one
# level

_SINGLE_LEVEL: Sequence[Rule] = (
    *_BACKBONE,
    Rename("input_proj.{affine}", "backbone.convs.0.conv.{affine}"),
    *_DENSE_ENCODER,
    Rename("transformer.decoder.post_norm_layer.{affine}", "decoder.norm.{affine}"),
    Rename("query_embed.weight", "query_groups.matching.anchors.embedding.weight"),
    *SHARED_HEADS,
    *_CONSTANTS,
)


def detr_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    class_weights = Constant("criterion.empty_weight", "a constant, which the config has", _make_class_weights)
    return (*_SINGLE_LEVEL, *_DENSE_DECODER, class_weights)


def conditional_detr_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    points = Rename(
        "transformer.decoder.ref_point_head.layers.{i}.{affine}",
        "query_groups.matching.anchors.point_head.layers.{i}.{affine}",
    )
    return (*_SINGLE_LEVEL, *_CONDITIONAL_DECODER, points)


def dab_detr_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """Of DAB-DETR, with patterns or without, and of DN-DETR."""
    return (
        *_SINGLE_LEVEL,
        *_CONDITIONAL_DECODER,
        POSITION_HEAD,
        SHARED_HEADS_IN_DECODER,
        *anchors_and_patterns(weights, "anchor_box_embed.weight"),
        Rename("denoising_generator.label_encoder.weight", "query_groups.label_embedding.table.weight"),
    )


def anchor_detr_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """detrex keeps the names of Anchor DETR's authors."""
    encoder, decoder = "transformer.encoder_layers.{i}.", "transformer.decoder_layers.{i}."
    rules = [*torchvision_resnet("backbone.body.")]
    for theirs, ours, row_column in (
        (encoder + "self_attn.", _OUR_ENCODER_LAYER + "self_attention.", True),
        (decoder + "cross_attn.", _OUR_DECODER_LAYER + "cross_attention.", True),
        (decoder + "self_attn.", _OUR_DECODER_LAYER + "self_attention.", False),
    ):
        if row_column:
            rules += [Rename(f"{theirs}in_proj_{kind}", f"{ours}in_proj_{kind}") for kind in ("weight", "bias")]
            rules.append(Rename(theirs + "out_proj.{affine}", ours + "output.{affine}"))
        else:
            rules.append(Rename(theirs + "{attention}", ours + "attention.{attention}"))
    for theirs, ours, norms in (
        (encoder, _OUR_ENCODER_LAYER, {"norm1": "self_attention"}),
        (decoder, _OUR_DECODER_LAYER, {"norm1": "cross_attention", "norm2": "self_attention"}),
    ):
        rules += [Rename(f"{theirs}{norm}.{{affine}}", f"{ours}{name}_norm.{{affine}}") for norm, name in norms.items()]
        rules += [
            Rename(theirs + "ffn.linear1.{affine}", ours + "feed_forward.expand.{affine}"),
            Rename(theirs + "ffn.linear2.{affine}", ours + "feed_forward.contract.{affine}"),
            Rename(theirs + "ffn.norm2.{affine}", ours + "feed_forward_norm.{affine}"),
        ]
    for theirs, ours in (
        ("transformer.adapt_pos2d", "decoder.position_head"),
        ("transformer.adapt_pos1d", "memory_builder.position_embedding.adapter"),
    ):
        # A ReLU lies between the two linear layers, and is counted.
        rules += [Rename(f"{theirs}.{2 * i}.{{affine}}", f"{ours}.layers.{i}.{{affine}}") for i in (0, 1)]
    return (
        *rules,
        Rename("input_proj.0.{affine}", "backbone.convs.0.conv.{affine}"),
        Rename("input_proj.1.{affine}", "backbone.convs.0.norm.{affine}"),
        Rename("transformer.pattern.weight", "query_groups.matching.content.patterns.weight"),
        Rename("transformer.position.weight", "query_groups.matching.anchors.anchors.points"),
        Rename("transformer.class_embed.{i}.{affine}", "heads.class_heads.{i}.{affine}"),
        Rename("transformer.bbox_embed.{i}.layers.{j}.{affine}", "heads.box_heads.{i}.layers.{j}.{affine}"),
        *_CONSTANTS,
    )


# -------------------------------------------------------------------------------------------- detectors with several
# levels


QUERY_TABLE = "query_embedding.weight"


def _deformable_parts(weights: Mapping[str, Tensor], *, always_refines: bool = False) -> Sequence[Rule]:
    return (
        *_BACKBONE,
        *_NECK,
        *DEFORMABLE_LAYERS,
        *encoder_heads(weights),
        *LAYER_HEADS,
        *heads_in_decoder(weights, always_refines=always_refines),
        *PROPOSALS,
        *_CONSTANTS,
    )


def deformable_detr_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """One- and two-stage, and of H-DETR."""
    return (*_deformable_parts(weights), *queries(weights, QUERY_TABLE))


def dab_deformable_detr_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """Of DAB-Deformable-DETR, one- and two-stage, and of DN-Deformable-DETR."""
    return (
        *_deformable_parts(weights, always_refines=True),
        *DEFORMABLE_DECODER,
        Rename("denoising_generator.label_encoder.weight", "query_groups.denoising.label_embedding.table.weight"),
    )


def dino_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    return (*_deformable_parts(weights), *DINO_PARTS)


def stable_dino_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """Stable-DINO's authors built on detrex's DINO; a linear layer and a norm fuse the memory of all encoder layers."""
    return (
        *dino_table(weights),
        Rename("transformer.encoder.fusion_layer.0.{affine}", "encoder.fusion.projection.{affine}"),
        Rename("transformer.encoder.fusion_layer.1.{affine}", "encoder.fusion.norm.{affine}"),
    )
