import pytest
import torch

from dinox.losses import FocalLoss, GIoULoss, L1Loss
from dinox.matching import FocalCost, GIoUCost, HungarianMatcher, L1Cost
from dinox.modeling import Criterion
from dinox.structures import PredictionSet, Targets

WEIGHTS = {"class": 1.0, "bbox": 5.0, "giou": 2.0}


def make_criterion(**options) -> Criterion:
    parts = {"class_loss": FocalLoss(), "bbox_loss": L1Loss(), "giou_loss": GIoULoss(), "weights": WEIGHTS}
    matcher = HungarianMatcher(class_cost=FocalCost(), bbox_cost=L1Cost(), giou_cost=GIoUCost())
    return Criterion(matcher=matcher, **{**parts, **options})


def make_set(name: str = "matching", layers: int = 2, **rules) -> PredictionSet:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(layers, 2, 6, 3, generator=generator)
    return PredictionSet(name, logits, torch.rand(layers, 2, 6, 4, generator=generator) * 0.5 + 0.2, **rules)


def make_targets(*counts: int) -> Targets:
    generator = torch.Generator().manual_seed(1)
    labels = [torch.randint(3, (n,), generator=generator) for n in counts]
    return Targets.from_lists(labels, [torch.rand(n, 4, generator=generator) * 0.5 + 0.2 for n in counts])


def test_keys_derive_from_groups_and_layers():
    sets = [
        make_set("denoising", target_index=torch.full((2, 6), -1)),
        make_set(),
        make_set("encoder", 1),
        make_set("one_to_many", 1),
    ]
    keys = set(make_criterion()(sets, make_targets(1, 2)))
    suffixes = ["", "_0", "_dn", "_dn_0", "_enc", "_one_to_many"]
    assert keys == {f"loss_{kind}{suffix}" for kind in WEIGHTS for suffix in suffixes}


def test_costs_that_are_not_finite_make_every_loss_nan_until_the_next_batch(caplog):
    """Here of a query that no object is matched to, which is in no box loss; on another rank there may be nothing
    wrong."""
    criterion, targets = make_criterion(), make_targets(1, 2)
    sets = [make_set("denoising", target_index=torch.full((2, 6), -1)), make_set()]
    expected = criterion(sets, targets)
    index = criterion.assign(sets, targets)[1]
    query = int((index[1, 0] == -1).nonzero()[0])
    before, sets[1].boxes[1, 0, query, 2] = sets[1].boxes[1, 0, query, 2].clone(), float("nan")
    for _ in range(2):
        losses = criterion(sets, targets)
        assert losses.keys() == expected.keys()
        assert all(loss.isnan() for loss in losses.values())
    assert "bbox_cost" in criterion.non_finite_costs or "boxes of prediction set" in criterion.non_finite_costs
    assert [record.message for record in caplog.records] == [f"All losses are NaN: {criterion.non_finite_costs}"]
    sets[1].boxes[1, 0, query, 2] = before
    assert criterion(sets, targets) == expected
    assert criterion.non_finite_costs is None


def test_perfect_boxes_cost_nothing():
    targets = make_targets(2, 1)
    boxes = torch.full((1, 2, 6, 4), 0.5)
    boxes[:, :, :2] = targets.boxes
    index = torch.tensor([[0, 1, -1, -1, -1, -1], [0, -1, -1, -1, -1, -1]])
    losses = make_criterion()([PredictionSet("known", torch.zeros(1, 2, 6, 3), boxes, index)], targets)
    assert losses["loss_bbox_known"] == 0
    assert losses["loss_giou_known"].abs() < 1e-4  # the 1e-6 in the denominators


def test_matched_losses_are_divided_by_objects_times_repeats():
    """By hand: the distances of the pairs, times their weight, over 3 objects x 2."""
    targets, some = make_targets(2, 1), make_set("some", repeats=2)
    criterion = make_criterion()
    (index,) = criterion.assign([some], targets)
    assert (index >= 0).sum().item() == 2 * 3 * 2  # 2 layers
    losses = criterion([some], targets)
    for layer, key in enumerate(["loss_bbox_some_0", "loss_bbox_some"]):
        distance = sum(
            (some.boxes[layer, image, query] - targets.boxes[image, index[layer, image, query]]).abs().sum()
            for image in range(2)
            for query in range(6)
            if index[layer, image, query] >= 0
        )
        torch.testing.assert_close(losses[key], 5 * distance / (3 * 2))


def test_repeated_objects_cost_what_a_list_of_repeated_objects_costs():
    """H-DETR, literally: every object three times in the list of targets, matched one to one."""
    targets = make_targets(2, 1)
    literal = Targets.from_lists(
        [targets.labels[b, :n].repeat(3) for b, n in enumerate(targets.counts)],
        [targets.boxes[b, :n].repeat(3, 1) for b, n in enumerate(targets.counts)],
    )
    expected = make_criterion()([make_set("some")], literal)
    losses = make_criterion()([make_set("some", repeats=3)], targets)
    assert losses.keys() == expected.keys()
    for key, value in losses.items():
        torch.testing.assert_close(value, expected[key])


def test_subgroups_are_matched_by_themselves():
    """Three groups of two queries: the losses are the mean of those of three models that have one group each."""
    targets, together = make_targets(2, 1), make_set("others", repeats=3, subgroup_size=2)
    apart = [
        make_criterion()([PredictionSet("others", together.logits[:, :, rows], together.boxes[:, :, rows])], targets)
        for rows in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    for key, value in make_criterion()([together], targets).items():
        torch.testing.assert_close(value, sum(losses[key] for losses in apart) / 3)


def test_a_group_may_have_a_factor_for_all_of_its_losses():
    sets = [make_set(), make_set("one_to_many", repeats=2)]
    plain = make_criterion()(sets, make_targets(1, 2))
    halved = make_criterion(group_weights={"one_to_many": 0.5})(sets, make_targets(1, 2))
    for key, value in halved.items():
        torch.testing.assert_close(value, plain[key] * (0.5 if "one_to_many" in key else 1.0))


def test_losses_of_known_targets_are_divided_by_their_positives():
    """Two copies of three objects: the sums are twice those of one copy, and so is the divisor."""
    index = torch.tensor([[0, 1, -1], [0, -1, -1]])
    half = make_set("known")
    one = PredictionSet("known", half.logits[:, :, :3], half.boxes[:, :, :3], index)
    two = PredictionSet("known", one.logits.repeat(1, 1, 2, 1), one.boxes.repeat(1, 1, 2, 1), index.repeat(1, 2))
    expected = make_criterion()([one], make_targets(2, 1))
    for key, value in make_criterion()([two], make_targets(2, 1)).items():
        torch.testing.assert_close(value, expected[key])


def test_weights_of_an_unknown_group_are_an_error():
    with pytest.raises(ValueError, match=r"no query group 'denosing'\. Did you mean 'denoising'"):
        make_criterion(group_weights={"denosing": {"class": 1.0}})([make_set()], make_targets(1, 1))


def test_weights_belong_to_group_and_loss():
    index = torch.full((2, 6), -1)
    plain = make_criterion()([make_set(), make_set("denoising", target_index=index)], make_targets(1, 2))
    criterion = make_criterion(weights={**WEIGHTS, "class": 6.0}, group_weights={"denoising": {"class": 1.0}})
    weighted = criterion([make_set(), make_set("denoising", target_index=index)], make_targets(1, 2))
    torch.testing.assert_close(weighted["loss_class"], 6 * plain["loss_class"])
    torch.testing.assert_close(weighted["loss_class_dn"], plain["loss_class_dn"])
    torch.testing.assert_close(weighted["loss_bbox"], plain["loss_bbox"])


def test_an_empty_batch_has_class_loss_only():
    losses = make_criterion()([make_set()], make_targets(0, 0))
    assert losses["loss_class"] > 0
    assert losses["loss_bbox"] == 0 and losses["loss_giou"] == 0


def test_a_loss_can_be_left_out():
    assert "loss_giou" not in make_criterion(giou_loss=None)([make_set()], make_targets(1, 1))


def test_misspelt_and_missing_weights_are_errors():
    with pytest.raises(ValueError, match=r"missing \['giou'\], unknown \['iou'\]"):
        make_criterion(weights={"class": 1.0, "bbox": 5.0, "iou": 2.0})
    with pytest.raises(ValueError, match=r"unknown \['clas'\]"):
        make_criterion(group_weights={"denoising": {"clas": 1.0}})
