import logging

import pytest
import torch

from dinox.modeling import (
    CenterShiftAndScale,
    ContrastiveBoxNoise,
    DenoisingQueries,
    DynamicGroups,
    FixedGroups,
    LabelEmbedding,
    SameRangeBoxNoise,
)
from dinox.structures import QueryContext, Targets, cxcywh_to_xyxy

from ..small_models import make_memory


def make_targets(*counts: int, num_classes: int = 5) -> Targets:
    generator = torch.Generator().manual_seed(0)
    boxes = [torch.rand(n, 4, generator=generator) * 0.3 + 0.3 for n in counts]
    labels = [torch.randint(num_classes, (n,), generator=generator) for n in counts]
    return Targets.from_lists(labels, boxes)


def make_group(targets: Targets, *, box_noise=None, groups=None, seed: int = 0, **options):
    denoising = DenoisingQueries(
        num_classes=5,
        label_embedding=LabelEmbedding(num_classes=5, embed_dim=8),
        box_noise=box_noise or ContrastiveBoxNoise(),
        groups=groups or DynamicGroups(num_queries=10),
        **options,
    )
    memory = make_memory(torch.zeros(len(targets.counts), 1, 8))
    return denoising(QueryContext(memory, targets=targets, generator=torch.Generator().manual_seed(seed)))


def count_groups(group) -> int:
    return group.size // group.subgroup_size


def test_the_number_of_groups_follows_the_fullest_image():
    assert count_groups(make_group(make_targets(2, 5))) == 2
    assert count_groups(make_group(make_targets(1))) == 10
    assert count_groups(make_group(make_targets(50))) == 1
    assert count_groups(make_group(make_targets(2, 5), groups=FixedGroups(num_groups=3))) == 3


def test_the_cap_limits_the_number_of_groups():
    assert count_groups(make_group(make_targets(1), groups=DynamicGroups(num_queries=100), max_queries=20)) == 10


def test_positives_know_their_object_and_all_else_is_background():
    group = make_group(make_targets(2, 1), groups=FixedGroups(num_groups=2))
    assert group.target_index.tolist() == [[0, 1, -1, -1] * 2, [0, -1, -1, -1] * 2]


def test_contrastive_noise_moves_positives_less_than_negatives():
    """Every corner coordinate: within lambda1 half sizes, or between lambda1 and lambda2 of them (section 3.3)."""
    targets = make_targets(4)
    group = make_group(
        targets, box_noise=ContrastiveBoxNoise(lambda1=0.4, lambda2=0.8), groups=FixedGroups(num_groups=20)
    )
    anchors = group.anchors.view(20, 2, 4, 4)
    moved = (cxcywh_to_xyxy(anchors) - cxcywh_to_xyxy(targets.boxes)).abs()
    share = moved / (targets.boxes[..., 2:].repeat(1, 1, 2) / 2)
    assert share[:, 0].max() <= 0.4 + 1e-3
    assert share[:, 1].min() >= 0.4 - 1e-3
    assert share[:, 1].max() <= 0.8 + 1e-3


def test_without_the_offset_negatives_move_as_little_as_positives():
    """The released Stable-DINO: both halves within the scale, in 240 coordinates each also below a fifth of it."""
    targets = make_targets(4)
    group = make_group(targets, box_noise=SameRangeBoxNoise(scale=0.5), groups=FixedGroups(num_groups=20))
    moved = (cxcywh_to_xyxy(group.anchors.view(20, 2, 4, 4)) - cxcywh_to_xyxy(targets.boxes)).abs()
    share = moved / (targets.boxes[..., 2:].repeat(1, 1, 2) / 2)
    assert share.max() <= 0.5 + 1e-3
    for half in (0, 1):
        assert share[:, half].min() < 0.1 and share[:, half].max() > 0.4
    assert (group.target_index.view(20, 2, 4) == torch.tensor([[0, 1, 2, 3], [-1] * 4])).all()


def test_center_shifting_keeps_the_centre_in_the_box_and_scaling_keeps_the_size_in_range():
    targets = make_targets(4)
    group = make_group(
        targets, box_noise=CenterShiftAndScale(center_shift=0.4, scale=0.2), groups=FixedGroups(num_groups=20)
    )
    anchors = group.anchors.view(20, 4, 4)
    boxes = targets.boxes[0]
    assert ((anchors[..., :2] - boxes[:, :2]).abs() <= 0.4 * boxes[:, 2:] / 2 + 1e-3).all()
    assert ((anchors[..., 2:] / boxes[:, 2:] - 1).abs() <= 0.2 + 1e-3).all()


def test_flipped_labels_are_classes_and_never_the_unknown_one():
    embedding = LabelEmbedding(num_classes=5, embed_dim=8, unknown_class=True, indicator=True)
    rows = embedding.table.weight.detach()
    denoising = DenoisingQueries(
        num_classes=5,
        label_embedding=embedding,
        box_noise=CenterShiftAndScale(),
        groups=FixedGroups(num_groups=50),
        flip_probability=1.0,
    )
    context = QueryContext(make_memory(torch.zeros(1, 1, 8)), targets=make_targets(4))
    content = denoising(context).content[0]
    assert (content[:, -1] == 1).all()  # the indicator
    drawn = {int((rows == c[:-1]).all(1).nonzero()[0]) for c in content}
    assert drawn == set(range(5))


def test_crowded_images_are_subsampled_to_the_cap_with_one_warning(caplog):
    denoising_options = {"max_queries": 40, "groups": FixedGroups(num_groups=2)}
    with caplog.at_level(logging.WARNING):
        group = make_group(make_targets(300, 3), **denoising_options)
    assert group.size == 40  # 2 groups x 2 halves x 10 objects
    chosen = group.target_index[0, :10]
    assert chosen.min() >= 0 and len(set(chosen.tolist())) == 10
    assert group.target_index[1, :10].tolist() == [0, 1, 2] + [-1] * 7
    assert len([r for r in caplog.records if "300 objects" in r.getMessage()]) == 1


def test_a_generator_makes_the_noise_repeatable():
    targets = make_targets(3)
    assert torch.equal(make_group(targets, seed=1).anchors, make_group(targets, seed=1).anchors)
    assert not torch.equal(make_group(targets, seed=1).anchors, make_group(targets, seed=2).anchors)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CenterShiftAndScale(center_shift=-0.1), r"center_shift must lie in \[0, 1\], got -0.1"),
        (lambda: ContrastiveBoxNoise(lambda1=2.0, lambda2=1.0), "lambda1 <= lambda2, got lambda1 = 2.0"),
        (lambda: make_group(make_targets(1), flip_probability=1.5), "flip_probability must lie in"),
        (lambda: make_group(make_targets(1), max_queries=1), "max_queries = 1 has no room"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
