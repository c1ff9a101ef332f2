"""Masks of annotations, from polygons and run-length encodings, through the augmentations."""

import detectron2.data.transforms as T
import numpy as np
import pytest
from detectron2.structures import BoxMode
from fvcore.transforms.transform import CropTransform, HFlipTransform
from pycocotools import mask as mask_util

from dinox.data import DataError, DetectionMapper
from dinox.data.masks import has_mask

from .coco_files import write_image

HEIGHT, WIDTH = 40, 60
BOX = (12, 8, 30, 20)  # x1, y1, x2, y2


def encodings() -> dict:
    """The same rectangle of 18 x 12 pixels in every way that an annotation may give it."""
    x1, y1, x2, y2 = BOX
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    compressed = mask_util.encode(mask)
    runs = [0, *np.flatnonzero(np.diff(mask.T.ravel())) + 1, mask.size]
    middle = (x1 + x2) // 2
    return {
        "polygon": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        "two polygons": [[x1, y1, middle, y1, middle, y2, x1, y2], [middle, y1, x2, y1, x2, y2, middle, y2]],
        "compressed": compressed,
        "text": {"size": compressed["size"], "counts": compressed["counts"].decode()},
        "not compressed": {"size": [HEIGHT, WIDTH], "counts": [int(run) for run in np.diff(runs)]},
    }


def record(tmp_path, segmentation, *, box=BOX, **fields) -> dict:
    file = write_image(tmp_path / "image.png", height=HEIGHT, width=WIDTH)
    annotation = {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 2, "segmentation": segmentation}
    return {
        "file_name": str(file),
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": [{k: v for k, v in {**annotation, **fields}.items() if v is not None}],
    }


def mapped(given: dict, *augmentations) -> dict:
    return DetectionMapper(is_train=True, augmentations=augmentations, masks="bitmask")(given)


@pytest.mark.parametrize("kind", list(encodings()))
@pytest.mark.parametrize(
    "augmentation, expected",
    [
        (T.NoOpTransform(), BOX),
        (HFlipTransform(WIDTH), (30, 8, 48, 20)),
        (CropTransform(20, 10, 30, 20), (0, 0, 10, 10)),
        (T.ResizeTransform(HEIGHT, WIDTH, 2 * HEIGHT, 3 * WIDTH), (36, 16, 90, 40)),
    ],
)
def test_masks_follow_the_augmentations_exactly(tmp_path, kind, augmentation, expected):
    instances = mapped(record(tmp_path, encodings()[kind]), augmentation)["instances"]
    x1, y1, x2, y2 = expected
    mask = instances.gt_masks.tensor[0]
    assert mask.shape == instances.image_size
    assert mask[y1:y2, x1:x2].all() and mask.sum() == (y2 - y1) * (x2 - x1)
    assert instances.gt_boxes.tensor.tolist() == [list(expected)]
    assert instances.gt_classes.tolist() == [2]


def test_boxes_are_tight_around_what_a_crop_leaves_of_a_mask(tmp_path):
    """An L: the crop leaves its lower, narrow part of 4 pixels, of which the box says 20."""
    corner = [[10, 5, 30, 5, 30, 10, 14, 10, 14, 30, 10, 30]]
    instances = mapped(record(tmp_path, corner, box=(10, 5, 30, 30)), CropTransform(0, 12, WIDTH, 20))["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[10, 0, 14, 18]]


def test_objects_of_which_a_crop_leaves_no_pixel_are_dropped_though_their_boxes_stay(tmp_path):
    corner = [[10, 5, 30, 5, 30, 10, 14, 10, 14, 30, 10, 30]]
    instances = mapped(record(tmp_path, corner, box=(10, 5, 30, 30)), CropTransform(16, 12, 40, 20))["instances"]
    assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, 20, 40)


def test_images_without_objects_have_no_masks(tmp_path):
    given = record(tmp_path, encodings()["polygon"])
    given["annotations"] = []
    instances = mapped(given)["instances"]
    assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, HEIGHT, WIDTH)


@pytest.mark.parametrize("segmentation, expected", [(encodings()["compressed"], BOX), (None, BOX)])
def test_crowds_are_a_region_and_no_objects(tmp_path, segmentation, expected):
    output = mapped(record(tmp_path, segmentation, iscrowd=1), HFlipTransform(WIDTH))
    assert len(output["instances"]) == 0
    x1, y1, x2, y2 = 30, 8, 48, 20
    assert output["crowd_region"][y1:y2, x1:x2].all() and output["crowd_region"].sum() == (x2 - x1) * (y2 - y1)


def test_without_masks_nothing_changes(tmp_path):
    output = DetectionMapper(is_train=True, augmentations=[])(record(tmp_path, encodings()["polygon"]))
    assert set(output["instances"].get_fields()) == {"gt_boxes", "gt_classes"} and "crowd_region" not in output


@pytest.mark.parametrize("segmentation", [None, [], [[1, 2, 3, 4]], {"size": [1, 1]}])
def test_a_missing_mask_is_an_error_that_names_the_file_and_the_cure(tmp_path, segmentation):
    assert not has_mask({"segmentation": segmentation})
    with pytest.raises(DataError, match=r"image\.png: the annotation of class 2 .* no mask.*mapper\.masks=none"):
        mapped(record(tmp_path, segmentation))


def test_a_mask_of_another_size_is_an_error(tmp_path):
    encoded = mask_util.encode(np.ones((10, 12), dtype=np.uint8, order="F"))
    with pytest.raises(DataError, match=r"size \[10, 12\], expected the image's height and width \[40, 60\]"):
        mapped(record(tmp_path, encoded))


def test_other_formats_are_refused():
    with pytest.raises(DataError, match=r"mapper\.masks: expected one of none, bitmask, got 'polygon'"):
        DetectionMapper(is_train=True, augmentations=[], masks="polygon")
