"""From dataset dicts to model inputs."""

import copy

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from fvcore.transforms import CropTransform, HFlipTransform
from PIL import Image

from dinox.data import DataError, DetectionMapper, detr_augmentation, resize_augmentation
from dinox.data.augmentation import CROP_MAX_SIZE, OneOf
from dinox.data.conversions import Conversion

from .coco_files import write_image

HEIGHT, WIDTH = 48, 64


def record(file_name, *boxes, **fields) -> dict:
    """A dict in detectron2's format; each box is x, y, width, height of class 1."""
    annotations = [{"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0} for box in boxes]
    return {
        "file_name": str(file_name),
        "image_id": 5,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": annotations,
        **fields,
    }


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "image.png", height=HEIGHT, width=WIDTH)


def mapper(*augmentations, is_train=True, **kwargs) -> DetectionMapper:
    return DetectionMapper(is_train=is_train, augmentations=augmentations, **kwargs)


def test_training_input(image):
    output = mapper()(record(image, (4, 6, 20, 10), (30, 20, 16.5, 20)))
    assert output["image"].shape == (3, HEIGHT, WIDTH) and output["image"].dtype == torch.uint8
    instances = output["instances"]
    assert instances.image_size == (HEIGHT, WIDTH)
    assert instances.gt_boxes.tensor.tolist() == [[4, 6, 24, 16], [30, 20, 46.5, 40]]
    assert instances.gt_boxes.tensor.dtype == torch.float32
    assert instances.gt_classes.tolist() == [1, 1] and instances.gt_classes.dtype == torch.int64
    assert (output["file_name"], output["image_id"], output["height"], output["width"]) == (
        str(image),
        5,
        HEIGHT,
        WIDTH,
    )


@pytest.mark.parametrize("image_format, order", [("RGB", [0, 1, 2]), ("BGR", [2, 1, 0])])
def test_channels_are_in_the_order_of_the_format(image, image_format, order):
    pixels = np.asarray(Image.open(image))[:, :, order].transpose(2, 0, 1)
    assert np.array_equal(mapper(image_format=image_format)(record(image))["image"].numpy(), pixels)


def test_other_formats_are_refused():
    with pytest.raises(ValueError, match="image_format: expected one of RGB, BGR, got 'L'"):
        mapper(image_format="L")


def test_evaluation_input_has_no_instances_and_keeps_the_file_s_size(image):
    output = mapper(*resize_augmentation(short_edge=24, max_size=40), is_train=False)(record(image, (4, 6, 20, 10)))
    assert output["image"].shape == (3, 24, 32)
    assert (output["height"], output["width"]) == (HEIGHT, WIDTH)
    assert "instances" not in output and "annotations" not in output


def test_record_is_left_as_it_was(image):
    given = record(image, (4, 6, 20, 10))
    before = copy.deepcopy(given)
    mapper(T.RandomFlip(1.0))(given)
    assert given == before


def test_crowds_are_left_out(image):
    given = record(image, (4, 6, 20, 10), (0, 0, 30, 30))
    given["annotations"][1]["iscrowd"] = 1
    assert mapper()(given)["instances"].gt_boxes.tensor.tolist() == [[4, 6, 24, 16]]


def test_boxes_made_empty_by_a_crop_are_left_out(image):
    crop = CropTransform(0, 0, 20, 20)
    instances = mapper(crop)(record(image, (30, 30, 10, 10), (10, 10, 20, 20), (5, 5, 0, 10)))["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[10, 10, 20, 20]]
    assert instances.gt_classes.tolist() == [1]


@pytest.mark.parametrize("fields", [{}, {"annotations": []}])
def test_images_without_boxes_stay(image, fields):
    given = record(image, **fields)
    if not fields:
        del given["annotations"]
    instances = mapper()(given)["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4) and instances.gt_classes.dtype == torch.int64


def test_boxes_follow_the_flip(image):
    output = mapper(HFlipTransform(WIDTH))(record(image, (4, 6, 20, 10)))
    assert output["instances"].gt_boxes.tensor.tolist() == [[40, 6, 60, 16]]


def test_boxes_of_whole_numbers_are_resized_like_others(image):
    resize = T.ResizeTransform(HEIGHT, WIDTH, 2 * HEIGHT // 3, 2 * WIDTH // 3)
    x_scale, y_scale = (2 * side // 3 / side for side in (WIDTH, HEIGHT))
    (box,) = mapper(resize)(record(image, (4, 7, 20, 10)))["instances"].gt_boxes.tensor.tolist()
    assert box == pytest.approx([4 * x_scale, 7 * y_scale, 24 * x_scale, 17 * y_scale])


# --------------------------------------------------------------------------------------------------------- augmentation


def small_detr(**kwargs) -> list[T.Augmentation]:
    sizes = {"short_edges": (160, 192), "max_size": 320, "crop_short_edges": (128, 144), "crop_size": (96, 120)}
    return detr_augmentation(**{**sizes, **kwargs})


def test_boxes_stay_inside_and_on_their_objects(tmp_path):
    np.random.seed(0)
    pixels = np.zeros((192, 256, 3), dtype=np.uint8)
    pixels[48:144, 80:176] = 255
    file = tmp_path / "box.png"
    Image.fromarray(pixels).save(file)
    augment = mapper(*small_detr())
    for _ in range(200):
        output = augment(record(file, (80, 48, 96, 96), height=192, width=256))
        height, width = output["image"].shape[1:]
        boxes = output["instances"].gt_boxes.tensor
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height, width, height])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        # What is white is what the box says, but for the blur of two resizes at its edges.
        white = torch.zeros(height, width, dtype=torch.bool)
        for x1, y1, x2, y2 in boxes.round().int().tolist():
            white[y1:y2, x1:x2] = True
        assert ((output["image"][0] > 127) != white).float().mean() < 0.03


class SizeOnly:
    """In place of detectron2's AugInput: follows the size of an image without computing its pixels."""

    def __init__(self, height: int, width: int) -> None:
        self.transforms: list[T.Transform] = []
        self._resize(height, width)

    def _resize(self, height: int, width: int) -> None:
        self.image = np.broadcast_to(np.uint8(0), (height, width, 3))

    def transform(self, transform: T.Transform) -> None:
        self.transforms.append(transform)
        if isinstance(transform, T.ResizeTransform):
            self._resize(transform.new_h, transform.new_w)
        elif isinstance(transform, CropTransform):
            self._resize(transform.h, transform.w)


def drawn_transforms(augmentations, *, height=192, width=256, times=300) -> list[list[T.Transform]]:
    """The transforms that each of `times` images gets, in order."""
    inputs = [SizeOnly(height, width) for _ in range(times)]
    for one in inputs:
        T.AugmentationList(augmentations)(one)
    return [one.transforms for one in inputs]


def test_detr_augmentation_has_the_published_sizes():
    np.random.seed(0)
    image = {"height": 480, "width": 640}
    with_crop = drawn_transforms(detr_augmentation(crop_probability=1.0), **image)
    short_before = {min(t[1].new_h, t[1].new_w) for t in with_crop}
    crops = {side for t in with_crop for side in (t[2].h, t[2].w)}
    assert short_before == {400, 500, 600}
    assert 384 <= min(crops) < 390 and 590 < max(crops) <= 600
    without_crop = drawn_transforms(detr_augmentation(crop_probability=0.0), **image)
    assert {min(t[1].new_h, t[1].new_w) for t in without_crop} == set(range(480, 801, 32))
    assert all(len(t) == 2 for t in without_crop)


def test_crop_of_a_narrow_image_takes_its_whole_side():
    np.random.seed(0)
    for transforms in drawn_transforms(detr_augmentation(crop_probability=1.0), height=400, width=2000, times=50):
        crop = next(t for t in transforms if isinstance(t, CropTransform))
        assert 384 <= crop.h <= 600 and 384 <= crop.w <= 600


def test_longer_edge_is_bounded():
    np.random.seed(0)
    for transforms in drawn_transforms(detr_augmentation(), height=300, width=1500):
        assert max(transforms[-1].new_h, transforms[-1].new_w) <= 1333


def test_very_long_image_keeps_a_pixel_of_its_short_side():
    for height, width in ((1, 4000), (4000, 1)):
        for transforms in drawn_transforms(resize_augmentation(), height=height, width=width, times=1):
            assert (transforms[0].new_h, transforms[0].new_w) == (min(height, 1333), min(width, 1333))


def test_very_long_image_does_not_explode_before_the_crop():
    for transforms in drawn_transforms(detr_augmentation(crop_probability=1.0), height=3, width=4000, times=3):
        resize = transforms[1]
        assert max(resize.new_h, resize.new_w) <= CROP_MAX_SIZE


def test_half_of_the_images_are_flipped_and_half_are_cropped():
    np.random.seed(0)
    drawn = drawn_transforms(small_detr(), times=1000)
    flipped = np.mean([any(isinstance(t, HFlipTransform) for t in one) for one in drawn])
    cropped = np.mean([any(isinstance(t, CropTransform) for t in one) for one in drawn])
    assert 0.45 < flipped < 0.55 and 0.45 < cropped < 0.55


def test_one_of_refuses_probabilities_that_do_not_fit():
    with pytest.raises(ValueError, match=r"expected 2 \(one per branch\) with the sum 1, got \[0.5, 0.6\]"):
        OneOf([[], []], probabilities=(0.5, 0.6))


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.fixture
def damaged(tmp_path, request):
    """A path that cannot be read as an image, in one of several ways."""
    whole = write_image(tmp_path / f"whole.{'png' if 'png' in request.param else 'jpg'}", height=HEIGHT, width=WIDTH)
    content = whole.read_bytes()
    file = tmp_path / f"{request.param}{whole.suffix}"
    if request.param == "folder":
        file.mkdir()
    elif request.param != "missing":
        file.write_bytes({"empty": b"", "html": b"<html></html>"}.get(request.param, content[: len(content) // 2]))
    return file


KINDS = ["missing", "empty", "html", "truncated_jpg", "truncated_png", "folder"]


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("damaged", KINDS, indirect=True)
def test_unreadable_image_is_named_by_its_path(damaged, is_train):
    cure = "Expected a file" if damaged.is_dir() else "Replace it, or leave it out"
    with pytest.raises(DataError, match=rf"^Image {damaged} cannot be read: .+\. {cure}"):
        mapper(is_train=is_train)(record(damaged))


def test_too_large_image_is_named(image, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=rf"^Image {image} cannot be read: .*exceeds limit"):
        mapper()(record(image))


def test_wrong_size_is_named_with_both(image):
    message = rf"{image} \(image id 5\): expected the image to be 60 x 48 pixels, as its annotation says, got 64 x 48"
    with pytest.raises(DataError, match=message):
        mapper()(record(image, width=60))


def test_missing_sizes_are_filled_from_the_file(image):
    given = record(image)
    del given["height"], given["width"]
    output = mapper(*resize_augmentation(short_edge=24, max_size=40))(given)
    assert (output["height"], output["width"]) == (HEIGHT, WIDTH)
    with pytest.raises(DataError, match=r"image id 5.*None x 48 pixels, as its annotation says, got 64 x 48"):
        mapper()({key: value for key, value in record(image).items() if key != "width"})


@pytest.fixture
def turned(tmp_path):
    """A file that is stored with 64 x 48 pixels and shown with 48 x 64."""
    file = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(file, exif=exif)
    return file


def test_exif_orientation_is_named_as_the_cause(turned):
    with pytest.raises(DataError, match=r"64 x 48 pixels.*got 48 x 64 with the EXIF orientation 6, which is applied"):
        mapper()(record(turned))
    with pytest.raises(DataError, match=r"got 64 x 48 with the EXIF orientation 6, which .*exif=ignore does not apply"):
        mapper(exif="ignore")(record(turned, height=WIDTH, width=HEIGHT))


def test_exif_orientation_is_applied_or_ignored(turned):
    applied = mapper()(record(turned, height=WIDTH, width=HEIGHT))
    ignored = mapper(exif="ignore")(record(turned))
    assert (applied["image"].shape, ignored["image"].shape) == ((3, WIDTH, HEIGHT), (3, HEIGHT, WIDTH))
    with pytest.raises(ValueError, match="exif: expected one of apply, ignore, got 'rotate'"):
        mapper(exif="rotate")


def test_output_is_that_of_detectron2_s_mapper(image):
    given = record(image, (4.0, 6.0, 20.0, 10.0), (30, 20, 16.5, 20))  # of whole numbers it cuts off the decimals
    given["annotations"][0]["segmentation"] = [[4, 6, 24, 6, 24, 16]]
    theirs = DatasetMapper(True, augmentations=small_detr(), image_format="BGR")
    ours = mapper(*small_detr(), image_format="BGR")
    for seed in range(10):
        np.random.seed(seed)
        expected = theirs(given)
        np.random.seed(seed)
        found = ours(given)
        assert found.keys() == expected.keys()
        assert torch.equal(found["image"], expected["image"])
        assert torch.equal(found["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
        assert torch.equal(found["instances"].gt_classes, expected["instances"].gt_classes)


def test_conversions_are_told(tmp_path):
    file = tmp_path / "clear.png"
    Image.new("RGBA", (WIDTH, HEIGHT)).save(file)
    assert mapper()(record(file))["conversions"] is Conversion.ALPHA


def test_bad_annotation_is_named_by_file_and_position(image):
    with pytest.raises(DataError, match=rf"{image}, annotation 1: 'bbox': .*not negative, got \[1, 2, -3, 4\]"):
        mapper()(record(image, (1, 2, 3, 4), (1, 2, -3, 4)))
    given = record(image, (1, 2, 3, 4))
    with pytest.raises(DataError, match="'category_id': expected a class index from 0 to 0, got 1"):
        mapper(num_classes=1)(given)


# ---------------------------------------------------------------------------------------------- what the model is told


def record_of_classes(image) -> dict:
    """Objects of the classes 1, 2 and 2, and a crowd of class 3."""
    output = record(image, (4, 6, 20, 10), (30, 20, 16, 20), (0, 0, 8, 8), (10, 10, 20, 20))
    for annotation, category in zip(output["annotations"], (1, 2, 2, 3), strict=True):
        annotation["category_id"] = category
    output["annotations"][3]["iscrowd"] = 1
    return output


def test_known_objects_are_those_of_some_classes_in_the_frame_of_the_image(image):
    double = T.Resize((2 * HEIGHT, 2 * WIDTH))
    output = mapper(double, is_train=False, known_objects=[2, 3])(record_of_classes(image))
    assert output["known_boxes"].tensor.tolist() == [[60, 40, 92, 80], [0, 0, 16, 16]]
    assert output["known_labels"].tolist() == [2, 2]
    assert not {"instances", "annotations", "known_classes"} & output.keys()


def test_known_labels_are_the_classes_of_all_objects(image):
    output = mapper(is_train=False, known_labels=True)(record_of_classes(image))
    assert output["known_classes"] == [1, 2]
    assert not {"known_boxes", "known_labels"} & output.keys()


def test_nothing_is_told_unless_asked(image):
    output = mapper(is_train=False)(record_of_classes(image))
    assert not {"known_boxes", "known_labels", "known_classes", "instances"} & output.keys()


def test_an_image_without_objects_knows_of_none(image):
    output = mapper(is_train=False, known_objects=[1], known_labels=True)(record(image))
    assert len(output["known_boxes"]) == len(output["known_labels"]) == len(output["known_classes"]) == 0


@pytest.mark.parametrize("wrong", [["ring"], [99], "ring", 1, [True]])
def test_known_objects_that_name_no_class_are_an_error(wrong):
    """They would match nothing, and evaluation would tell the model nothing."""
    with pytest.raises(DataError, match="known_objects: expected a list of class indices"):
        DetectionMapper(is_train=False, augmentations=[], num_classes=6, known_objects=wrong)
