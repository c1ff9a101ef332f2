"""Annotations of stored images turned to shown ones, held against Pillow."""

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as mask_util

from dinox.data.inspection.turning import turn_annotation

WIDTH, HEIGHT = 12, 8
ORIENTATIONS = (5, 6, 7, 8)


def shown(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W) uint8 as viewers show it."""
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def mask_of(x, y, width, height) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def turned(orientation, **fields):
    annotation = {"bbox": [1, 2, 7, 3], **fields}
    turn_annotation(annotation, width=WIDTH, height=HEIGHT, orientation=orientation)
    return annotation


def box_of(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    x, y = columns.min(), rows.min()
    return [x, y, columns.max() + 1 - x, rows.max() + 1 - y]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_boxes_follow_the_pixels(orientation):
    assert turned(orientation)["bbox"] == box_of(shown(mask_of(1, 2, 7, 3), orientation))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_polygons_follow_the_pixels(orientation):
    polygon = [1, 2, 8, 2, 8, 5, 1, 5]
    [points] = turned(orientation, segmentation=[polygon])["segmentation"]
    rle = mask_util.frPyObjects([points], WIDTH, HEIGHT)  # height and width are swapped now
    assert np.array_equal(mask_util.decode(rle)[:, :, 0], shown(mask_of(1, 2, 7, 3), orientation))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("box", [(1, 2, 7, 3), (0, 0, 2, 2)])
def test_masks_follow_the_pixels(orientation, compressed, box):
    mask = mask_of(*box)
    rle = mask_util.encode(np.asfortranarray(mask))
    if compressed:
        rle["counts"] = rle["counts"].decode()
    else:
        flat = mask.ravel(order="F")
        runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), len(flat)]).tolist()
        rle["counts"] = [0, *runs] if flat[0] else runs
    found = turned(orientation, segmentation=rle)["segmentation"]
    assert isinstance(found["counts"], str if compressed else list)
    if not compressed:
        found = mask_util.frPyObjects(found, *found["size"])
    assert np.array_equal(mask_util.decode(found), shown(mask, orientation))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_keypoints_follow_the_pixels_and_unlabelled_ones_stay(orientation):
    mask = mask_of(3, 1, 1, 1)
    x, y, _, _ = box_of(shown(mask, orientation))
    assert turned(orientation, keypoints=[3, 1, 2, 0, 0, 0])["keypoints"] == [x, y, 2, 0, 0, 0]
