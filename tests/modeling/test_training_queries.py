"""Groups that are there in training alone: H-DETR's one-to-many queries, and the groups of Group-DETR."""

import pytest
import torch
from detectron2.config import instantiate

from dinox.analysis import measure_complexity
from dinox.config import load_config
from dinox.layers import sine_features
from dinox.modeling import (
    AnchorEmbedding,
    ClassAgnosticSelection,
    EmbeddedAnchors,
    LearnedAnchors,
    LearnedContent,
    QuerySelection,
    RepeatedAnchors,
    SelectedAnchors,
    TrainingQueries,
    ZeroContent,
)
from dinox.structures import Proposals, QueryContext, Targets, build_attention_mask

from ..small_models import (
    assert_trains_one_step,
    build_small,
    make_input,
    make_memory,
    randomise_heads,
    small_overrides,
)

H_DETR = "h_detr/h_deformable_detr_r50_12ep"
BASE = "h_detr/deformable_detr_plus_plus_r50_12ep"
GROUP_DETR = "group_detr/group_dab_detr_r50_dc5_12ep"
EXTRA = {H_DETR: "one_to_many", GROUP_DETR: "other_groups"}
D = 8


def build(config: str, *overrides: str) -> torch.nn.Module:
    undilated = ["model.backbone.bottom_up.res5_dilation=1"] if "dc5" in config else []
    return build_small(config, *undilated, *overrides)


def predict(model, inputs):
    return model.predict(inputs, model.prepare_targets(inputs))


def make_context(num_proposals: int = 0, num_tokens: int = 10) -> QueryContext:
    boxes = torch.rand(1, num_proposals, 4, generator=torch.Generator().manual_seed(0))
    proposals = Proposals(boxes.repeat(1, 1, D // 4), boxes, boxes, boxes) if num_proposals else None
    targets = Targets.from_lists([torch.zeros(1, dtype=torch.int64)], [torch.rand(1, 4)])
    return QueryContext(make_memory(torch.zeros(1, num_tokens, D), [(1, num_tokens)]), proposals, targets)


# ----------------------------------------------------------------------------------------------------------- the parts


def test_groups_keep_their_own_content_where_an_image_has_few_tokens():
    """3 groups of 4 learned rows, but only 2 proposals: the first 2 rows of every group."""
    content = LearnedContent(num_queries=4, embed_dim=D, num_sets=3)
    anchors = RepeatedAnchors(anchors=SelectedAnchors(num_queries=4), times=3)
    group = TrainingQueries(content=content, anchors=anchors, num_groups=3)(make_context(2, num_tokens=2))
    rows = content.embedding.weight
    assert torch.equal(group.content[0], rows[[0, 1, 4, 5, 8, 9]]) and group.subgroup_size == 2


def test_groups_do_not_share_out_a_ranking():
    content = LearnedContent(num_queries=4, embed_dim=D)
    with pytest.raises(ValueError, match=r"anchors: each of 2 groups .* RepeatedAnchors\(anchors=..., times=2\)"):
        TrainingQueries(content=content, anchors=SelectedAnchors(num_queries=4), num_groups=2)


@pytest.mark.parametrize("selection", [QuerySelection, ClassAgnosticSelection])
def test_more_tokens_are_ranked_in_training_and_in_one_ranking(selection):
    torch.manual_seed(0)
    selection = selection(embed_dim=D, num_classes=3, num_proposals=4, more_in_training=5)
    memory = make_memory(torch.randn(2, 60, D), [(6, 10)])
    scores = selection.token_scores(memory)
    ranked = scores.sort(dim=1, descending=True, stable=True).indices
    for training, expected in ((True, 9), (False, 4)):
        proposals = selection.train(training)(memory)
        chosen = selection(memory, selected=ranked[:, :expected])
        assert proposals.anchors.shape[1] == expected
        torch.testing.assert_close(proposals.anchors, chosen.anchors, rtol=0, atol=0)
    assert selection.train()(memory).logits.shape[1] == (4 if isinstance(selection, QuerySelection) else 60)


def test_groups_take_slices_of_the_ranking():
    context = make_context(num_proposals=10)
    anchors = context.proposals.anchors
    for available, expected in ((10, anchors[:, 3:7]), (5, anchors[:, 3:5]), (2, anchors[:, :0])):
        few = make_context(num_proposals=10, num_tokens=available)
        proposals = Proposals(anchors, anchors[:, :available], anchors, anchors)
        places = SelectedAnchors(num_queries=4, first=3)(QueryContext(few.memory, proposals))
        assert torch.equal(places.anchors, expected)
    with pytest.raises(ValueError, match="12 queries need as many proposals, but query_selection gives 10"):
        SelectedAnchors(num_queries=4, first=8)(make_context(num_proposals=10, num_tokens=20))


def test_positional_queries_are_the_first_half_of_the_normed_map():
    """Deformable DETR's code: sine features of x, y, w, h with temperature 10000, each on a full turn."""
    torch.manual_seed(0)
    embedding = AnchorEmbedding(embed_dim=D)
    boxes = torch.rand(1, 3, 4)
    features = torch.cat([sine_features(boxes[..., i] * 2 * torch.pi, D // 2, 10000) for i in range(4)], dim=-1)
    expected = embedding.norm(embedding.projection(features))[..., :D]
    torch.testing.assert_close(embedding(boxes), expected, rtol=0, atol=1e-6)  # 2 pi is rounded once or twice


def test_embedded_anchors_need_the_embedding():
    anchors = EmbeddedAnchors(anchors=LearnedAnchors(num_queries=2))
    with pytest.raises(ValueError, match=r"set model\.query_groups\.anchor_embedding"):
        anchors(make_context())


def test_groups_of_queries_do_not_see_each_other():
    queries = TrainingQueries(
        content=ZeroContent(embed_dim=D), anchors=LearnedAnchors(num_queries=2, num_sets=3), num_groups=3, repeats=2
    )
    group = queries(make_context())
    assert (group.size, group.subgroup_size, group.repeats) == (6, 2, 6)
    same = torch.arange(6) // 2
    assert torch.equal(build_attention_mask([group]), same[:, None] != same)
    assert queries.eval()(make_context()) is None


def test_groups_may_share_the_best_proposals():
    """Every group starts from the same anchors, with content of its own."""
    context = make_context(num_proposals=4, num_tokens=4)
    content = LearnedContent(num_queries=4, embed_dim=D, num_sets=2)
    anchors = RepeatedAnchors(anchors=SelectedAnchors(num_queries=4), times=2)
    group = TrainingQueries(content=content, anchors=anchors, num_groups=2)(context)
    assert torch.equal(group.anchors, context.proposals.anchors.repeat(1, 2, 1))
    assert group.subgroup_size == 4 and not torch.equal(group.content[:, :4], group.content[:, 4:])


def test_groups_of_unequal_size_are_an_error():
    queries = TrainingQueries(content=ZeroContent(embed_dim=D), anchors=LearnedAnchors(num_queries=4), num_groups=3)
    with pytest.raises(ValueError, match="3 groups cannot share 4 queries equally"):
        queries(make_context())
    with pytest.raises(ValueError, match="repeats: expected at least 1, got 0"):
        TrainingQueries(content=torch.nn.Identity(), anchors=torch.nn.Identity(), repeats=0)


# ---------------------------------------------------------------------------------------------------------- the models


@pytest.mark.parametrize(("config", "name"), EXTRA.items())
def test_the_extra_queries_are_invisible_to_the_matching_ones_and_the_other_way_round(config, name):
    """Bit for bit: what one group starts with changes its own predictions alone."""
    model = randomise_heads(build(config))
    inputs = [make_input(64, 96, 3, seed=0), make_input(80, 64, 2, seed=1)]
    before = predict(model, inputs).groups
    if name == "one_to_many":
        contents = {group: model.query_groups[group].content.embedding.weight for group in ("matching", name)}
    else:
        contents = {group: model.query_groups[group].anchors.logits for group in ("matching", name)}
    for changed, kept in (("matching", name), (name, "matching")):
        saved = contents[changed].data.clone()
        contents[changed].data += 0.5
        after = predict(model, inputs).groups
        contents[changed].data = saved
        assert not torch.equal(before[changed].logits, after[changed].logits)
        assert torch.equal(before[kept].logits, after[kept].logits)
        assert torch.equal(before[kept].boxes, after[kept].boxes)


def test_groups_of_group_detr_are_invisible_to_each_other():
    model = randomise_heads(build(GROUP_DETR))
    inputs = [make_input(64, 96, 3)]
    before = predict(model, inputs).groups["other_groups"].logits
    model.query_groups["other_groups"].anchors.logits.data[:20] += 0.5  # the first group of 20
    after = predict(model, inputs).groups["other_groups"].logits
    assert not torch.equal(before[:, :, :20], after[:, :, :20])
    assert torch.equal(before[:, :, 20:], after[:, :, 20:])


@pytest.mark.parametrize(("config", "name"), EXTRA.items())
def test_nothing_of_the_extra_queries_is_there_at_inference(config, name):
    """No parameter of theirs changes a detection, and they take no FLOP."""
    model = randomise_heads(build(config)).eval()
    inputs = [make_input(64, 96, 0)]
    before, flops = model.raw_predictions(inputs), measure_complexity(model).gflops[""]
    for parameter in model.query_groups[name].parameters():
        parameter.data.normal_()
    after = model.raw_predictions(inputs)
    assert torch.equal(before.logits, after.logits) and torch.equal(before.boxes, after.boxes)
    del model.query_groups[name]
    if model.query_selection is not None:
        model.query_selection.more_in_training = 0
    assert measure_complexity(model).gflops[""] == flops


def test_the_detections_of_h_detr_are_those_of_its_base_with_its_weights():
    model, base = randomise_heads(build(H_DETR)).eval(), build(BASE).eval()
    missing, unexpected = base.load_state_dict(model.state_dict(), strict=False)
    assert not missing and {name.split(".")[1] for name in unexpected} == {"one_to_many"}
    inputs = [make_input(64, 96, 0), make_input(16, 24, 0)]  # the second has fewer tokens than 20 queries
    assert torch.equal(model.raw_predictions(inputs).logits, base.raw_predictions(inputs).logits)


def test_matching_queries_are_the_best_proposals_and_one_to_many_queries_the_next():
    model = build(H_DETR, "model.query_groups.one_to_many.content.num_queries=30")
    inputs = [make_input(64, 96, 2)]
    memory = model.encode(model.preprocess_image(inputs))
    proposals = model.query_selection(memory)
    groups = model.query_groups(QueryContext(memory, proposals, model.prepare_targets(inputs)))
    anchors = {group.name: group.anchors for group in groups}
    assert torch.equal(torch.cat([anchors["matching"], anchors["one_to_many"]], dim=1), proposals.anchors)
    assert anchors["one_to_many"].shape[1] == 30
    assert torch.equal(groups[0].positions, model.query_groups.anchor_embedding(groups[0].anchors))


@pytest.mark.parametrize("num_objects", [0, 2, 30])
def test_h_detr_learns_from_images_with_fewer_tokens_than_queries_and_more_objects(num_objects):
    """128 tokens for 20 + 1500 queries and 6 x 30 objects; 4 tokens, and none is left for the one-to-many queries."""
    model = build(H_DETR)
    keys = assert_trains_one_step(model, [make_input(64, 96, num_objects)]).keys()
    losses = assert_trains_one_step(model, [make_input(8, 8, num_objects)])
    assert losses.keys() == keys and losses["loss_class_one_to_many"] == 0


def test_lambda_is_an_override():
    model = build(H_DETR, "model.criterion.group_weights.one_to_many=0.5")
    assert model.criterion.weight("one_to_many", "class") == 1.0 and model.criterion.weight("matching", "class") == 2.0


def test_the_loss_of_group_detr_is_the_mean_over_its_groups():
    """The matching queries are 1 of 11 groups; those of the 10 others are divided by 10 times the objects."""
    weight = build(GROUP_DETR).criterion.weight
    for loss, whole in (("class", 1.0), ("bbox", 5.0), ("giou", 2.0)):
        assert weight("matching", loss) == pytest.approx(whole / 11)
        assert weight("other_groups", loss) == pytest.approx(whole * 10 / 11)


@pytest.mark.parametrize("config", ["dino/dino_r50_4scale_12ep", "dab_detr/dab_deformable_detr_r50_two_stage_50ep"])
def test_any_detector_with_query_selection_takes_one_to_many_queries(config):
    cfg = load_config(config, small_overrides(config))
    cfg.model.query_groups.one_to_many = load_config("configs/common/models/one_to_many.py").one_to_many
    cfg.model.query_selection.more_in_training = "${..query_groups.one_to_many.content.num_queries}"
    model = instantiate(cfg.model).train()
    losses = assert_trains_one_step(model, [make_input(64, 96, 2), make_input(50, 40, 0)])
    assert losses["loss_class_one_to_many"] > 0
    proposals = model.query_selection(model.encode(model.preprocess_image([make_input(64, 96, 2)])))
    assert proposals.anchors.shape[1] == 128 and proposals.logits.shape[1] == 20
