"""Names that all code that grew from Deformable DETR's has in common, whatever it calls the layers' insides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from dinox.checkpoint.conversion.rules import Duplicate, Rename, Rule

ENCODER_LAYER = "transformer.encoder.layers.{i}."
DECODER_LAYER = "transformer.decoder.layers.{i}."

LAYER_HEADS: Sequence[Rule] = (
    Rename("class_embed.{i}.{affine}", "heads.class_heads.{i}.{affine}"),
    Rename("bbox_embed.{i}.layers.{j}.{affine}", "heads.box_heads.{i}.layers.{j}.{affine}"),
)
SHARED_HEADS: Sequence[Rule] = (
    Rename("class_embed.{affine}", "heads.class_heads.0.{affine}"),
    Rename("bbox_embed.layers.{i}.{affine}", "heads.box_heads.0.layers.{i}.{affine}"),
)
SHARED_HEADS_IN_DECODER = Duplicate(
    "transformer.decoder.bbox_embed.layers.{i}.{affine}", of="bbox_embed.layers.{i}.{affine}"
)
_CLASS_HEADS_IN_DECODER = Duplicate("transformer.decoder.class_embed.{i}.{affine}", of="class_embed.{i}.{affine}")
_BOX_HEADS_IN_DECODER = Duplicate(
    "transformer.decoder.bbox_embed.{i}.layers.{j}.{affine}", of="bbox_embed.{i}.layers.{j}.{affine}"
)

PROPOSALS: Sequence[Rule] = (
    Rename("transformer.enc_output.{affine}", "query_selection.projection.{affine}"),
    Rename("transformer.enc_output_norm.{affine}", "query_selection.norm.{affine}"),
)

LABELS = Rename("label_enc.weight", "query_groups.denoising.label_embedding.table.weight")

DINO_PARTS: Sequence[Rule] = (
    Rename("transformer.decoder.ref_point_head.layers.{i}.{affine}", "decoder.position_head.layers.{i}.{affine}"),
    Rename("transformer.decoder.norm.{affine}", "decoder.norm.{affine}"),
    Rename("transformer.tgt_embed.weight", "query_groups.matching.content.embedding.weight"),
    LABELS,
)

# Positional queries, then content queries, side by side in one table.
JOINED_QUERIES = "query_groups.matching.positions_and_content.weight"
_POSITIONS, _CONTENT = (f"query_groups.matching.{part}.embedding.weight" for part in ("anchors", "content"))


def heads_in_decoder(weights: Mapping[str, Tensor], *, always_refines: bool = False) -> Sequence[Rule]:
    """A decoder that refines boxes has the heads registered once more: those of boxes, and if the encoder proposes,
    those of classes too. Theirs are looked up; ours (all of which have heads) say what theirs would have.
    """
    if not any(name.startswith("heads.") for name in weights):
        return _CLASS_HEADS_IN_DECODER, _BOX_HEADS_IN_DECODER
    proposes = any(name.startswith("query_selection.") for name in weights)
    refines = always_refines or proposes or not _same_for_all_layers(weights)
    return (*([_CLASS_HEADS_IN_DECODER] if proposes else []), *([_BOX_HEADS_IN_DECODER] if refines else []))


def refines_boxes(names: Iterable[str]) -> bool:
    """Whether their decoder moves the anchors from layer to layer, for which it has box heads."""
    return any(name.startswith("transformer.decoder.bbox_embed.") for name in names)


def split_queries(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict with the two halves of a joined table apart."""
    split = dict(weights)
    if JOINED_QUERIES in split:
        split[_POSITIONS], split[_CONTENT] = split.pop(JOINED_QUERIES).chunk(2, dim=1)
    return split


def join_queries(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of ``split_queries``."""
    joined = dict(weights)
    if _POSITIONS in joined and _CONTENT in joined:
        joined[JOINED_QUERIES] = torch.cat([joined.pop(_POSITIONS), joined.pop(_CONTENT)], dim=1)
    return joined


def _same_for_all_layers(weights: Mapping[str, Tensor]) -> bool:
    first = "heads.box_heads.0.layers.0.weight"
    others = [name for name in weights if name.startswith("heads.box_heads.") and name.endswith(".layers.0.weight")]
    return all(weights[name] is weights[first] for name in others)
