"""Detections of several views as one list, by hand."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from dinox.inference import NMSFusion, OneToOneEnsemble

BOX = [10.0, 10.0, 50.0, 50.0]
SHIFTED = [14.0, 10.0, 54.0, 50.0]  # IoU 36 / 44 = 0.82 with BOX
FURTHER = [20.0, 10.0, 60.0, 50.0]  # 30 / 50 = 0.6
ELSEWHERE = [70.0, 10.0, 90.0, 30.0]


def found(*detections: tuple[list[float], float, int]) -> Instances:
    boxes, scores, classes = zip(*detections, strict=True) if detections else ([], [], [])
    return Instances(
        (64, 96),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores, dtype=torch.float32),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )


def ensemble(*views: Instances, weights=None, iou=0.7) -> Instances:
    return OneToOneEnsemble(iou_threshold=iou)(views, weights or [1.0] * len(views))


def test_two_views_of_a_box_are_averaged_by_their_scores():
    """Weights 0.75 and 0.25: x0 = 0.75 * 10 + 0.25 * 14 = 11."""
    one = ensemble(found((BOX, 0.75, 0)), found((SHIFTED, 0.25, 0)))
    assert one.pred_boxes.tensor.tolist() == [[11, 10, 51, 50]]
    assert one.scores.tolist() == [0.75] and one.pred_classes.tolist() == [0] and one.image_size == (64, 96)


def test_a_views_weight_multiplies_its_scores():
    """0.5 * 0.5 against 1.5 * 0.5: x0 = 0.25 * 10 + 0.75 * 14 = 13."""
    one = ensemble(found((BOX, 0.5, 0)), found((SHIFTED, 0.5, 0)), weights=[0.5, 1.5])
    assert one.pred_boxes.tensor.tolist() == [[13, 10, 53, 50]]


def test_boxes_of_low_scores_do_not_shrink():
    """Divided by the number of boxes, as equation 3 is printed, the average of two equal ones would be a tenth."""
    assert ensemble(found((BOX, 0.1, 0)), found((BOX, 0.1, 0))).pred_boxes.tensor.tolist() == [pytest.approx(BOX)]


def test_three_views_are_averaged_together():
    """(2 * 10 + 1 * 14 + 1 * 14) / 4 = 12."""
    one = ensemble(found((BOX, 0.5, 0)), found((SHIFTED, 0.25, 0)), found((SHIFTED, 0.25, 0)))
    assert one.pred_boxes.tensor.tolist() == [[12, 10, 52, 50]]


def test_the_partner_is_the_one_that_overlaps_most_not_the_one_with_the_best_score():
    one = ensemble(found((BOX, 0.5, 0)), found((FURTHER, 0.875, 0), (SHIFTED, 0.5, 0)), iou=0.5)
    assert one.pred_boxes.tensor.tolist() == [[12, 10, 52, 50]]


@pytest.mark.parametrize(
    "other",
    [found(), found((ELSEWHERE, 0.9, 0)), found((FURTHER, 0.9, 0)), found((BOX, 0.9, 1))],
    ids=["nothing", "elsewhere", "too far", "another class"],
)
def test_what_has_no_partner_stays_to_the_bit(other):
    main = found(([10.1, 10.3, 50.7, 50.9], 0.3, 0))
    one = ensemble(main, other)
    assert torch.equal(one.pred_boxes.tensor, main.pred_boxes.tensor) and torch.equal(one.scores, main.scores)


def test_labels_are_never_mixed():
    """Two classes at one place: each is averaged with its own, however much the other one overlaps."""
    one = ensemble(found((BOX, 0.5, 0), (BOX, 0.25, 1)), found((BOX, 0.5, 1), (SHIFTED, 0.5, 0)))
    assert one.pred_classes.tolist() == [0, 1]
    assert one.pred_boxes.tensor.tolist() == [[12, 10, 52, 50], BOX]


def test_what_only_another_view_sees_is_not_added():
    assert len(ensemble(found((BOX, 0.5, 0)), found((BOX, 0.5, 0), (ELSEWHERE, 0.9, 0)))) == 1
    assert len(ensemble(found(), found((BOX, 0.9, 0)))) == 0


def test_scores_of_zero_give_no_nan():
    one = ensemble(found((BOX, 0.0, 0)), found((SHIFTED, 0.0, 0)))
    assert one.pred_boxes.tensor.tolist() == [BOX]


def test_an_overlap_of_just_the_threshold_is_not_enough():
    half = [10.0, 10.0, 50.0, 30.0]  # IoU 0.5 exactly with BOX
    assert ensemble(found((BOX, 0.5, 0)), found((half, 0.5, 0)), iou=0.5).pred_boxes.tensor.tolist() == [BOX]


def test_nms_keeps_the_better_of_two_and_adds_what_others_see():
    """As many as the main view has, the best ones of all views."""
    main = found((BOX, 0.5, 0), (ELSEWHERE, 0.25, 1), (FURTHER, 0.125, 1))
    one = NMSFusion(iou_threshold=0.7)([main, found((SHIFTED, 0.75, 0), (BOX, 0.375, 1))], [1.0, 1.0])
    assert one.scores.tolist() == [0.75, 0.375, 0.25] and one.pred_classes.tolist() == [0, 1, 1]
    assert one.pred_boxes.tensor.tolist() == [SHIFTED, BOX, ELSEWHERE]


def test_nms_compares_weighted_scores():
    one = NMSFusion()([found((BOX, 0.5, 0)), found((SHIFTED, 0.75, 0))], [1.0, 0.5])
    assert one.pred_boxes.tensor.tolist() == [BOX] and one.scores.tolist() == [0.5]


@pytest.mark.parametrize("kind", [OneToOneEnsemble, NMSFusion])
def test_a_threshold_that_is_none_is_refused(kind):
    with pytest.raises(ValueError, match=r"iou_threshold: expected a number from 0 to 1, got 1\.5"):
        kind(iou_threshold=1.5)
