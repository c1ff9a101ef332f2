"""Non-maximum suppression behind a ranking."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from dinox.modeling import ClassNMS, ClassSoftNMS, TopKDetections
from dinox.structures import BEFORE_NMS, RawPredictions

from ..small_models import build_small, make_input, randomise_heads

# Beside box A, B has an IoU of 9/10 (90 of 100 columns shared: 90 / 100), C one of 7/10.
A, B, C = [0.0, 0, 100, 10], [0.0, 0, 90, 10], [0.0, 0, 70, 10]
FAR = [0.0, 50, 100, 60]


def detections(boxes: list, scores: list[float], classes: list[int]) -> Instances:
    return Instances(
        (64, 128),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes),
    )


def crowded(count: int, num_classes: int, *, seed: int) -> Instances:
    """Ranked detections that overlap much, some of them beyond the image, some with equal scores."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randint(-1, 3, (count, 2), generator=generator) * 40.0
    corners = centres + torch.rand(count, 2, generator=generator) * 8 - 20
    sizes = 50 + torch.rand(count, 2, generator=generator) * 12
    scores = (torch.rand(count, generator=generator) * 50).round().div(50).sort(descending=True).values
    classes = torch.randint(num_classes, (count,), generator=generator)
    return detections(torch.cat([corners, corners + sizes], 1).tolist(), scores.tolist(), classes.tolist())


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / area if area else 0.0


def nms_by_loops(found: Instances, threshold: float) -> list[int]:
    boxes, classes, kept = found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), []
    for i, box in enumerate(boxes):  # best first
        if all(classes[i] != classes[k] or overlap(box, boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


def soft_nms_by_loops(found: Instances, threshold: float, min_score: float) -> list[tuple[int, float]]:
    """(index, score), in the order in which they are taken."""
    boxes, classes = found.pred_boxes.tensor.tolist(), found.pred_classes.tolist()
    scores, left, taken = found.scores.tolist(), list(range(len(boxes))), []
    while left:
        best = max(left, key=lambda i: (scores[i], -i))
        left.remove(best)
        taken.append((best, scores[best]))
        for i in left:
            iou = overlap(boxes[best], boxes[i])
            if classes[i] == classes[best] and iou > threshold:
                scores[i] *= 1 - iou
        left = [i for i in left if scores[i] >= min_score]
    return taken


def test_the_lower_score_of_two_boxes_of_a_class_goes():
    found = ClassNMS(ranking=TopKDetections()).suppress(
        detections([A, B, C, FAR, B], [0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 1, 1, 0])
    )
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, 0.6, 0.5]), atol=0, rtol=0)  # as they were
    assert found.pred_classes.tolist() == [1, 1, 1, 0]
    loose = ClassNMS(ranking=TopKDetections(), iou_threshold=0.95)
    assert len(loose.suppress(detections([A, B], [0.9, 0.8], [1, 1]))) == 2


def test_classes_never_suppress_each_other_wherever_the_boxes_are():
    """An offset of the largest coordinate, which is what keeps classes apart, is too small for boxes on both sides of
    the origin: the second class's box would lie upon the first one's."""
    left, right = [-101.0, -101, -1, -91], [0.0, 0, 100, 10]
    found = detections([right, left, left], [0.9, 0.8, 0.7], [0, 1, 1])
    assert ClassNMS(ranking=TopKDetections()).suppress(found).scores.tolist() == pytest.approx([0.9, 0.8])
    # The last class of LVIS: at 1202 * 1334 pixels float32 knows eighths, and 0.81 of a pixel would become 0.75.
    narrow = detections([[0.0, 0, 1.0, 1333], [0.0, 0, 0.81, 1333]], [0.9, 0.8], [1202, 1202])
    assert len(ClassNMS(ranking=TopKDetections()).suppress(narrow)) == 1


@pytest.mark.parametrize("num_classes", [1, 4])
def test_nms_is_that_of_a_loop_over_pairs(num_classes):
    found = crowded(120, num_classes, seed=num_classes)
    kept = nms_by_loops(found, 0.6)
    assert 5 < len(kept) < 100
    result = ClassNMS(ranking=TopKDetections(), iou_threshold=0.6).suppress(found)
    assert torch.equal(result.pred_boxes.tensor, found.pred_boxes.tensor[kept])
    assert torch.equal(result.scores, found.scores[kept])


def test_soft_nms_by_hand():
    """B is lowered by A to 0.8 * (1 - 0.9); then C, whose IoU with B is 7/9, is not lowered, for A's with it is 0.7."""
    found = ClassSoftNMS(ranking=TopKDetections()).suppress(
        detections([A, B, C, B], [0.9, 0.8, 0.7, 0.3], [1, 1, 1, 0])
    )
    # float32 rounds 0.1 * 0.8 by less than 1e-7.
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, 0.3, 0.08]), atol=1e-6, rtol=0)
    assert found.pred_boxes.tensor.tolist() == [A, C, B, B] and found.pred_classes.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_soft_nms_is_that_of_taking_one_detection_after_the_other(num_classes, threshold):
    found = crowded(120, num_classes, seed=10 + num_classes)
    found.pred_boxes.clip(found.image_size)
    taken = soft_nms_by_loops(found, threshold, 1e-3)
    assert any(score < found.scores[i] for i, score in taken)
    part = ClassSoftNMS(ranking=TopKDetections(), iou_threshold=threshold)
    result = part.suppress(found)
    expected = sorted((score for _, score in taken if score >= 1e-3), reverse=True)
    # The loop computes in double precision: relative 1e-5 is a hundred roundings of float32.
    torch.testing.assert_close(result.scores, torch.tensor(expected), atol=1e-8, rtol=1e-5)
    order = sorted(taken, key=lambda each: -each[1])[: len(result)]
    boxes = found.pred_boxes.tensor[[i for i, _ in order]]
    clear = torch.tensor(expected).diff().abs() > 1e-5  # equal scores may stand in any order
    clear = torch.cat([clear, clear.new_ones(1)]) & torch.cat([clear.new_ones(1), clear])
    assert clear.sum() > 5
    assert torch.equal(result.pred_boxes.tensor[clear], boxes[clear])


def test_soft_nms_compares_what_of_the_boxes_is_on_the_image():
    """On the image the two are equal: the second one's score is multiplied by 0. Beyond it they have 128 of 218
    columns in common, which is below the threshold. The detections that go in stay as they are."""
    beyond = detections([[-60.0, 0, 128, 10], [0.0, 0, 158, 10]], [0.9, 0.8], [0, 0])
    part = ClassSoftNMS(ranking=TopKDetections())
    kept = part.suppress(beyond)
    assert kept.scores.tolist() == pytest.approx([0.9]) and kept.pred_boxes.tensor.tolist() == [[0, 0, 128, 10]]
    assert beyond.pred_boxes.tensor.tolist() == [[-60, 0, 128, 10], [0, 0, 158, 10]]
    assert len(ClassNMS(ranking=TopKDetections()).suppress(beyond)) == 2  # as Stable-DINO's code


def test_soft_nms_drops_low_scores_and_keeps_so_many():
    ranked = detections([A, A, FAR], [0.9, 0.8, 0.0005], [0, 0, 0])
    part = ClassSoftNMS(ranking=TopKDetections(num_detections=900))
    assert part.suppress(ranked).scores.tolist() == pytest.approx([0.9])  # an IoU of 1 leaves nothing
    few = ClassSoftNMS(ranking=TopKDetections(), num_detections=2)
    three = detections([A, B, FAR], [0.9, 0.8, 0.7], [0, 0, 0])
    assert few.suppress(three).scores.tolist() == pytest.approx([0.9, 0.7])


@pytest.mark.parametrize("part", [ClassNMS, ClassSoftNMS])
def test_nothing_ranked_stays_nothing(part):
    empty = crowded(3, 1, seed=0)[:0]
    assert len(part(ranking=TopKDetections()).suppress(empty)) == 0


@pytest.mark.parametrize("part", [ClassNMS, ClassSoftNMS])
def test_a_part_suppresses_what_its_ranking_gives(part):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 30, 2, generator=generator)
    boxes = 0.4 + 0.2 * torch.rand(1, 2, 30, 4, generator=generator)
    predictions, sizes = RawPredictions(logits, boxes), [(64, 128), (32, 32)]
    ranking = TopKDetections(num_detections=20)
    suppression = part(ranking=ranking, iou_threshold=0.5)
    for found, ranked in zip(suppression(predictions, sizes), ranking(predictions, sizes), strict=True):
        own = suppression.suppress(ranked)
        assert 0 < len(found) <= len(ranked) == 20 and found.image_size == ranked.image_size
        assert torch.equal(found.scores, own.scores)
        assert torch.equal(found.pred_boxes.tensor, own.pred_boxes.tensor)


def test_models_give_what_was_there_before_nms_too():
    model = randomise_heads(build_small()).eval()
    images = [make_input(70, 90, 0) | {"height": 140, "width": 180}, make_input(64, 64, 0, seed=1)]
    plain = model(images)
    assert {key for output in plain for key in output} == {"instances"}
    model.postprocess = ClassNMS(ranking=model.postprocess, iou_threshold=0.3)
    for output, before in zip(model(images), plain, strict=True):
        assert output.keys() == {"instances", BEFORE_NMS}
        assert torch.equal(output[BEFORE_NMS].pred_boxes.tensor, before["instances"].pred_boxes.tensor)
        assert 0 < len(output["instances"]) < len(before["instances"])
    assert isinstance(model.inference(images, do_postprocess=False)[0], Instances)


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (ClassNMS, {"iou_threshold": 1.5}, "iou_threshold: expected a number from 0 to 1, got 1.5"),
        (ClassSoftNMS, {"min_score": -1}, "min_score: expected a number of at least 0, got -1"),
        (ClassSoftNMS, {"num_detections": 0}, "num_detections: expected a whole number of at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_errors(part, settings, message):
    with pytest.raises(ValueError, match=message):
        part(ranking=TopKDetections(), **settings)


@pytest.mark.parametrize(("ranked", "warned"), [(299, True), (300, False)])
def test_more_detections_than_are_ranked_are_warned_of(caplog, ranked, warned):
    ClassSoftNMS(ranking=TopKDetections(num_detections=ranked), num_detections=300)
    text = "300 are asked for, but the ranking gives no more than 299. For more, set model.postprocess.ranking"
    assert (text in caplog.text) == warned
