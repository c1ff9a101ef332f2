"""Which boxes are left out of training, and that nothing but them is."""

import numpy as np
import pytest
from detectron2.structures import BoxMode

from dinox.data import DataError, load_dataset_dicts
from dinox.data.boxes import BoxFault, classify_boxes
from dinox.data.coco_json import most_bad_boxes
from dinox.data.left_out import leave_out_bad_boxes

from .coco_files import annotation, small_coco, write_coco

HEIGHT, WIDTH = 48, 64
NAN, INF = np.nan, np.inf

CASES = [
    ([1, 2, 3, 4], BoxFault.NONE),
    ([0, 0, WIDTH, HEIGHT], BoxFault.NONE),
    ([-5, -5, 6, 6], BoxFault.NONE),
    ([60, 40, 30, 30], BoxFault.NONE),
    ([NAN, 2, INF, 4], BoxFault.NAN),
    ([1, 2, 3, -INF], BoxFault.INFINITE),
    ([INF, 2, 3, 4], BoxFault.INFINITE),
    ([1, 2, -3, 0], BoxFault.NEGATIVE),
    ([1, 2, 3, -1e-9], BoxFault.NEGATIVE),
    ([1, 2, 3, 0], BoxFault.NO_AREA),
    ([1, 2, 1e-9, 3], BoxFault.NO_AREA),
    ([WIDTH, 2, 3, 4], BoxFault.OUTSIDE),
    ([-3, 2, 3, 4], BoxFault.OUTSIDE),
    ([1, 1000, 3, 4], BoxFault.OUTSIDE),
]


def classify(box, size=(HEIGHT, WIDTH)):
    return BoxFault(int(classify_boxes(np.array([box]), np.array([size]))[0]))


@pytest.mark.parametrize("box, fault", CASES)
def test_boxes_are_classified_by_the_first_reason(box, fault):
    assert classify(box) is fault


def test_no_box_is_outside_of_an_image_of_unknown_size():
    assert classify([1000, 2, 3, 4], size=(NAN, NAN)) is BoxFault.NONE


def records(*boxes, mode=BoxMode.XYWH_ABS):
    annotations = [{"bbox": box, "bbox_mode": mode, "category_id": i} for i, box in enumerate(boxes)]
    full = {"file_name": "full.png", "image_id": 5, "height": HEIGHT, "width": WIDTH, "annotations": annotations}
    return [{"file_name": "bare.png", "image_id": 4, "height": HEIGHT, "width": WIDTH}, full]


def kept_classes(dicts):
    return [annotation["category_id"] for annotation in dicts[1]["annotations"]]


def test_all_but_bad_boxes_are_kept_in_order_and_the_dicts_are_not_changed():
    dicts = records(*(box for box, _ in CASES))
    kept = leave_out_bad_boxes("cases", dicts, max_bad_boxes=1.0)
    assert kept_classes(kept) == [i for i, (_, fault) in enumerate(CASES) if fault is BoxFault.NONE]
    assert len(dicts[1]["annotations"]) == len(CASES)
    assert kept[0] is dicts[0]


def test_corners_that_are_swapped_are_negative():
    dicts = records([5, 5, 9, 9], [9, 5, 5, 9], [5, 5, 5, 9], mode=BoxMode.XYXY_ABS)
    assert kept_classes(leave_out_bad_boxes("corners", dicts, max_bad_boxes=1.0)) == [0]


def test_good_dicts_come_back_as_they_are():
    dicts = records([1, 2, 3, 4])
    assert leave_out_bad_boxes("good", dicts, max_bad_boxes=0) is dicts


def test_the_log_has_a_count_for_each_cause(caplog):
    leave_out_bad_boxes("cases", records(*(box for box, _ in CASES)), max_bad_boxes=1.0)
    assert (
        "10 of 14 annotations of dataset 'cases' have boxes that can be no object: 1 with NaN, 2 with an infinite "
        "number, 2 of negative width or height, 2 without area, 3 outside of the image (images 5)"
    ) in caplog.text


def test_where_none_may_be_left_out_one_is_an_error():
    message = r"1 of 1 annotations of dataset 'val'.*without area \(images 5\); max_bad_boxes=0 allows 0"
    with pytest.raises(DataError, match=message):
        leave_out_bad_boxes("val", records([1, 2, 0, 4]), max_bad_boxes=0)


@pytest.mark.parametrize(
    "total, share, most", [(50, 0.0, 0), (50, 0.01, 10), (5000, 0.01, 50), (5001, 0.01, 51), (20, 1, 20)]
)
def test_the_share_is_rounded_up_and_a_few_are_always_allowed(total, share, most):
    assert most_bad_boxes(total, share) == most


def test_a_share_beyond_1_is_an_error():
    with pytest.raises(DataError, match="max_bad_boxes: expected a share of the annotations from 0 to 1, got 5"):
        most_bad_boxes(10, 5)


def test_images_that_lose_their_only_object_are_empty_ones(tmp_path, register):
    coco = small_coco()
    coco["annotations"] = [
        annotation(id=1, image_id=1, category_id=3, bbox=[1, 1, 5, 5]),
        annotation(id=2, image_id=2, category_id=3, bbox=[1, 1, -5, 5]),
    ]
    name = register("loses", write_coco(tmp_path, coco))
    assert [record["image_id"] for record in load_dataset_dicts(name)] == [1]
    assert [len(record["annotations"]) for record in load_dataset_dicts(name, filter_empty=False)] == [1, 0]


def test_a_dataset_that_needs_all_boxes_names_the_annotation(tmp_path, register):
    coco = small_coco()
    coco["annotations"][1]["bbox"] = [1, 1, 5, 0]
    name = register("strict", write_coco(tmp_path, coco))
    with pytest.raises(DataError, match=r"'strict': .*annotations.json: 'bbox'.*\[1, 1, 5, 0\].*id 12.*allows 0"):
        load_dataset_dicts(name, max_bad_boxes=0)
