"""Names that all code that grew from Deformable DETR's has in common, whatever it calls the layers' insides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from dinox.checkpoint.conversion.parts import count_decoder_layers
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
_JOINED_QUERIES = "query_groups.matching.positions_and_content.weight"
_POSITIONS, _CONTENT = (f"query_groups.matching.{part}.embedding.weight" for part in ("anchors", "content"))
# With mixed query selection, content queries of all groups in one table, the matching ones first.
_ALL_CONTENT = "query_groups.content_of_all_groups.weight"
_CONTENT_ONE_TO_MANY = "query_groups.one_to_many.content.embedding.weight"
_NUM_ONE_TO_MANY = 1500  # in all that is published; the names do not show it
_ANCHOR_EMBEDDING = "query_groups.anchor_embedding."


def encoder_heads(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """Where the encoder has heads, they are numbered after those of the decoder layers."""
    last = count_decoder_layers(weights)
    return (
        Rename(f"class_embed.{last}.{{affine}}", "query_selection.class_head.{affine}"),
        Rename(f"bbox_embed.{last}.layers.{{j}}.{{affine}}", "query_selection.box_head.layers.{j}.{affine}"),
    )


def heads_in_decoder(weights: Mapping[str, Tensor], *, always_refines: bool = False) -> Sequence[Rule]:
    """A decoder that refines boxes has the heads registered once more: those of boxes, and if the encoder proposes,
    those of classes too. Theirs are looked up; ours (all of which have heads) say what theirs would have.
    """
    if not any(name.startswith("heads.") for name in weights):
        return _CLASS_HEADS_IN_DECODER, _BOX_HEADS_IN_DECODER
    proposes = any(name.startswith("query_selection.") for name in weights)
    refines = always_refines or proposes or not _same_for_all_layers(weights)
    return (*([_CLASS_HEADS_IN_DECODER] if proposes else []), *([_BOX_HEADS_IN_DECODER] if refines else []))


def queries(weights: Mapping[str, Tensor], table: str) -> Sequence[Rule]:
    """Learned or selected queries, mixed or not. table: what they call theirs; such weights are to be split afterwards,
    and ours to be joined before.
    """
    mixed = selects_mixed(weights, table)
    embedding = _ANCHOR_EMBEDDING if mixed else "query_groups.matching."
    return (
        Rename(table, _ALL_CONTENT if mixed else _JOINED_QUERIES),
        Rename("transformer.reference_points.{affine}", "query_groups.matching.anchors.point_head.layers.0.{affine}"),
        Rename("transformer.pos_trans.{affine}", embedding + "projection.{affine}"),
        Rename("transformer.pos_trans_norm.{affine}", embedding + "norm.{affine}"),
    )


def selects_mixed(weights: Iterable[str], table: str) -> bool:
    """Whether queries are selected, and their content is learned all the same; of their names or of ours."""
    names = set(weights)
    return {table, "transformer.pos_trans.weight"} <= names or any(name.startswith(_ANCHOR_EMBEDDING) for name in names)


def refines_boxes(names: Iterable[str]) -> bool:
    """Whether their decoder moves the anchors from layer to layer, for which it has box heads."""
    return any(name.startswith("transformer.decoder.bbox_embed.") for name in names)


def split_queries(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict with the pieces of a joined table apart."""
    split = dict(weights)
    if _JOINED_QUERIES in split:
        split[_POSITIONS], split[_CONTENT] = split.pop(_JOINED_QUERIES).chunk(2, dim=1)
    if _ALL_CONTENT in split:
        content = split.pop(_ALL_CONTENT)
        if len(content) > _NUM_ONE_TO_MANY:
            content, split[_CONTENT_ONE_TO_MANY] = content[:-_NUM_ONE_TO_MANY], content[-_NUM_ONE_TO_MANY:]
        split[_CONTENT] = content
    return split


def join_queries(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of ``split_queries``; another number of one-to-many queries than it takes for granted stays apart."""
    joined = dict(weights)
    if _POSITIONS in joined and _CONTENT in joined:
        joined[_JOINED_QUERIES] = torch.cat([joined.pop(_POSITIONS), joined.pop(_CONTENT)], dim=1)
    elif _ANCHOR_EMBEDDING + "projection.weight" in joined and _CONTENT in joined:
        content = [joined.pop(_CONTENT)]
        if len(joined.get(_CONTENT_ONE_TO_MANY, [])) == _NUM_ONE_TO_MANY:
            content.append(joined.pop(_CONTENT_ONE_TO_MANY))
        joined[_ALL_CONTENT] = torch.cat(content)
    return joined


def _same_for_all_layers(weights: Mapping[str, Tensor]) -> bool:
    first = "heads.box_heads.0.layers.0.weight"
    others = [name for name in weights if name.startswith("heads.box_heads.") and name.endswith(".layers.0.weight")]
    return all(weights[name] is weights[first] for name in others)
