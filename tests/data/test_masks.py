"""Masks of annotations, from polygons and run-length encodings, through the augmentations."""

import re

import detectron2.data.transforms as T
import numpy as np
import pytest
from detectron2.structures import BoxMode
from fvcore.transforms.transform import CropTransform, HFlipTransform
from pycocotools import mask as mask_util

from dinox.data import DataError, DetectionMapper
from dinox.data.coco_json import check_coco_json
from dinox.data.masks import has_mask, masks_missing
from dinox.data.run_lengths import run_length_fault

from .coco_files import small_coco, write_coco, write_image

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


# ------------------------------------------------------------------------------------------------------- what is broken

PIXELS = HEIGHT * WIDTH
SIZE = [HEIGHT, WIDTH]
SQUARE = [12, 8, 30, 8, 30, 20, 12, 20]


BROKEN = {
    "runs that leave pixels": ({"size": SIZE, "counts": [5, 5]}, r"runs add up to 10 pixels, expected 40 x 60 = 2400"),
    "runs beyond the image": ({"size": SIZE, "counts": [PIXELS, 1]}, "runs add up to 2401 pixels"),
    "no runs": ({"size": SIZE, "counts": []}, "runs add up to 0 pixels"),
    "a text without its end": (
        {"size": SIZE, "counts": mask_util.encode(np.eye(HEIGHT, WIDTH, dtype=np.uint8).copy("F"))["counts"][:-3]},
        "runs add up to|is cut off",
    ),
    "a text that is cut in a number": ({"size": SIZE, "counts": "1P"}, "compressed encoding is cut off"),
    "no text of runs": ({"size": SIZE, "counts": "a!bc~"}, "'!' is no character of a compressed encoding"),
    "a number without an end": ({"size": SIZE, "counts": "o" * 30 + "1"}, "is too long"),
    "negative runs": ({"size": SIZE, "counts": [-1, PIXELS + 1]}, "lengths of runs, 0 or more, got -1"),
    "runs of halves": ({"size": SIZE, "counts": [0.5, PIXELS - 0.5]}, "expected a list of whole numbers"),
    "runs of runs": ({"size": SIZE, "counts": [[1], [2, 3]]}, "expected a list of whole numbers"),
    "null": ({"size": SIZE, "counts": None}, "expected run lengths, as text or as a list, got None"),
    "no size": ({"size": None, "counts": [PIXELS]}, "'size': expected the height and width of the image, got None"),
    "text for numbers": ([["a"] * 8], "polygons of at least 3 points.*finite numbers"),
    "numbers as text": ([[str(x) for x in SQUARE]], "polygons of at least 3 points.*finite numbers"),
    "NaN": ([[*SQUARE[:-1], float("nan")]], "polygons of at least 3 points.*finite numbers"),
    "lists for numbers": ([[[1, 2], [3]] * 3], "polygons of at least 3 points.*finite numbers"),
    "points": ([[[1, 2]] * 6], "polygons of at least 3 points.*finite numbers"),
}


@pytest.mark.parametrize("segmentation, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_mask_is_an_error_that_names_the_file(tmp_path, segmentation, message):
    with pytest.raises(DataError, match=rf"image\.png: the annotation of class 2 .* no mask.*{message}.*Annotate"):
        mapped(record(tmp_path, segmentation))


@pytest.mark.parametrize("kind", ["runs that leave pixels", "NaN"])
def test_so_is_that_of_a_crowd(tmp_path, kind):
    with pytest.raises(DataError, match=r"image\.png: .* no mask"):
        mapped(record(tmp_path, BROKEN[kind][0], iscrowd=1))


@pytest.mark.parametrize("iscrowd", [0, 1])
@pytest.mark.parametrize("segmentation, message", BROKEN.values(), ids=BROKEN)
def test_the_check_of_the_data_finds_it_before_training(segmentation, message, iscrowd):
    good = {"id": 1, "segmentation": [SQUARE]}
    fault = masks_missing([good, {"id": 2, "iscrowd": iscrowd, "segmentation": segmentation}])
    assert re.search(rf"1 of 2 annotations have no mask \(ids 2\).*{message}", fault)


def test_the_check_of_a_json_finds_damaged_run_lengths(tmp_path):
    coco = small_coco()
    for each in coco["annotations"]:
        each["segmentation"] = {"size": [48, 64], "counts": [48 * 64]}
    file = write_coco(tmp_path, coco)
    check_coco_json(file, masked=True)
    coco["annotations"][0]["segmentation"]["counts"] = [7, 5]
    write_coco(tmp_path, coco, images=False)
    with pytest.raises(DataError, match=r"1 of 3 annotations have no mask \(ids 11\).* add up to 12 pixels"):
        check_coco_json(file, masked=True)


def test_run_lengths_are_read_as_pycocotools_writes_them():
    """Of random masks from single pixels to nearly full ones, runs of one and of more characters: all are whole, and
    with the last run a pixel longer none is."""
    generator = np.random.default_rng(0)
    for share in (0.001, 0.02, 0.3, 0.999):
        for height, width in ((1, 1), (7, 300), (400, 500)):
            mask = np.asfortranarray(generator.random((height, width)) < share, dtype=np.uint8)
            encoded = mask_util.encode(mask)
            assert run_length_fault(encoded) is None
            assert run_length_fault({**encoded, "size": [height + 1, width]}) is not None


def test_objects_without_a_pixel_s_centre_are_kept_only_without_masks(tmp_path):
    thin = record(tmp_path, [[10, 5.1, 30, 5.1, 30, 5.3, 10, 5.3]], box=(10, 5.1, 30, 5.3))
    assert len(mapped(thin)["instances"]) == 0
    assert len(DetectionMapper(is_train=True, augmentations=[])(thin)["instances"]) == 1
