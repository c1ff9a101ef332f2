"""Co-DETR's auxiliary heads and their positive queries, for any detector whose encoder has several levels.

    model.auxiliary_heads = auxiliary_heads
    model.query_groups.update(positive_roi=positive_roi, positive_atss=positive_atss)

or ``embedded_positive_roi`` and ``embedded_positive_atss`` where the decoder takes given positional queries. The
paper's lambda2 is ``auxiliary_heads.loss_weight``, and lambda1 ``criterion.group_weights.positive_atss`` and so on.

    model.criterion.giou_loss, model.criterion.matcher.giou_cost = giou_loss, giou_cost

for all query groups, as the authors' code: exact for small objects.
"""

from detectron2.config import LazyCall as L

from dinox.losses import ExactGIoULoss
from dinox.matching import ExactGIoUCost
from dinox.modeling import (
    ATSSHead,
    AuxiliaryHeads,
    BackgroundPadding,
    DownsampledPyramid,
    EmbeddedPositives,
    FasterRCNNHead,
    HeadEmbedding,
    PositiveAnchors,
    PositiveFeatures,
    PositiveQueries,
    RegionProposals,
)

auxiliary_heads = L(AuxiliaryHeads)(
    adapter=L(DownsampledPyramid)(embed_dim="${...embed_dim}"),
    num_decoder_layers="${..decoder.num_layers}",
    loss_weight=2.0,
    detect_with=None,
    roi=L(FasterRCNNHead)(
        embed_dim="${...embed_dim}",
        num_classes="${...num_classes}",
        proposals=L(RegionProposals)(embed_dim="${....embed_dim}"),
    ),
    atss=L(ATSSHead)(
        embed_dim="${...embed_dim}",
        num_classes="${...num_classes}",
        num_levels="${dinox.one_more:${...backbone.num_levels}}",
    ),
)

giou_loss = L(ExactGIoULoss)()
giou_cost = L(ExactGIoUCost)(weight=2.0)

_padding = L(BackgroundPadding)()
_anchors = L(PositiveAnchors)(embed_dim="${....embed_dim}", features=None)
_embedded = L(EmbeddedPositives)(
    embed_dim="${....embed_dim}",
    features=L(PositiveFeatures)(embed_dim="${.....embed_dim}"),
    head_embedding=L(HeadEmbedding)(embed_dim="${.....embed_dim}"),
)

positive_roi = L(PositiveQueries)(head="roi", embedding=_anchors, padding=_padding)
positive_atss = L(PositiveQueries)(head="atss", embedding=_anchors, padding=_padding)

embedded_positive_roi = L(PositiveQueries)(head="roi", embedding=_embedded, padding=_padding)
embedded_positive_atss = L(PositiveQueries)(head="atss", embedding=_embedded, padding=_padding)
