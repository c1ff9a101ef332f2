"""Names that all code that grew from Deformable DETR's has in common, whatever it calls the layers' insides."""

from collections.abc import Sequence

from dinox.checkpoint.conversion.rules import Duplicate, Rename, Rule

ENCODER_LAYER = "transformer.encoder.layers.{i}."
DECODER_LAYER = "transformer.decoder.layers.{i}."

LAYER_HEADS: Sequence[Rule] = (
    Rename("class_embed.{i}.{affine}", "heads.class_heads.{i}.{affine}"),
    Rename("bbox_embed.{i}.layers.{j}.{affine}", "heads.box_heads.{i}.layers.{j}.{affine}"),
    # The decoder, which refines boxes, has the heads registered once more.
    Duplicate("transformer.decoder.class_embed.{i}.{affine}", of="class_embed.{i}.{affine}"),
    Duplicate("transformer.decoder.bbox_embed.{i}.layers.{j}.{affine}", of="bbox_embed.{i}.layers.{j}.{affine}"),
)

DINO_PARTS: Sequence[Rule] = (
    Rename("transformer.enc_output.{affine}", "query_selection.projection.{affine}"),
    Rename("transformer.enc_output_norm.{affine}", "query_selection.norm.{affine}"),
    Rename("transformer.decoder.ref_point_head.layers.{i}.{affine}", "decoder.position_head.layers.{i}.{affine}"),
    Rename("transformer.decoder.norm.{affine}", "decoder.norm.{affine}"),
    Rename("transformer.tgt_embed.weight", "query_groups.matching.content.embedding.weight"),
    Rename("label_enc.weight", "query_groups.denoising.label_embedding.table.weight"),
)
