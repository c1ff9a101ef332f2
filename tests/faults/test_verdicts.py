"""What `dinox check-data` says about training is what `dinox train` then does."""

import pytest
from PIL import Image

from tests.data.coco_files import annotation

from .own_data import BAD, change_json, write_dataset

CAN_START, STOPS, NO_FAULTS = "Training can start", "Training stops", "Nothing is wrong"


@pytest.fixture
def verdict(dinox, tmp_path, output_dir, forget_datasets):
    """Spoil the data, check and train -> (the verdict's line, the exit code of training)."""

    def run(spoil, *overrides, config_lines=""):
        config = write_dataset(tmp_path)
        with config.open("a") as file:
            file.write(config_lines)
        spoil(tmp_path)
        code, out, err = dinox(
            "check-data", "own_train", "--val", "own_val", "--config-file", config, "--decode-images"
        )
        assert code in (0, 1), err
        told = next(text for text in (CAN_START, STOPS, NO_FAULTS) if text in out)
        code, _, _ = dinox("train", "--config-file", config, f"train.output_dir={output_dir}", "train.max_iter=8")
        return told, code

    return run


def bad_boxes(split, number, *, box=(1, 1, -5, 5)):
    def change(coco):
        for i in range(number):
            coco["annotations"].append(annotation(id=50 + i, image_id=101, category_id=1, bbox=list(box)))

    return lambda folder: change_json(folder / f"{split}.json", change)


def missing(split, *numbers):
    return lambda folder: [(folder / split / f"{number}.png").unlink() for number in numbers]


def empty(split, *numbers):
    return lambda folder: [(folder / split / f"{number}.png").write_bytes(b"") for number in numbers]


def empty_images(folder):
    """Missing images without objects, which are not trained on."""

    def change(coco):
        coco["annotations"] = [each for each in coco["annotations"] if each["image_id"] < 102]

    change_json(folder / "train.json", change)
    missing("train", 4, 5, 6)(folder)


def without_area(split):
    return lambda folder: change_json(folder / f"{split}.json", lambda coco: coco["annotations"][0].pop("area"))


@pytest.mark.parametrize(
    "spoil, expected",
    [
        pytest.param(lambda folder: None, NO_FAULTS, id="good"),
        pytest.param(bad_boxes("train", 10), CAN_START, id="as many boxes as may be left out"),
        pytest.param(bad_boxes("train", 11), STOPS, id="one box more"),
        pytest.param(bad_boxes("val", 1), STOPS, id="a box of the validation set"),
        pytest.param(bad_boxes("val", 1, box=(1, 1, 0, 5)), STOPS, id="a box without area there"),
        pytest.param(missing("train", BAD), CAN_START, id="a missing image"),
        pytest.param(missing("train", 2, 5, 6), STOPS, id="more missing images than may be"),
        pytest.param(empty("train", 2, 5, 6), STOPS, id="more unreadable images than may be"),
        pytest.param(missing("val", BAD), STOPS, id="a missing image of the validation set"),
        pytest.param(empty("val", BAD), STOPS, id="an unreadable one"),
        pytest.param(without_area("train"), CAN_START, id="an area that training needs not"),
        pytest.param(without_area("val"), STOPS, id="an area that evaluation needs"),
    ],
)
def test_the_verdict_is_what_training_does(verdict, spoil, expected):
    told, code = verdict(spoil)
    assert told == expected
    assert code == (2 if told == STOPS else 0)


@pytest.mark.parametrize(
    "spoil, line",
    [
        (bad_boxes("train", 11), "dataloader.train.dataset.max_bad_boxes = 0.9"),
        (bad_boxes("val", 1), "dataloader.test.dataset.max_bad_boxes = 0.9"),
        (missing("train", 2, 5, 6), "dataloader.train.max_bad = 0.5"),
        (empty_images, "dataloader.train.dataset.filter_empty = True"),
    ],
)
def test_the_config_s_limits_are_those_of_the_verdict(verdict, spoil, line):
    assert verdict(spoil, config_lines=f"\n{line}\n") == (CAN_START, 0)


@pytest.mark.parametrize("exif, expected", [("apply", STOPS), ("ignore", NO_FAULTS)])
def test_the_config_s_exif_is_that_of_the_verdict(verdict, exif, expected):
    def spoil(folder):
        for split in ("train", "val"):
            file = folder / split / "0.png"
            tags = Image.Exif()
            tags[0x0112] = 6
            Image.open(file).save(file, exif=tags)

    told, code = verdict(spoil, config_lines=f"\ndataloader.train.mapper.exif = {exif!r}\n")
    assert told == expected
    assert code == (2 if told == STOPS else 0)


def test_the_config_s_limit_of_pixels_is_that_of_both_mappers_and_the_verdict(verdict):
    assert verdict(lambda folder: None, config_lines="\ndataloader.train.mapper.max_pixels = 100\n") == (STOPS, 2)
