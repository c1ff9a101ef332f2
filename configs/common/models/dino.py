"""DINO: query selection, mixed; contrastive denoising; look forward twice (Zhang et al. 2022, section 3)."""

from detectron2.config import LazyCall as L

from dinox.layers import SinePositionEmbedding
from dinox.losses import FocalLoss, GIoULoss, L1Loss
from dinox.matching import FocalCost, GIoUCost, HungarianMatcher, L1Cost
from dinox.modeling import (
    ContrastiveBoxNoise,
    Criterion,
    DeformableDecoder,
    DeformableEncoder,
    DenoisingQueries,
    DetectionTransformer,
    DynamicGroups,
    LabelEmbedding,
    LearnedContent,
    MatchingQueries,
    MemoryBuilder,
    PredictionHeads,
    QueryGroups,
    QuerySelection,
    SelectedAnchors,
    TopKDetections,
)

from ..backbones.resnet_4scale import backbone as _backbone  # under this name it is no key of its own

model = L(DetectionTransformer)(
    num_classes=80,
    num_queries=900,
    embed_dim=256,
    backbone=_backbone,
    memory_builder=L(MemoryBuilder)(
        position_embedding=L(SinePositionEmbedding)(embed_dim="${...embed_dim}", temperature=20, offset=0.0),
        embed_dim="${..embed_dim}",
        num_levels="${..backbone.num_levels}",
    ),
    encoder=L(DeformableEncoder)(
        embed_dim="${..embed_dim}",
        num_levels="${..backbone.num_levels}",
        num_layers=6,
        num_heads=8,
        num_points=4,
        feed_forward_dim=2048,
        dropout=0.0,
    ),
    query_selection=L(QuerySelection)(
        embed_dim="${..embed_dim}", num_classes="${..num_classes}", num_proposals="${..num_queries}"
    ),
    query_groups=L(QueryGroups)(
        denoising=L(DenoisingQueries)(
            num_classes="${...num_classes}",
            label_embedding=L(LabelEmbedding)(num_classes="${....num_classes}", embed_dim="${....embed_dim}"),
            box_noise=L(ContrastiveBoxNoise)(lambda1=1.0, lambda2=2.0),
            groups=L(DynamicGroups)(num_queries=100),
            flip_probability=0.25,
            max_queries=400,
        ),
        matching=L(MatchingQueries)(
            content=L(LearnedContent)(num_queries="${....num_queries}", embed_dim="${....embed_dim}"),
            anchors=L(SelectedAnchors)(num_queries="${....num_queries}"),
        ),
    ),
    decoder=L(DeformableDecoder)(
        embed_dim="${..embed_dim}",
        num_levels="${..backbone.num_levels}",
        num_layers=6,
        num_heads="${..encoder.num_heads}",
        num_points="${..encoder.num_points}",
        feed_forward_dim="${..encoder.feed_forward_dim}",
        dropout="${..encoder.dropout}",
        look_forward="twice",
    ),
    heads=L(PredictionHeads)(
        embed_dim="${..embed_dim}", num_classes="${..num_classes}", num_layers="${..decoder.num_layers}", shared=True
    ),
    criterion=L(Criterion)(
        matcher=L(HungarianMatcher)(
            class_cost=L(FocalCost)(weight=2.0), bbox_cost=L(L1Cost)(weight=5.0), giou_cost=L(GIoUCost)(weight=2.0)
        ),
        class_loss=L(FocalLoss)(alpha=0.25, gamma=2.0),
        bbox_loss=L(L1Loss)(),
        giou_loss=L(GIoULoss)(),
        weights={"class": 1.0, "bbox": 5.0, "giou": 2.0},
        group_weights={},
    ),
    postprocess=L(TopKDetections)(num_detections=300),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)
