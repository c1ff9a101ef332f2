"""Large-scale jitter: sizes, padding, and objects that stay where their boxes say."""

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from dinox.data import DetectionMapper, large_scale_jitter, resize_and_pad
from dinox.data.large_scale_jitter import MIN_BOX_SIDE, PAD_VALUE, CropAndPad, content_size

SIZE = 128


def white_rectangle(tmp_path, *, box=(40, 30, 80, 60), height=96, width=144) -> dict:
    """A record whose image is black but for a box (x1, y1, x2, y2), with polygon and box of it."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    file = tmp_path / "rectangle.png"
    Image.fromarray(pixels).save(file)
    polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
    annotation = {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "segmentation": [polygon]}
    return {"file_name": str(file), "height": height, "width": width, "image_id": 1, "annotations": [annotation]}


def jitter(**kwargs) -> list:
    return large_scale_jitter(size=SIZE, **kwargs)


def test_every_image_is_a_square_with_padding_to_the_right_and_below():
    """A white image: what is not padding is white, in one corner."""
    np.random.seed(0)
    sizes = set()
    for _ in range(60):
        given = T.AugInput(np.full((60, 90, 3), 255, dtype=np.uint8))
        T.AugmentationList(jitter())(given)
        assert given.image.shape == (SIZE, SIZE, 3)
        white = given.image[:, :, 0] == 255
        height, width = white.any(1).sum(), white.any(0).sum()
        assert white[:height, :width].all() and (given.image[~white] == PAD_VALUE).all()
        sizes.add((height, width))
    longest = [max(size) for size in sizes]
    assert min(longest) < 0.3 * SIZE and max(longest) == SIZE  # scales of 0.1 to 2
    assert (SIZE, SIZE) in sizes  # an image of 3 : 2 fills the square from a scale of 1.5


def test_scale_is_that_of_the_square_and_the_aspect_stays():
    given = T.AugInput(np.zeros((60, 90, 3), dtype=np.uint8))
    transforms = T.AugmentationList(jitter(min_scale=0.5, max_scale=0.5, flip_probability=0.0))(given)
    assert content_size(transforms, (60, 90), (SIZE, SIZE)) == (43, 64)  # 128 / 2 wide, 64 * 60 / 90 = 42.7 high


def test_crops_are_drawn_for_both_directions_apart():
    np.random.seed(0)
    crop, image = CropAndPad(height=8, width=8), np.zeros((16, 16, 3), dtype=np.uint8)
    corners = {(t.transforms[0].x0, t.transforms[0].y0) for t in (crop.get_transform(image) for _ in range(400))}
    assert {x for x, _ in corners} == {y for _, y in corners} == set(range(9))
    assert len({x - y for x, y in corners}) > 5


@pytest.mark.parametrize("masks", ["none", "bitmask"])
def test_boxes_and_masks_stay_on_the_object(tmp_path, masks):
    """The object is white, the rest black or gray: at least 200 of 255 after the interpolation at its edges. A box of
    numbers that are no whole ones is up to one pixel off, and so is a mask's edge."""
    np.random.seed(1)
    record, seen = white_rectangle(tmp_path), 0
    mapper = DetectionMapper(is_train=True, augmentations=jitter(), masks=masks, min_box_side=MIN_BOX_SIDE)
    for _ in range(60):
        output = mapper(record)
        white = output["image"][0] > 200
        boxes = output["instances"].gt_boxes.tensor
        if not white.any():
            assert len(boxes) == 0 or (boxes[0, 2:] - boxes[0, :2]).min() < 2
            continue
        seen += 1
        rows, columns = white.any(1).nonzero().flatten(), white.any(0).nonzero().flatten()
        expected = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
        assert (boxes[0] - expected).abs().max() <= 1.01
        if masks == "bitmask":
            mask = output["instances"].gt_masks.tensor[0]
            edge = 2 * (rows[-1] - rows[0] + columns[-1] - columns[0] + 4)
            assert (mask != white).sum() <= edge
            assert boxes[0].tolist() == output["instances"].gt_masks.get_bounding_boxes().tensor[0].tolist()
    assert seen > 40


@pytest.mark.parametrize(
    "encode", [lambda polygon: [polygon], lambda polygon: mask_util.frPyObjects([polygon], 96, 144)[0]]
)
def test_masks_are_not_padded_with_objects(tmp_path, encode):
    """A mask over the whole image, as polygon and as run-length encoding, ends where the image ends."""
    record = white_rectangle(tmp_path, box=(0, 0, 144, 96))
    record["annotations"][0]["segmentation"] = encode([0, 0, 144, 0, 144, 96, 0, 96])
    augmentations = jitter(min_scale=0.5, max_scale=0.5)
    output = DetectionMapper(is_train=True, augmentations=augmentations, masks="bitmask")(record)
    assert output["instances"].gt_boxes.tensor.tolist() == [[0, 0, 64, 43]]
    assert output["instances"].gt_masks.tensor.sum() == 64 * 43


def test_boxes_below_the_least_side_are_dropped(tmp_path):
    """A line of .05 pixels, resized by 0.1 x 128 / 144 to .0044."""
    record = white_rectangle(tmp_path)
    record["annotations"][0] = {**record["annotations"][0], "bbox": [40, 30, 40.05, 60]}
    kept = [
        len(
            DetectionMapper(is_train=True, augmentations=jitter(min_scale=0.1, max_scale=0.1), **least)(record)[
                "instances"
            ]
        )
        for least in ({}, {"min_box_side": MIN_BOX_SIDE})
    ]
    assert kept == [1, 0]


@pytest.mark.parametrize("height, width", [(1, 4000), (4000, 3), (1, 1)])
def test_images_of_any_aspect_have_pixels_left(height, width):
    given = T.AugInput(np.zeros((height, width, 3), dtype=np.uint8))
    T.AugmentationList(jitter(min_scale=0.1, max_scale=0.1))(given)
    assert given.image.shape == (SIZE, SIZE, 3)
    assert (given.image == 0).any()


def test_evaluation_fits_the_image_into_the_square_and_says_which_part_it_is(tmp_path):
    record = white_rectangle(tmp_path)
    output = DetectionMapper(is_train=False, augmentations=resize_and_pad(size=SIZE))(record)
    assert output["image"].shape == (3, SIZE, SIZE) and (output["height"], output["width"]) == (96, 144)
    assert output["content_size"] == (85, 128)  # 96 * 128 / 144 = 85.3
    assert (output["image"][:, 85:] == PAD_VALUE).all() and (output["image"][:, :85] != PAD_VALUE).any()


def test_images_that_are_not_padded_say_nothing_of_it(tmp_path):
    output = DetectionMapper(is_train=False, augmentations=[T.Resize((50, 70))])(white_rectangle(tmp_path))
    assert "content_size" not in output


def test_in_training_it_is_what_the_crop_left(tmp_path):
    mapper = DetectionMapper(is_train=True, augmentations=jitter(min_scale=1.2, max_scale=1.2))
    assert mapper(white_rectangle(tmp_path))["content_size"] == (102, 128)  # 1.2 * 128 = 153.6 wide, 2 / 3 of it high


def test_wrong_scales_are_refused():
    with pytest.raises(ValueError, match=r"min_scale, max_scale: expected 0 < min_scale <= max_scale, got 2.0 and 0.1"):
        large_scale_jitter(min_scale=2.0, max_scale=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 64.5}, "size: expected a whole number of at least 1, got 64.5"),
        ({"size": 0}, "size: expected a whole number of at least 1, got 0"),
        ({"flip_probability": 2}, r"flip_probability must lie in \[0, 1\], got 2"),
        ({"pad_value": 300}, r"pad_value must lie in \[0, 255\], got 300"),
        ({"max_scale": float("inf")}, "min_scale, max_scale: expected"),
        ({"min_scale": "small"}, "min_scale, max_scale: expected .*, got 'small' and 2.0"),
    ],
)
def test_settings_that_cannot_be_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        large_scale_jitter(**settings)


@pytest.mark.parametrize("settings", [{"size": 64.5}, {"pad_value": -1}])
def test_so_they_are_in_evaluation(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        resize_and_pad(**settings)
