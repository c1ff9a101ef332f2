"""Image files that are missing, damaged, or of a kind that needs care."""

import csv
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image

from dinox.data import DetectionMapper, detr_augmentation, inspect_image, read_image, resize_augmentation
from tests.engine.tiny import TinyDetector

from ..small_models import assert_trains_one_step, build_small
from .own_data import BAD, HEIGHT, WIDTH, change_json, write_dataset

CONFIG = "--config-file"


@pytest.fixture
def config(tmp_path, forget_datasets):
    return write_dataset(tmp_path)


@pytest.fixture
def train(dinox, config, output_dir):
    def run(*overrides):
        return dinox("train", CONFIG, config, f"train.output_dir={output_dir}", "train.eval_period=0", *overrides)

    return run


@pytest.fixture
def evaluate(dinox, config, output_dir, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save(TinyDetector(num_classes=2).state_dict(), weights)

    def run(*overrides):
        settings = [f"train.init_checkpoint={weights}", f"train.output_dir={output_dir}"]
        return dinox("eval", CONFIG, config, *settings, *overrides)

    return run


def is_one_line(err):
    return err.startswith("dinox: error: ") and err.count("\n") == 1 and "--debug" not in err


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-100])


def make_empty(file):
    file.write_bytes(b"")


def make_web_page(file):
    file.write_text("<!doctype html><title>404</title>")


def remove(file):
    file.unlink()


SKIPPED = [
    pytest.param(cut_off, "damaged", id="row_01_truncated"),
    pytest.param(make_empty, "empty", id="row_02_empty"),
    pytest.param(make_web_page, "no image", id="row_02_html"),
    pytest.param(remove, "missing", id="row_03_missing"),
]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("spoil, cause", SKIPPED)
def test_row_01_02_03_training_skips_counts_and_lists(train, output_dir, tmp_path, spoil, cause, num_workers):
    file = tmp_path / "train" / f"{BAD}.png"
    spoil(file)
    code, out, err = train(f"dataloader.train.num_workers={num_workers}")
    assert code == 0, err
    assert f"1 of 8 training images cannot be read (1 {cause}; max_bad=0.01 allows 1)" in out
    with open(output_dir / "skipped.csv", newline="") as stream:
        assert list(csv.reader(stream)) == [["path", "image id", "cause"], [str(file), str(100 + BAD), cause]]
    assert "1 of 8 training images cannot be read" in (output_dir / "log.txt").read_text()
    assert (output_dir / "model_final.pth").is_file()


@pytest.mark.parametrize("spoil, cause", SKIPPED[:1])
def test_row_01_a_jpeg_is_skipped_too(dinox, tmp_path, output_dir, forget_datasets, spoil, cause):
    config = write_dataset(tmp_path, suffix="jpg")
    file = tmp_path / "train" / f"{BAD}.jpg"
    spoil(file)
    code, out, err = dinox("train", CONFIG, config, f"train.output_dir={output_dir}", "train.eval_period=0")
    assert code == 0, err
    assert f"1 of 8 training images cannot be read (1 {cause}; " in out
    assert str(file) in (output_dir / "skipped.csv").read_text()


def test_row_03_all_missing_images_are_listed_by_check_data(dinox, config, tmp_path):
    for number in (2, 5, 6):
        (tmp_path / "train" / f"{number}.png").unlink()
    table = tmp_path / "faults.csv"
    code, out, _ = dinox("check-data", "own_train", CONFIG, config, "--open-images", "--csv", table)
    assert code == 1
    with open(table, newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["severity"] != "note"]
    assert [Path(row["file"]).name for row in rows] == ["2.png", "5.png", "6.png"]
    assert "102, 105, 106" in out


@pytest.mark.parametrize("num_workers", [0, 1])
def test_row_03_too_many_bad_images_end_training_with_the_list(train, output_dir, tmp_path, num_workers):
    for number in (2, 5, 6):
        (tmp_path / "train" / f"{number}.png").unlink()
    code, _, err = train(f"dataloader.train.num_workers={num_workers}", "train.max_iter=20")
    assert code == 2
    assert is_one_line(err)
    assert "2 of 8 training images cannot be read (2 missing; max_bad=0.01 allows 1)" in err
    assert f"listed in {output_dir / 'skipped.csv'}" in err and "dataloader.train.max_bad" in err
    assert len((output_dir / "skipped.csv").read_text().splitlines()) == 3
    code, _, err = train("dataloader.train.max_bad=0.5")
    assert code == 0, err


def test_row_03_good_data_leaves_no_list(train, output_dir):
    code, out, err = train()
    assert code == 0, err
    assert not (output_dir / "skipped.csv").exists()
    assert "cannot be read" not in out and "converted" not in out


@pytest.mark.parametrize(
    "spoil, num_workers", [(cut_off, 0), (make_empty, 0), (make_web_page, 0), (remove, 0), (cut_off, 1)]
)
def test_row_01_02_03_evaluation_skips_nothing(evaluate, tmp_path, spoil, num_workers):
    file = tmp_path / "val" / f"{BAD}.png"
    spoil(file)
    code, out, err = evaluate(f"dataloader.test.num_workers={num_workers}")
    assert code == 2
    assert is_one_line(err)
    assert f"Image {file} cannot be read" in err
    assert "AP50" not in out


def test_row_03_training_keeps_its_weights_when_an_evaluation_fails(train, output_dir, tmp_path):
    (tmp_path / "val" / f"{BAD}.png").unlink()
    code, _, err = train()
    assert code == 2
    assert f"Image {tmp_path / 'val' / f'{BAD}.png'} cannot be read" in err
    assert (output_dir / "model_final.pth").is_file()


# ---------------------------------------------------------------------------------------------------------------- paths


def make_folder(file):
    file.unlink()
    file.mkdir()


def make_loop(file):
    file.unlink()
    file.symlink_to(file)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    "spoil, reason", [(make_folder, "Is a directory"), (make_loop, "Too many levels of symbolic links")]
)
def test_row_04_paths_that_cannot_be_opened_are_errors(train, tmp_path, split, spoil, reason):
    file = tmp_path / split / f"{BAD}.png"
    spoil(file)
    code, _, err = train()
    assert code == 2
    assert is_one_line(err)
    assert f"Image {file} cannot be read: {reason}" in err


def test_row_04_a_file_without_permission_is_an_error(train, tmp_path, monkeypatch):
    """Permissions do not keep root, who may run this, from reading."""
    file, original = tmp_path / "train" / f"{BAD}.png", PathManager.open

    def refuse(path, *args, **kwargs):
        if path == str(file):
            raise PermissionError(13, "Permission denied", path)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(PathManager, "open", refuse)
    code, _, err = train()
    assert code == 2
    assert f"Image {file} cannot be read: Permission denied" in err


# ---------------------------------------------------------------------------------------------------------------- depth


def test_row_05_sixteen_bits_are_scaled(tmp_path):
    values = np.array([[0, 128, 257, 32768, 65407, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "gray.png")
    pixels = read_image(tmp_path / "gray.png")
    assert pixels.shape == (1, 6, 3)
    assert pixels[0].tolist() == [[value] * 3 for value in (0, 0, 1, 128, 255, 255)]


def in_sixteen_bits(file):
    Image.fromarray(np.full((HEIGHT, WIDTH), 1000, dtype=np.uint16)).save(file)


def with_alpha(file):
    Image.open(file).convert("RGBA").save(file)


def as_animation(file):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "green")]
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "spoil, first, summary",
    [
        pytest.param(in_sixteen_bits, "gray with more than 8 bits", "scaled to 8", id="row_05"),
        pytest.param(with_alpha, "with transparency", "dropped", id="row_07_alpha"),
        pytest.param(as_animation, "with several frames", "the first is taken", id="row_07_frames"),
    ],
)
def test_row_05_07_losses_are_one_warning_and_a_count(train, tmp_path, spoil, first, summary, num_workers):
    for number in (2, BAD, 6):
        spoil(tmp_path / "train" / f"{number}.png")
    code, out, err = train(f"dataloader.train.num_workers={num_workers}", "train.max_iter=8")
    assert code == 0, err
    assert out.count(f"is converted on reading: {first}") == 1
    counts = [line for line in out.splitlines() if "Images converted on reading" in line]
    assert len(counts) == 1
    assert f": 3 {first}" in counts[0] and summary in counts[0]


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_row_06_pixels_without_a_range_are_errors(train, tmp_path, dtype):
    file = tmp_path / "train" / f"{BAD}.png"
    Image.fromarray(np.ones((HEIGHT, WIDTH), dtype=dtype)).save(file, format="TIFF")
    code, _, err = train()
    assert code == 2
    assert is_one_line(err)
    assert f"Image {file}: expected pixels of 8 or 16 bits, got {dtype}" in err


RED, GRAY = [255, 0, 0], [100, 100, 100]


@pytest.mark.parametrize(
    "mode, suffix, colour, expected",
    [
        ("L", "png", 100, GRAY),
        ("1", "png", 1, [255, 255, 255]),
        ("LA", "png", (100, 128), GRAY),
        ("RGBA", "png", (255, 0, 0, 0), RED),  # the colour under the transparency stays, as in detectron2
        ("P", "png", 1, RED),
        ("P", "gif", 1, RED),
        ("CMYK", "tif", (0, 255, 255, 0), RED),
        ("CMYK", "jpg", (0, 255, 255, 0), RED),
    ],
)
def test_row_07_other_kinds_become_rgb(tmp_path, mode, suffix, colour, expected):
    image = Image.new(mode, (WIDTH, HEIGHT), colour)
    options = {}
    if mode == "P":
        image.putpalette([0, 0, 0, *RED])
        options["transparency"] = 0
    image.save(tmp_path / f"image.{suffix}", **options)
    assert inspect_image(tmp_path / f"image.{suffix}").mode == mode
    pixels = read_image(tmp_path / f"image.{suffix}")
    assert pixels.shape == (HEIGHT, WIDTH, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.reshape(-1, 3).astype(int) - expected).max() <= 1  # JPEG


# ---------------------------------------------------------------------------------------------------------------- sizes


def turn(file):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(file).save(file, exif=exif)


@pytest.mark.parametrize("split", ["train", "val"])
def test_row_08_sizes_of_the_image_as_stored_are_an_error_with_both_cures(train, tmp_path, split):
    file = tmp_path / split / f"{BAD}.png"
    turn(file)
    code, _, err = train()
    assert code == 2
    assert is_one_line(err)
    assert f"{file} (image id {100 + BAD})" in err
    assert "EXIF orientation 6" in err
    assert "dinox check-data --fix" in err and "set dataloader.train.mapper.exif=ignore" in err


def test_row_08_the_key_that_the_message_names_cures_it(train, tmp_path):
    for split in ("train", "val"):
        turn(tmp_path / split / f"{BAD}.png")
    code, _, err = train("dataloader.train.mapper.exif=ignore")
    assert code == 0, err


def test_row_08_check_data_mends_the_json(dinox, config, train, tmp_path):
    for split in ("train", "val"):
        turn(tmp_path / split / f"{BAD}.png")
        mend(dinox, tmp_path, split)
    code, _, err = train()
    assert code == 0, err


def mend(dinox, folder, split):
    """`dinox check-data --fix`, and the mended json in the place of the other one."""
    file, mended = folder / f"{split}.json", folder / f"{split}.mended.json"
    dinox("check-data", file, "--images", folder / split, "--open-images", "--fix", mended)
    mended.replace(file)


@pytest.mark.parametrize("spoil", [lambda image: image.update(width=60), lambda image: image.pop("height")])
def test_row_09_check_data_fills_in_the_sizes_of_the_files(dinox, config, train, tmp_path, spoil):
    change_json(tmp_path / "train.json", lambda coco: spoil(coco["images"][BAD]))
    mend(dinox, tmp_path, "train")
    image = json.loads((tmp_path / "train.json").read_text())["images"][BAD]
    assert (image["height"], image["width"]) == (HEIGHT, WIDTH)
    code, _, err = train()
    assert code == 0, err


def test_row_09_wrong_sizes_name_the_image(train, tmp_path):
    change_json(tmp_path / "train.json", lambda coco: coco["images"][BAD].update(width=60))
    code, _, err = train()
    assert code == 2
    assert is_one_line(err)
    assert f"image id {100 + BAD}" in err and "60 x 48 pixels, as its annotation says, got 64 x 48" in err
    assert "dinox check-data --fix" in err


@pytest.mark.parametrize("field", ["height", "width"])
def test_row_09_missing_sizes_name_the_image_before_training(train, tmp_path, output_dir, field):
    change_json(tmp_path / "train.json", lambda coco: coco["images"][BAD].pop(field))
    code, _, err = train()
    assert code == 2
    assert is_one_line(err)
    assert f"'{field}'" in err and str(100 + BAD) in err and "train.json" in err
    assert not output_dir.exists()


def write_bomb(file, width, height):
    """A PNG of so many pixels in a few bytes: its header and some data."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(3 * width + 1))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def test_row_10_a_bomb_is_an_error_with_the_limit_and_its_key(train, tmp_path):
    file = tmp_path / "train" / f"{BAD}.png"
    write_bomb(file, 20_000, 20_000)
    code, _, err = train()
    assert code == 2
    assert is_one_line(err)
    assert f"Image {file} cannot be read" in err and "400000000 pixels" in err and "178956970" in err
    assert "dataloader.train.mapper.max_pixels" in err


def test_row_10_the_limit_is_pillow_s_until_the_key_is_given(train, monkeypatch):
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # importing dinox has not changed it
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    code, _, err = train()
    assert code == 2 and "exceeds limit of 2000 pixels" in err
    code, _, err = train(f"dataloader.train.mapper.max_pixels={HEIGHT * WIDTH}")  # the test mapper's is the same
    assert code == 0, err


@pytest.fixture(scope="module")
def small_dino():
    return build_small()


@pytest.mark.parametrize("height, width", [(1, 1), (3, 4000), (4000, 3), (1, 4000)])
@pytest.mark.parametrize("resized", [True, False])
def test_row_11_extreme_images_run_with_finite_output(tmp_path, small_dino, height, width, resized):
    file = tmp_path / "image.png"
    Image.new("RGB", (width, height), "red").save(file)
    box = {"bbox": [0, 0, width, height], "bbox_mode": 1, "category_id": 3}
    record = {"file_name": str(file), "image_id": 1, "height": height, "width": width, "annotations": [box]}
    sizes = {"short_edges": [64], "crop_short_edges": [48], "crop_size": [32, 48], "crop_max_size": 200}
    np.random.seed(0)
    for crop_probability in (0.0, 1.0):
        augmentations = detr_augmentation(max_size=128, crop_probability=crop_probability, **sizes) if resized else []
        sample = DetectionMapper(is_train=True, augmentations=augmentations)(record)
        assert_trains_one_step(small_dino.train(), [sample, sample])
    augmentations = resize_augmentation(short_edge=64, max_size=128) if resized else []
    sample = DetectionMapper(is_train=False, augmentations=augmentations)(record)
    found = small_dino.eval()([sample])[0]["instances"]
    assert found.image_size == (height, width)
    assert torch.isfinite(found.pred_boxes.tensor).all() and torch.isfinite(found.scores).all()
