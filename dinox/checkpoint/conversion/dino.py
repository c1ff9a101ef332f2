"""Names of DINO's authors (IDEA-Research), and what their rows mean.

All decoder layers share one class head and one box head, stored once for every layer, and again inside the decoder.
Class rows are COCO category ids, 0 to 90; ten of the ids and 0 belong to no class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from dinox.checkpoint.conversion.backbones import torchvision_resnet
from dinox.checkpoint.conversion.deformable_detr import (
    DECODER_LAYER,
    DINO_PARTS,
    ENCODER_LAYER,
    LAYER_HEADS,
    PROPOSALS,
    heads_in_decoder,
)
from dinox.checkpoint.conversion.parts import count_classes
from dinox.checkpoint.conversion.rules import Rename, Rule
from dinox.checkpoint.conversion.transformers import swin, swin_norms

COCO_IDS = tuple(sorted(category["id"] for category in COCO_CATEGORIES if category["isthing"]))
_COCO_ROWS = max(COCO_IDS) + 1


def _feed_forward(theirs: str, ours: str) -> list[Rule]:
    return [
        Rename(theirs + "linear1.{affine}", ours + "feed_forward.expand.{affine}"),
        Rename(theirs + "activation.weight", ours + "feed_forward.activation.weight"),  # PReLU has one
        Rename(theirs + "linear2.{affine}", ours + "feed_forward.contract.{affine}"),
    ]


FEED_FORWARDS: Sequence[Rule] = tuple(_feed_forward(DECODER_LAYER, "decoder.layers.{i}."))

ENCODER_LAYERS: Sequence[Rule] = (
    Rename(ENCODER_LAYER + "self_attn.{deformable}", "encoder.layers.{i}.self_attention.{deformable}"),
    Rename(ENCODER_LAYER + "norm1.{affine}", "encoder.layers.{i}.self_attention_norm.{affine}"),
    *_feed_forward(ENCODER_LAYER, "encoder.layers.{i}."),
    Rename(ENCODER_LAYER + "norm2.{affine}", "encoder.layers.{i}.feed_forward_norm.{affine}"),
)

DECODER_LAYERS: Sequence[Rule] = (
    # In the decoder norm2 follows the self-attention and norm1 the cross-attention: numbered as they were written.
    Rename(DECODER_LAYER + "self_attn.{attention}", "decoder.layers.{i}.self_attention.attention.{attention}"),
    Rename(DECODER_LAYER + "norm2.{affine}", "decoder.layers.{i}.self_attention_norm.{affine}"),
    Rename(DECODER_LAYER + "cross_attn.{deformable}", "decoder.layers.{i}.cross_attention.{deformable}"),
    Rename(DECODER_LAYER + "norm1.{affine}", "decoder.layers.{i}.cross_attention_norm.{affine}"),
    *FEED_FORWARDS,
    Rename(DECODER_LAYER + "norm3.{affine}", "decoder.layers.{i}.feed_forward_norm.{affine}"),
)

LEVELS = Rename("transformer.level_embed", "memory_builder.level_embeddings")


def dino_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    return (
        *torchvision_resnet("backbone.0.body."),
        *swin("backbone.0."),
        *swin_norms("backbone.0."),
        *neck(weights),
        *ENCODER_LAYERS,
        *DECODER_LAYERS,
        LEVELS,
        Rename("transformer.enc_out_class_embed.{affine}", "query_selection.class_head.{affine}"),
        Rename("transformer.enc_out_bbox_embed.layers.{i}.{affine}", "query_selection.box_head.layers.{i}.{affine}"),
        *LAYER_HEADS,
        *heads_in_decoder(weights),
        *PROPOSALS,
        *DINO_PARTS,
    )


def neck(weights: Mapping[str, Tensor]) -> list[Rule]:
    """One numbering for the 1x1 convolutions of the backbone's maps and the 3x3 ones of the extra levels."""
    rules: list[Rule] = []
    counts = {"convs": 0, "extra_convs": 0}
    level = 0
    while (convolution := weights.get(f"input_proj.{level}.0.weight")) is not None:
        kind = "convs" if convolution.shape[-1] == 1 else "extra_convs"
        ours = f"backbone.{kind}.{counts[kind]}"
        rules += [
            Rename(f"input_proj.{level}.0.{{affine}}", ours + ".conv.{affine}"),
            Rename(f"input_proj.{level}.1.{{affine}}", ours + ".norm.{affine}"),
        ]
        counts[kind] += 1
        level += 1
    return rules


def class_rows(weights: Mapping[str, Tensor], category_ids: Sequence[int] | None) -> Sequence[int]:
    """Which rows of the class heads and of the label table are classes, in the order of our classes.

    By default those of the 80 COCO classes if there are 91, else all rows of the class heads; the label table has one
    more, for which see ``Format.unknown_row``. Raises ValueError for ids that cannot be meant.
    """
    if category_ids is not None:
        _check_category_ids(category_ids)
        return tuple(category_ids)
    count = count_classes(weights) or 0
    return COCO_IDS if count == _COCO_ROWS else tuple(range(count))


def _check_category_ids(ids: Sequence[int]) -> None:
    wrong = next((number for number in ids if isinstance(number, bool) or not isinstance(number, int)), None)
    if not ids or wrong is not None or min(ids) < 0:
        got = "none" if not ids else repr(wrong) if wrong is not None else min(ids)
        raise ValueError(f"category ids: expected at least one whole number from 0, got {got}")
    repeated = next((number for index, number in enumerate(ids) if number in ids[:index]), None)
    if repeated is not None:
        raise ValueError(f"category ids: {repeated} is there twice: each is the id of one class")
