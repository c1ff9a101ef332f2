"""Names that all code that grew from DAB-DETR's has in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dinox.checkpoint.conversion.rules import Rename, Rule

POSITION_HEAD = Rename(
    "transformer.decoder.ref_point_head.layers.{i}.{affine}", "decoder.position_head.layers.{i}.{affine}"
)

DENSE_ENCODER_SCALE = Rename(
    "transformer.encoder.query_scale.layers.{i}.{affine}", "encoder.position_scale.layers.{i}.{affine}"
)

CONDITIONAL_DECODER: Sequence[Rule] = (
    Rename("transformer.decoder.query_scale.layers.{i}.{affine}", "decoder.place_scale.layers.{i}.{affine}"),
    Rename("transformer.decoder.ref_anchor_head.layers.{i}.{affine}", "decoder.size_head.layers.{i}.{affine}"),
)

DEFORMABLE_DECODER: Sequence[Rule] = (
    POSITION_HEAD,
    Rename("transformer.decoder.query_scale.layers.{i}.{affine}", "decoder.position_scale.layers.{i}.{affine}"),
    Rename("tgt_embed.weight", "query_groups.matching.content.embedding.weight"),
    Rename("refpoint_embed.weight", "query_groups.matching.anchors.logits"),
)

_PATTERNS = "query_groups.matching.content.patterns.weight"


def anchors_and_patterns(names: Iterable[str], anchors: str) -> Sequence[Rule]:
    """``anchors``: their name of the anchor boxes. With patterns, ours are repeated: a level deeper."""
    has_patterns = any(name.endswith("patterns.weight") for name in names)
    return (
        Rename(anchors, f"query_groups.matching.anchors.{'anchors.' if has_patterns else ''}logits"),
        Rename("transformer.patterns.weight", _PATTERNS),
        Rename("patterns.weight", _PATTERNS),
    )
