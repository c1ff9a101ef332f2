"""Names of H-DETR's authors, of their Deformable DETR too; and what their rows mean.

Layers are named as in DINO's code, norms of the decoder in its order. Class rows are COCO category ids, 0 to 90, but
for those of the encoder's head, which ranks proposals by its row 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from dinox.checkpoint.conversion.backbones import torchvision_resnet
from dinox.checkpoint.conversion.deformable_detr import (
    LAYER_HEADS,
    PROPOSALS,
    encoder_heads,
    heads_in_decoder,
    queries,
)
from dinox.checkpoint.conversion.dino import DECODER_LAYERS, ENCODER_LAYERS, LEVELS, neck
from dinox.checkpoint.conversion.rules import Rule

QUERY_TABLE = "query_embed.weight"


def deformable_detr_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """One- and two-stage, with mixed query selection or without, and with one-to-many queries or without."""
    return (
        *torchvision_resnet("backbone.0.body."),
        *neck(weights),
        *ENCODER_LAYERS,
        *DECODER_LAYERS,
        LEVELS,
        *encoder_heads(weights),
        *LAYER_HEADS,
        *heads_in_decoder(weights),
        *PROPOSALS,
        *queries(weights, QUERY_TABLE),
    )
