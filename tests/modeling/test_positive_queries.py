"""Customised positive queries of an auxiliary head."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from dinox.losses import FocalLoss, GIoULoss, L1Loss, QualityFocalLoss, SoftmaxLoss
from dinox.modeling import (
    BackgroundPadding,
    Criterion,
    EmbeddedPositives,
    HeadEmbedding,
    PositiveAnchors,
    PositiveFeatures,
    PositiveQueries,
    ReleasedHeadEmbedding,
    ZeroPadding,
)
from dinox.structures import HeadSamples, PredictionSet, QueryContext, Targets

from ..small_models import make_memory

DIM = 16
SIZES = ((64, 96), (40, 50))


def make_context(num_positives: tuple[int, ...], num_samples: int = 400, *, seed: int = 0) -> QueryContext:
    """Samples of a head "atss": random boxes, of which so many are positive, in random places."""
    generator = torch.Generator().manual_seed(seed)
    images = len(num_positives)
    boxes = torch.rand(images, num_samples, 4, generator=generator) * 30
    boxes[..., 2:] += boxes[..., :2] + 1
    target_index = torch.full((images, num_samples), -1)
    for row, count in zip(target_index, num_positives, strict=True):
        row[torch.randperm(num_samples, generator=generator)[:count]] = torch.arange(count) % 3
    features = torch.randn(images, num_samples, DIM, generator=generator)
    samples = HeadSamples(boxes, target_index, lambda index: features.gather(1, index[..., None].expand(-1, -1, DIM)))
    memory = make_memory(torch.zeros(images, 1, DIM))
    return QueryContext(memory, samples={"atss": samples}, image_sizes=SIZES[:images], generator=generator)


def make_queries(padding=None, *, embedding=None, **options) -> PositiveQueries:
    torch.manual_seed(0)
    return PositiveQueries(
        head="atss",
        embedding=embedding or PositiveAnchors(embed_dim=DIM),
        padding=padding or BackgroundPadding(),
        **options,
    )


# ---------------------------------------------------------------------------------------------- which samples are taken


@pytest.mark.parametrize(
    ("positives", "size"), [((0, 0), 9), ((3, 0), 9), ((3, 12), 12), ((299, 1), 299), ((350, 5), 300)], ids=str
)
def test_there_are_as_many_queries_as_positives_of_the_fullest_image_within_bounds(positives, size):
    group = make_queries()(make_context(positives))
    assert group.size == size
    assert (group.target_index >= 0).sum(1).tolist() == [min(count, size) for count in positives]


def test_all_positives_come_first_in_the_order_of_the_samples_and_background_fills_up():
    context = make_context((3, 12))
    samples = context.samples["atss"]
    choice = make_queries().choose(samples, context)
    for index, target_index, count in zip(choice.index, samples.target_index, (3, 12), strict=True):
        assert index[:count].tolist() == (target_index >= 0).nonzero()[:, 0].tolist()
        assert (target_index[index[count:]] == -1).all() and len(set(index.tolist())) == 12
    assert choice.filled is None


def test_of_too_many_positives_a_random_choice_is_taken():
    context = make_context((350, 5))
    maker, samples = make_queries(), context.samples["atss"]
    first, second = (maker.choose(samples, context).index for _ in range(2))
    assert not torch.equal(first[0], second[0])
    assert (samples.target_index[0][first[0]] >= 0).all() and len(set(first[0].tolist())) == 300
    assert torch.equal(first[1, :5], second[1, :5])


def test_the_choice_is_that_of_recorded_numbers():
    context = make_context((1, 0), num_samples=12)
    maker, samples = make_queries(), context.samples["atss"]
    keys = torch.rand(2, 12)
    maker.sample_keys = lambda shape, context: keys
    choice = maker.choose(samples, context)
    lowest = keys[1].argsort()[:9].sort().values  # no positives: the nine background samples of the lowest numbers
    assert torch.equal(choice.index[1], lowest)


def test_an_image_with_fewer_samples_than_queries_leaves_slots_empty():
    group = make_queries()(make_context((2, 0), num_samples=5))
    assert group.size == 9
    assert group.padding_mask.tolist() == [[False] * 5 + [True] * 4] * 2
    assert (group.target_index[:, 5:] == -1).all() and (group.anchors[:, 5:] == 0.5).all()


def test_boxes_in_padding_are_taken_only_where_there_is_no_other_background():
    context = make_context((2, 0), num_samples=12)
    samples = context.samples["atss"]
    samples.boxes[:, ::2] = 0.0
    samples.target_index[:] = -1
    group = make_queries()(context)
    assert (group.anchors[..., 2] > 1e-4).sum(1).tolist() == [6, 6]  # all that have a size
    assert (group.anchors[..., 2:] > 0).all()  # decoders divide by it


def test_zero_padding_leaves_out_background():
    group = make_queries(ZeroPadding())(make_context((3, 12)))
    assert (group.padding_mask == (group.target_index == -1)).all()
    assert group.padding_mask.sum(1).tolist() == [9, 0]


def test_there_are_none_at_inference():
    assert make_queries()(dataclasses.replace(make_context((3, 12)), samples=None)) is None


def test_a_head_that_does_not_exist_is_named():
    maker = make_queries()
    maker.head = "ats"
    with pytest.raises(ValueError, match=r"no such auxiliary head, only atss. Did you mean 'atss'"):
        maker(make_context((3, 12)))


# ------------------------------------------------------------------------------------------------------------- queries


def embed(box: list[float]) -> list[float]:
    """PE of a box in [0, 1], written out: x, y, w, h, of DIM / 2 numbers each, sine on even and cosine on odd ones."""
    features = []
    for value in box:
        for k in range(DIM // 2):
            angle = value * 2 * math.pi / 10000 ** (2 * (k // 2) / (DIM // 2))
            features.append(math.cos(angle) if k % 2 else math.sin(angle))
    return features


def normed(module: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
    projected = features @ module.projection.weight.T + module.projection.bias
    return F.layer_norm(projected, projected.shape[-1:], module.norm.weight, module.norm.bias)


def scattered(module: torch.nn.Module) -> torch.nn.Module:
    """Norms start with weights of 1 and 0, which hide a good deal."""
    for parameter in module.parameters():
        parameter.data.normal_()
    return module


def test_boxes_are_shares_of_the_image_without_padding_as_centre_and_size():
    context = make_context((3, 12))
    maker = make_queries()
    maker.sample_keys = lambda shape, context: torch.linspace(0, 0.9, shape[1]).expand(shape)
    index = maker.choose(context.samples["atss"], context).index
    anchors = maker(context).anchors
    for b, (height, width) in enumerate(SIZES):
        for slot in (0, 3, 11):
            x1, y1, x2, y2 = context.samples["atss"].boxes[b, index[b, slot]].tolist()
            expected = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
            assert anchors[b, slot].tolist() == pytest.approx(expected, rel=1e-5)


BOXES = torch.tensor([[[0.5, 0.25, 0.125, 0.75], [0.9, 0.8, 0.1, 0.3]]])
FEATURES = torch.randn(1, 2, DIM, generator=torch.Generator().manual_seed(1))
# Both sides in float32, of sums of 4 * DIM / 2 products of the order of 1.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def test_content_for_anchors_is_a_normed_map_of_the_embedded_box():
    embedding = scattered(PositiveAnchors(embed_dim=DIM))
    placed = embedding(BOXES, lambda: pytest.fail("features are off"))
    expected = normed(embedding.boxes, torch.tensor([[embed(box) for box in BOXES[0].tolist()]]))
    torch.testing.assert_close(placed.content, expected, **TOLERANCE)
    assert torch.equal(placed.anchors, BOXES) and placed.positions is None


def test_features_can_be_added_to_the_content_for_anchors():
    embedding = scattered(PositiveAnchors(embed_dim=DIM, features=PositiveFeatures(embed_dim=DIM)))
    with_features = embedding(BOXES, lambda: FEATURES).content
    own = normed(embedding.features, FEATURES)
    torch.testing.assert_close(with_features - embedding.boxes.embed(BOXES), own, **TOLERANCE)


@pytest.mark.parametrize("head_embedding", [None, HeadEmbedding(embed_dim=DIM), ReleasedHeadEmbedding()])
def test_given_positions_and_content_are_the_halves_of_one_map(head_embedding):
    embedding = scattered(
        EmbeddedPositives(
            embed_dim=DIM, features=PositiveFeatures(embed_dim=DIM), head_embedding=head_embedding, anchor_dim=2
        )
    )
    placed = embedding(BOXES, lambda: FEATURES)
    halves = normed(embedding.boxes, torch.tensor([[embed(box) for box in BOXES[0].tolist()]]))
    own = 0 if head_embedding is None else head_embedding.weight
    torch.testing.assert_close(placed.positions, halves[..., :DIM] + own, **TOLERANCE)
    torch.testing.assert_close(placed.content, halves[..., DIM:] + normed(embedding.features, FEATURES), **TOLERANCE)
    assert torch.equal(placed.anchors, BOXES[..., :2])


def test_the_released_head_embedding_is_one_number():
    assert ReleasedHeadEmbedding().weight.shape == (1,)
    assert HeadEmbedding(embed_dim=DIM).weight.shape == (DIM,)


def test_boxes_beyond_the_image_are_embedded_as_if_they_ended_at_its_border():
    embedding = PositiveAnchors(embed_dim=DIM)
    outside = torch.tensor([[[-0.2, 1.3, 0.5, 1.7]]])
    placed = embedding(outside, lambda: FEATURES)
    expected = normed(embedding.boxes, torch.tensor([[embed([1e-5, 1 - 1e-5, 0.5, 1 - 1e-5])]]))
    # 1 - 1e-5 is rounded to float32 by 6e-8, of which sines make no more than 2 pi times as much.
    torch.testing.assert_close(placed.content, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(placed.anchors, outside)


@pytest.mark.parametrize("positives", [(0, 0), (1, 0), (350, 5)], ids=str)
def test_every_parameter_gets_a_gradient(positives):
    embedding = EmbeddedPositives(
        embed_dim=DIM, features=PositiveFeatures(embed_dim=DIM), head_embedding=HeadEmbedding(embed_dim=DIM)
    )
    maker = make_queries(embedding=embedding)
    group = maker(make_context(positives))
    (group.content.sum() + group.positions.sum()).backward()
    assert all(parameter.grad is not None for parameter in maker.parameters())


# -------------------------------------------------------------------------------------------------------------- losses


def losses_of(group, seed: int = 0, class_loss=None, keep: list[torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Random predictions for the group; of only the slots to ``keep``, image after image, where that is given."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, *group.target_index.shape, 5, generator=generator)
    boxes = torch.rand(3, *group.target_index.shape, 4, generator=generator) * 0.5 + 0.1
    objects = [torch.rand(3, 4, generator=generator) * 0.5 + 0.1 for _ in range(2)]
    targets = Targets.from_lists([torch.tensor([1, 4, 2])] * 2, objects)
    criterion = Criterion(
        matcher=None,
        class_loss=class_loss or FocalLoss(),
        bbox_loss=L1Loss(),
        giou_loss=GIoULoss(),
        weights={"class": 2.0, "bbox": 5.0, "giou": 2.0},
    )
    if keep is None:
        predictions = [PredictionSet("p", logits, boxes, group.target_index, padding_mask=group.padding_mask)]
        return criterion(predictions, targets)
    sums: dict[str, torch.Tensor] = {}
    for b, slots in enumerate(keep):  # each image by itself; undo and redo the division by positives
        index = group.target_index[b : b + 1, slots]
        alone = Targets.from_lists([targets.labels[b, :3]], [objects[b]])
        found = criterion([PredictionSet("p", logits[:, b : b + 1, slots], boxes[:, b : b + 1, slots], index)], alone)
        for key, loss in found.items():
            sums[key] = sums.get(key, 0) + loss * (index >= 0).sum().clamp(min=1)
    return {key: loss / (group.target_index >= 0).sum().clamp(min=1) for key, loss in sums.items()}


@pytest.mark.parametrize("class_loss", [FocalLoss(), QualityFocalLoss()], ids=["focal", "quality focal"])
def test_empty_slots_enter_no_loss(class_loss):
    group = make_queries(ZeroPadding())(make_context((3, 12)))
    found = losses_of(group, class_loss=class_loss)
    expected = losses_of(group, class_loss=class_loss, keep=[torch.arange(3), torch.arange(12)])
    assert found.keys() == expected.keys()
    for key, loss in expected.items():
        torch.testing.assert_close(found[key], loss)


def test_empty_slots_do_not_count_in_a_softmax_loss_either():
    group = make_queries(ZeroPadding())(make_context((3, 12)))
    found = losses_of(group, class_loss=SoftmaxLoss())["loss_class_p"]
    kept = [~group.padding_mask[0], ~group.padding_mask[1]]
    logits = torch.randn(3, 2, 12, 5, generator=torch.Generator().manual_seed(0))[-1]  # as losses_of draws them
    labels = torch.tensor([1, 4, 2])[group.target_index.clamp(min=0)]
    own = [F.cross_entropy(logits[b][kept[b]], labels[b][kept[b]], reduction="sum") for b in range(2)]
    torch.testing.assert_close(found, 2.0 * sum(own) / 15)  # all 15 are positive, each of weight 1


def test_background_slots_enter_the_class_loss_alone():
    group = make_queries()(make_context((3, 12)))
    found = losses_of(group)
    everything = losses_of(group, keep=[torch.arange(12), torch.arange(12)])
    positives = losses_of(group, keep=[torch.arange(3), torch.arange(12)])
    torch.testing.assert_close(found, everything)
    assert found["loss_class_p"] > positives["loss_class_p"]
    for key in ("loss_bbox_p", "loss_giou_p"):
        torch.testing.assert_close(found[key], positives[key])


def test_losses_of_a_head_without_positives_are_finite_and_those_of_boxes_zero():
    for padding in (BackgroundPadding(), ZeroPadding()):
        found = losses_of(make_queries(padding)(make_context((0, 0))))
        assert all(torch.isfinite(loss) for loss in found.values())
        assert found["loss_bbox_p"] == 0 and found["loss_giou_p"] == 0
        assert (found["loss_class_p"] == 0) == isinstance(padding, ZeroPadding)


def test_bounds_that_make_no_sense_are_rejected():
    with pytest.raises(ValueError, match="fewest = 10 and most = 5"):
        make_queries(fewest=10, most=5)
    with pytest.raises(ValueError, match=r"anchor_dim must be 2 \(points\) or 4 \(boxes\), got 3"):
        EmbeddedPositives(embed_dim=DIM, features=None, anchor_dim=3)
