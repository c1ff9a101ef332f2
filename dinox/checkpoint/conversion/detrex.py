"""detrex's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from dinox.checkpoint.conversion.backbones import detectron2_resnet
from dinox.checkpoint.conversion.deformable_detr import DECODER_LAYER, DINO_PARTS, ENCODER_LAYER, LAYER_HEADS
from dinox.checkpoint.conversion.parts import count_decoder_layers
from dinox.checkpoint.conversion.rules import Ignore, Rename, Rule

_DEFORMABLE_LAYERS: Sequence[Rule] = (
    Rename(ENCODER_LAYER + "attentions.0.{deformable}", "encoder.layers.{i}.self_attention.{deformable}"),
    Rename(ENCODER_LAYER + "norms.0.{affine}", "encoder.layers.{i}.self_attention_norm.{affine}"),
    Rename(ENCODER_LAYER + "ffns.0.layers.0.0.{affine}", "encoder.layers.{i}.feed_forward.expand.{affine}"),
    Rename(ENCODER_LAYER + "ffns.0.layers.1.{affine}", "encoder.layers.{i}.feed_forward.contract.{affine}"),
    Rename(ENCODER_LAYER + "norms.1.{affine}", "encoder.layers.{i}.feed_forward_norm.{affine}"),
    Rename(DECODER_LAYER + "attentions.0.attn.{attention}", "decoder.layers.{i}.self_attention.attention.{attention}"),
    Rename(DECODER_LAYER + "norms.0.{affine}", "decoder.layers.{i}.self_attention_norm.{affine}"),
    Rename(DECODER_LAYER + "attentions.1.{deformable}", "decoder.layers.{i}.cross_attention.{deformable}"),
    Rename(DECODER_LAYER + "norms.1.{affine}", "decoder.layers.{i}.cross_attention_norm.{affine}"),
    Rename(DECODER_LAYER + "ffns.0.layers.0.0.{affine}", "decoder.layers.{i}.feed_forward.expand.{affine}"),
    Rename(DECODER_LAYER + "ffns.0.layers.1.{affine}", "decoder.layers.{i}.feed_forward.contract.{affine}"),
    Rename(DECODER_LAYER + "norms.2.{affine}", "decoder.layers.{i}.feed_forward_norm.{affine}"),
)

_NECK: Sequence[Rule] = tuple(
    Rename(f"neck.{convs}.{{i}}.{part}.{{affine}}", f"backbone.{convs}.{{i}}.{part}.{{affine}}")
    for convs in ("convs", "extra_convs")
    for part in ("conv", "norm")
)


def dino_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """The encoder's heads are numbered after those of the decoder layers, and all are registered twice."""
    last = count_decoder_layers(weights)
    return (
        *detectron2_resnet("backbone."),
        *_NECK,
        *_DEFORMABLE_LAYERS,
        Rename("transformer.level_embeds", "memory_builder.level_embeddings"),
        Rename(f"class_embed.{last}.{{affine}}", "query_selection.class_head.{affine}"),
        Rename(f"bbox_embed.{last}.layers.{{j}}.{{affine}}", "query_selection.box_head.layers.{j}.{affine}"),
        *LAYER_HEADS,
        *DINO_PARTS,
        Ignore("pixel_mean", "a constant, which the config has"),
        Ignore("pixel_std", "a constant, which the config has"),
    )
