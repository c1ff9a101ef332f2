"""Copy-paste: which pixels are whose, and what is left of the objects below."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BitMasks, Instances, Keypoints
from omegaconf import OmegaConf

from dinox.data import (
    CopyPaste,
    DataError,
    DetectionMapper,
    build_train_loader,
    check_data,
    large_scale_jitter,
    register_shapes,
)
from dinox.data.copy_paste import choose_objects, clear_of, paste, visible_objects
from dinox.data.sampling import Visit
from dinox.data.skipping import ReadableImages

from .coco_files import annotation, small_coco, write_coco

SIZE = 40


def rectangle(x1, y1, x2, y2) -> torch.Tensor:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


def objects(*masks: torch.Tensor, first_class: int = 0) -> Instances:
    stacked = BitMasks(torch.stack(masks) if masks else torch.zeros(0, SIZE, SIZE, dtype=torch.bool))
    classes = torch.arange(len(masks)) + first_class
    return Instances((SIZE, SIZE), gt_boxes=stacked.get_bounding_boxes(), gt_classes=classes, gt_masks=stacked)


def sample(value: int, *masks: torch.Tensor, first_class: int = 0, **fields) -> dict:
    """An image of one colour."""
    image = torch.full((3, SIZE, SIZE), value, dtype=torch.uint8)
    return {
        "image": image,
        "instances": objects(*masks, first_class=first_class),
        "file_name": f"{value}.png",
        **fields,
    }


class All(CopyPaste):
    """Pastes all objects, whatever is drawn."""

    def generator(self, index, visit):
        class Draws:
            integers = staticmethod(lambda high: high - 1)
            choice = staticmethod(lambda total, size, replace: np.arange(total)[:size])

        return Draws()


def pasted(image: dict, other: dict, **settings) -> dict:
    copy_paste = All(**settings)
    return copy_paste(image, other, copy_paste.generator(0, 0))


# ------------------------------------------------------------------------------------------------------------- geometry


def test_pasted_pixels_are_where_the_masks_say_and_nowhere_else():
    first, second = rectangle(4, 6, 14, 20), rectangle(25, 25, 35, 30)
    output = pasted(sample(10), sample(200, first, second))
    covered = first | second
    assert (output["image"][:, covered] == 200).all() and (output["image"][:, ~covered] == 10).all()
    assert output["image"].dtype == torch.uint8
    assert output["instances"].gt_boxes.tensor.tolist() == [[4, 6, 14, 20], [25, 25, 35, 30]]


def test_what_is_covered_is_taken_from_masks_and_boxes_below():
    """10 x 10 pixels, of which the left half is covered."""
    below, above = rectangle(10, 10, 20, 20), rectangle(5, 5, 15, 30)
    output = pasted(sample(10, below), sample(200, above, first_class=7), masks="keep")
    instances = output["instances"]
    assert instances.gt_classes.tolist() == [0, 7]
    assert instances.gt_boxes.tensor.tolist() == [[15, 10, 20, 20], [5, 5, 15, 30]]
    own, other = instances.gt_masks.tensor
    assert (own == (below & ~above)).all() and (other == above).all()
    assert own.sum() == 50 and other.sum() == 250
    assert not (own & other).any()


def test_the_given_images_stay_as_they_were():
    image, other = sample(10, rectangle(10, 10, 20, 20)), sample(200, rectangle(5, 5, 15, 30))
    before = image["image"].clone(), image["instances"].gt_masks.tensor.clone()
    pasted(image, other)
    assert (image["image"] == before[0]).all() and (image["instances"].gt_masks.tensor == before[1]).all()


@pytest.mark.parametrize(
    "covered, kept",
    [
        ((0, 0, 40, 40), False),  # nothing left
        ((0, 0, 20, 40), True),  # 400 of 800 pixels left; the box moved by 20
        ((0, 0, 29, 40), False),  # 220 pixels left; the box moved by 29
        ((0, 0, 10, 40), True),  # the box moved by 10
        ((1, 0, 40, 40), False),  # 20 pixels left; the box moved at its right side, by 39
    ],
)
def test_objects_are_dropped_when_their_boxes_moved_and_little_is_left(covered, kept):
    """An object of 40 x 20 pixels at 0, 0, dropped if a side moved by more than 10 pixels and at most 300 are left."""
    below = objects(rectangle(0, 0, 40, 20))
    assert len(visible_objects(below, rectangle(*covered))) == kept


def test_small_objects_whose_boxes_hardly_moved_stay():
    below = objects(rectangle(0, 0, 6, 6))
    assert visible_objects(below, rectangle(0, 0, 5, 6)).gt_boxes.tensor.tolist() == [[5, 0, 6, 6]]


def test_a_hidden_object_in_the_corner_is_dropped_though_its_box_would_not_move():
    """Of 6 x 6 pixels at 0, 0, the box around nothing, 0, 0, 0, 0, is less than 10 pixels away."""
    assert len(visible_objects(objects(rectangle(0, 0, 6, 6)), rectangle(0, 0, 6, 6))) == 0


def test_thresholds_are_settings():
    below, above = objects(rectangle(0, 0, 40, 20)), rectangle(0, 0, 29, 40)
    assert len(visible_objects(below, above, box_moved=29)) == 1
    assert len(visible_objects(below, above, mask_left=219)) == 1
    assert len(visible_objects(below, above, mask_left=220)) == 0


def test_nothing_to_paste_leaves_everything():
    image = sample(10, rectangle(1, 2, 3, 4))
    output = pasted(image, sample(200))
    assert (output["image"] == 10).all()
    assert output["instances"].gt_boxes.tensor.tolist() == [[1, 2, 3, 4]]


def test_random_objects_always_have_visible_pixels_and_tight_boxes():
    generator = np.random.default_rng(0)

    def random_objects() -> list:
        corners = generator.integers(0, SIZE - 1, (8, 2))
        ends = np.minimum(corners + generator.integers(1, 25, (8, 2)), SIZE)
        return [rectangle(*corner, *end) for corner, end in zip(corners.tolist(), ends.tolist())]

    for _ in range(50):
        image, other = sample(10, *random_objects()), sample(200, *random_objects())
        pixels, instances = paste(image["image"], image["instances"], other["image"], other["instances"])
        masks = instances.gt_masks.tensor
        assert masks.flatten(1).any(1).all()
        assert (instances.gt_boxes.tensor == instances.gt_masks.get_bounding_boxes().tensor).all()
        own = masks[: len(instances) - len(other["instances"])]
        assert (pixels[:, own.any(0)] == 10).all() and (pixels[:, masks[len(own) :].any(0)] == 200).all()


# --------------------------------------------------------------------------------------------------------------- crowds


def test_objects_that_would_touch_a_crowd_are_not_pasted():
    crowd = rectangle(20, 20, 40, 40)
    touching, clear = rectangle(15, 15, 21, 21), rectangle(0, 0, 20, 20)
    assert clear_of(objects(touching, clear).gt_masks, crowd).tolist() == [False, True]
    output = pasted(sample(10, crowd_region=crowd), sample(200, touching, clear))
    assert output["instances"].gt_boxes.tensor.tolist() == [[0, 0, 20, 20]]
    assert (output["image"][:, crowd] == 10).all()
    assert "crowd_region" not in output


# ------------------------------------------------------------------------------------------------------------- draws


def test_from_none_to_all_objects_are_drawn_but_no_more_than_the_most():
    generator = np.random.default_rng(0)
    drawn = [choose_objects(5, 3, generator) for _ in range(200)]
    assert {len(each) for each in drawn} == {0, 1, 2, 3}
    assert all(len(set(each.tolist())) == len(each) for each in drawn)
    assert {index for each in drawn for index in each.tolist()} == set(range(5))
    assert {len(choose_objects(2, 100, generator)) for _ in range(100)} == {0, 1, 2}
    assert len(choose_objects(0, 100, generator)) == 0


def test_draws_depend_on_seed_image_and_visit():
    def numbers(seed, index, visit):
        return CopyPaste(seed=seed).generator(index, visit).integers(1 << 30)

    assert numbers(0, 3, 7) == numbers(0, 3, 7)
    assert len({numbers(0, 3, 7), numbers(1, 3, 7), numbers(0, 4, 7), numbers(0, 3, 8)}) == 4


# --------------------------------------------------------------------------------------------------------------- errors


def test_images_of_different_sizes_are_an_error():
    other = sample(200)
    other["image"] = other["image"][:, :30]
    with pytest.raises(
        DataError, match=r"one size, got 40 x 40 and 40 x 30 \(10.png and 200.png\).*large_scale_jitter"
    ):
        pasted(sample(10), other)


def test_missing_masks_are_an_error():
    image = sample(10)
    image["instances"].remove("gt_masks")
    with pytest.raises(DataError, match=r"needs masks, and 10.png .*dataloader.train.mapper.masks=bitmask"):
        pasted(image, sample(200))


def test_keypoints_are_an_error():
    image = sample(10, rectangle(0, 0, 5, 5))
    image["instances"].gt_keypoints = Keypoints(np.zeros((1, 17, 3)))
    with pytest.raises(DataError, match=r"boxes, classes and masks only, and 10.png comes with gt_keypoints"):
        pasted(image, sample(200))


def test_wrong_settings_are_errors():
    with pytest.raises(DataError, match=r"copy_paste.masks: expected 'drop' or 'keep', got 'polygon'"):
        CopyPaste(masks="polygon")
    for settings in ({"max_pasted": 1.5}, {"mask_left": -1}, {"seed": -1}, {"seed": "a"}):
        with pytest.raises(ValueError, match=rf"copy_paste\.{next(iter(settings))}: expected a whole number"):
            CopyPaste(**settings)
    with pytest.raises(ValueError, match=r"copy_paste\.box_moved must be at least 0, got -1"):
        CopyPaste(box_moved=-1)
    with pytest.raises(ValueError, match="max_pasted: expected a whole number of at least 0, got -1"):
        CopyPaste(max_pasted=-1)


# -------------------------------------------------------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> list[dict]:
    register_shapes("copied_shapes", seed=11, num_images=12, root=tmp_path_factory.mktemp("datasets"))
    return DatasetCatalog.get("copied_shapes")


def mapper(**settings) -> DetectionMapper:
    return DetectionMapper(
        is_train=True, augmentations=large_scale_jitter(size=96, min_scale=1.0, flip_probability=0.0), **settings
    )


def loader(records, *, num_workers=0, masks="keep", **settings):
    settings = {"copy_paste": CopyPaste(masks=masks), "mapper": mapper(masks="bitmask"), "max_bad": 0.5, **settings}
    return build_train_loader(
        dataset=records, total_batch_size=2, num_workers=num_workers, aspect_ratio_grouping=False, **settings
    )


@pytest.mark.parametrize(
    "masks, fields", [("keep", {"gt_boxes", "gt_classes", "gt_masks"}), ("drop", {"gt_boxes", "gt_classes"})]
)
def test_batches_have_more_objects_with_masks_if_they_are_kept(shapes, masks, fields):
    torch.manual_seed(0)
    batches = iter(loader(shapes, masks=masks))
    images = [image for _ in range(6) for image in next(batches)]
    assert all(set(image["instances"].get_fields()) == fields for image in images)
    plain = {record["file_name"]: len(record["annotations"]) for record in shapes}
    assert any(len(image["instances"]) > plain[image["file_name"]] for image in images)
    assert all((image["height"], image["width"]) == (192, 192) for image in images)
    assert not any("content_size" in image for image in images)


class Recorded(CopyPaste):
    """Puts the file of the second image into the first."""

    def __call__(self, image, other, generator):
        return {**image, "other": other["file_name"], "drawn": int(generator.integers(1 << 30))}


def test_second_images_do_not_depend_on_the_number_of_workers(shapes):
    def pairs(num_workers):
        settings = {"sampler": TrainingSampler(len(shapes), seed=3), "copy_paste": Recorded()}
        batches = iter(loader(shapes, num_workers=num_workers, **settings))
        images = [image for _ in range(8 if num_workers else 16) for image in next(batches)]
        return {(image["file_name"], image["other"], image["drawn"]) for image in images}

    alone, together = pairs(0), pairs(2)
    assert len(alone) == 32 and len(together) == 16
    assert together <= alone


def test_another_visit_draws_another_second_image(shapes):
    images = ReadableImages(shapes, mapper(masks="bitmask"), max_bad=0.0, copy_paste=Recorded())
    others = [images[Visit(3, number)]["other"] for number in range(12)]
    assert len(set(others)) > 3
    assert images[Visit(3, 5)]["other"] == others[5]


def test_a_second_image_that_cannot_be_read_is_replaced_and_counted(shapes, tmp_path):
    spoilt = [dict(record) for record in shapes]
    for record in spoilt[1:]:
        record["file_name"] = str(tmp_path / "missing.jpg")
    images = ReadableImages(spoilt, mapper(masks="bitmask"), max_bad=1.0, copy_paste=Recorded())
    assert images[0]["other"] == spoilt[0]["file_name"]
    assert images.num_bad() > 0


def test_a_mapper_without_masks_is_refused_when_the_loader_is_built(shapes):
    with pytest.raises(
        DataError, match=r"copy_paste needs the objects' masks: set dataloader.train.mapper.masks=bitmask"
    ):
        loader(shapes, mapper=mapper())


# ----------------------------------------------------------------------------------------------- before the first step


def config(name: str, *, masks: str = "bitmask"):
    train = {"dataset": {"names": name}, "mapper": {"masks": masks}, "copy_paste": {"max_pasted": 100}}
    return OmegaConf.create(
        {"model": {"num_classes": 2}, "dataloader": {"train": train, "test": {"dataset": {"names": name}}}}
    )


def test_a_dataset_without_masks_is_an_error_before_the_first_step(tmp_path, register):
    name = register("boxes_only", write_coco(tmp_path, small_coco()))
    with pytest.raises(
        DataError, match=r"'boxes_only'.*2 of 3 annotations have no mask \(ids 11, 12\).*copy_paste=null"
    ):
        check_data(config(name))


def test_so_it_is_for_datasets_without_a_json(register):
    record = {"file_name": "a.jpg", "annotations": [{"bbox": [0, 0, 2, 2], "bbox_mode": 1, "category_id": 0}]}
    name = register("made_boxes", lambda: [record], thing_classes=["cat", "dog"])
    with pytest.raises(DataError, match=r"Dataset 'made_boxes': 1 of 1 annotations have no mask, .*Annotate"):
        check_data(config(name))


def test_a_dataset_with_masks_passes(tmp_path, register):
    coco = small_coco()
    coco["annotations"] = [
        annotation(**{**each, "segmentation": [[4, 6, 24, 6, 24, 16]]}) if not each["iscrowd"] else each
        for each in coco["annotations"]
    ]
    check_data(config(register("with_masks", write_coco(tmp_path, coco))))


def test_copy_paste_without_a_mapper_that_gives_masks_is_an_error_before_the_first_step(tmp_path, register):
    name = register("boxes_only", write_coco(tmp_path, small_coco()))
    with pytest.raises(DataError, match=r"dataloader.train.copy_paste needs the objects' masks"):
        check_data(config(name, masks="none"))
