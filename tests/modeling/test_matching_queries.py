"""Where matching and denoising queries come from."""

import pytest
import torch

from dinox.modeling import (
    AnchorBoxes,
    AnchorPoints,
    EmbeddedBoxes,
    EmbeddedProposals,
    FullVisibility,
    LabelEmbedding,
    LearnedAnchors,
    LearnedPositionedPoints,
    MatchingQueries,
    PatternContent,
    RepeatedAnchors,
    SummedEmbedding,
    UnknownLabelContent,
    ZeroContent,
)
from dinox.structures import Proposals, QueryContext, QueryGroup, build_attention_mask

from ..small_models import make_memory

D = 8


@pytest.fixture
def context():
    return QueryContext(make_memory(torch.zeros(2, 1, D)))


def test_patterns_stand_one_after_the_other_each_with_all_anchors(context):
    queries = MatchingQueries(
        content=PatternContent(num_patterns=3, embed_dim=D),
        anchors=RepeatedAnchors(anchors=LearnedAnchors(num_queries=2), times=3),
    )
    group = queries(context)
    assert group.size == 6
    for query in range(6):
        assert torch.equal(group.content[0, query], queries.content.patterns.weight[query // 2])
        assert torch.equal(group.anchors[0, query], queries.anchors.anchors.logits[query % 2].sigmoid())


def test_patterns_are_added_to_a_base(context):
    content = PatternContent(num_patterns=2, embed_dim=D, base=UnknownLabelContent())
    embedding = LabelEmbedding(num_classes=3, embed_dim=D, unknown_class=True, indicator=True)
    context = QueryContext(context.memory, label_embedding=embedding)
    assert torch.equal(content(context, 2)[0], content.patterns.weight + embedding.unknown())


def test_the_unknown_class_is_the_last_row_with_indicator_zero(context):
    embedding = LabelEmbedding(num_classes=3, embed_dim=D, unknown_class=True, indicator=True)
    content = UnknownLabelContent()(QueryContext(context.memory, label_embedding=embedding), 4)
    assert content.shape == (2, 4, D)
    assert torch.equal(content[1, 3, :-1], embedding.table.weight[3]) and not content[..., -1].any()


def test_points_are_read_from_the_positional_queries(context):
    places = LearnedPositionedPoints(num_queries=5, embed_dim=D, num_layers=2)(context)
    assert places.anchors.shape == (2, 5, 2) and places.positions.shape == (2, 5, D)
    assert ((places.anchors > 0) & (places.anchors < 1)).all()


@pytest.mark.parametrize(("coordinate", "is_seen"), [(0, True), (1, False), (2, False), (3, False)])
def test_embedded_proposals_embed_boxes_in_the_order_x_y_w_h(coordinate, is_seen):
    """Behind a projection that lets the first quarter of the features through alone, only x makes a difference."""
    queries = EmbeddedProposals(num_queries=4, embed_dim=D)
    with torch.no_grad():
        queries.projection.weight.zero_()
        queries.projection.weight[: D // 2, : D // 2] = torch.eye(D // 2)
    anchors = torch.rand(1, 4, 4)
    moved = anchors.clone()
    moved[..., coordinate] *= 0.5
    groups = []
    for each in (anchors, moved):
        proposals = Proposals(torch.zeros(1, 4, D), each, torch.zeros(1, 4, 2), each)
        groups.append(queries(QueryContext(make_memory(torch.zeros(1, 1, D)), proposals)))
    assert torch.equal(groups[0].anchors, anchors)
    assert groups[0].positions.shape == groups[0].content.shape == (1, 4, D)
    assert torch.equal(groups[0].positions, groups[1].positions) != is_seen


def test_placements_turn_noised_boxes_into_what_each_decoder_takes():
    content, boxes = torch.randn(1, 3, D), torch.rand(1, 3, 4)
    assert torch.equal(AnchorBoxes()(content, boxes).anchors, boxes)
    assert torch.equal(AnchorPoints()(content, boxes).anchors, boxes[..., :2])
    summed = SummedEmbedding(embed_dim=D)
    placed = summed(content, boxes)
    assert placed.anchors is None and not placed.content.any()
    assert torch.equal(placed.positions, summed.box_embedding(boxes) + content)
    placed = EmbeddedBoxes(embed_dim=D, anchor_dim=2)(content, boxes)
    assert placed.anchors.shape == (1, 3, 2) and placed.positions.shape == (1, 3, D)
    with pytest.raises(ValueError, match="anchor_dim must be 2"):
        EmbeddedBoxes(embed_dim=D, anchor_dim=3)


def test_full_visibility_leaves_no_mask(context):
    content = torch.zeros(1, 4, D)
    denoising = QueryGroup("denoising", content, sees=frozenset({"matching"}), subgroup_size=2)
    groups = [denoising, QueryGroup("matching", content)]
    assert build_attention_mask(groups).any()
    assert not build_attention_mask(FullVisibility()(groups)).any()


def test_zero_content_has_the_device_and_size_of_the_queries(context):
    assert torch.equal(ZeroContent(embed_dim=D)(context, 3), torch.zeros(2, 3, D))
