"""DETR: 100 queries with learned positions, softmax over classes and "no object" (Carion et al. 2020)."""

from detectron2.config import LazyCall as L

from dinox.layers import SinePositionEmbedding
from dinox.losses import GIoULoss, L1Loss, SoftmaxLoss
from dinox.matching import GIoUCost, HungarianMatcher, L1Cost, SoftmaxCost
from dinox.modeling import (
    BestClassDetections,
    Criterion,
    DenseDecoder,
    DenseEncoder,
    DetectionTransformer,
    LearnedPositions,
    MatchingQueries,
    MemoryBuilder,
    QueryGroups,
    SoftmaxHeads,
    ZeroContent,
)

from ..backbones.resnet_c5 import backbone as _backbone  # under this name it is no key of its own

model = L(DetectionTransformer)(
    num_classes=80,
    num_queries=100,
    embed_dim=256,
    backbone=_backbone,
    memory_builder=L(MemoryBuilder)(
        position_embedding=L(SinePositionEmbedding)(embed_dim="${...embed_dim}", temperature=10000, offset=0.0),
        embed_dim="${..embed_dim}",
        num_levels="${..backbone.num_levels}",
    ),
    encoder=L(DenseEncoder)(
        embed_dim="${..embed_dim}", num_layers=6, num_heads=8, feed_forward_dim=2048, dropout=0.1, activation="relu"
    ),
    query_selection=None,
    query_groups=L(QueryGroups)(
        matching=L(MatchingQueries)(
            content=L(ZeroContent)(embed_dim="${....embed_dim}"),
            anchors=L(LearnedPositions)(num_queries="${....num_queries}", embed_dim="${....embed_dim}"),
        ),
    ),
    decoder=L(DenseDecoder)(
        embed_dim="${..embed_dim}",
        num_layers=6,
        num_heads="${..encoder.num_heads}",
        feed_forward_dim="${..encoder.feed_forward_dim}",
        dropout="${..encoder.dropout}",
        activation="${..encoder.activation}",
        mask_memory=True,
    ),
    heads=L(SoftmaxHeads)(embed_dim="${..embed_dim}", num_classes="${..num_classes}"),
    criterion=L(Criterion)(
        matcher=L(HungarianMatcher)(
            class_cost=L(SoftmaxCost)(weight=1.0), bbox_cost=L(L1Cost)(weight=5.0), giou_cost=L(GIoUCost)(weight=2.0)
        ),
        class_loss=L(SoftmaxLoss)(background_weight=0.1),
        bbox_loss=L(L1Loss)(),
        giou_loss=L(GIoULoss)(),
        weights={"class": 1.0, "bbox": 5.0, "giou": 2.0},
        group_weights={},
    ),
    postprocess=L(BestClassDetections)(num_detections=100),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)
