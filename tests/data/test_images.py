"""Reading image files. What is wrong with them: tests/faults/test_images.py."""

import logging

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import Image, ImageOps

from dinox.data import DataError, UnreadableImage, inspect_image, read_image
from dinox.data.conversions import Conversion, conversions_counted, count_conversions_of
from dinox.data.images import load_image

from .coco_files import write_image

HEIGHT, WIDTH = 6, 8


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "image.png", height=HEIGHT, width=WIDTH)


def test_pixels_are_contiguous_writable_rgb(image):
    pixels = read_image(image)
    assert pixels.shape == (HEIGHT, WIDTH, 3) and pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    assert np.array_equal(pixels, np.asarray(Image.open(image)))


def test_bgr_is_the_other_way_round(image):
    pixels = read_image(image, "BGR")
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, read_image(image)[:, :, ::-1])


@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 exist
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied_or_ignored(tmp_path, orientation, suffix):
    file = tmp_path / f"image.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(write_image(tmp_path / "plain.png", height=HEIGHT, width=WIDTH)).save(file, exif=exif)
    shown = read_image(file)
    assert np.array_equal(shown, np.asarray(ImageOps.exif_transpose(Image.open(file))))
    if suffix != "tif":  # detectron2 turns TIFFs twice, after Pillow has done it
        assert np.array_equal(shown, detection_utils.read_image(str(file), "RGB"))
    stored = read_image(file, exif="ignore")
    assert stored.shape == (HEIGHT, WIDTH, 3)
    if suffix in ("png", "tif"):
        assert np.array_equal(stored, read_image(tmp_path / "plain.png"))
    header = inspect_image(file)
    assert (header.height, header.width) == shown.shape[:2]
    assert header.stored_size == (WIDTH, HEIGHT)
    assert header.orientation == (orientation if 1 <= orientation <= 8 else 1)


def test_damaged_exif_data_is_no_orientation(tmp_path):
    file = tmp_path / "image.jpg"
    Image.new("RGB", (WIDTH, HEIGHT)).save(file, exif=b"Exif\0\0MM\0\x2a\0\0\xff\xff\xff\xff")
    assert read_image(file).shape == (HEIGHT, WIDTH, 3)
    assert inspect_image(file).orientation == 1


def test_header_of_an_image_whose_pixels_are_cut_off(tmp_path):
    file = write_image(tmp_path / "image.jpg", height=480, width=640)
    file.write_bytes(file.read_bytes()[:2000])
    header = inspect_image(file)
    assert (header.width, header.height, header.mode, header.format, header.frames) == (640, 480, "RGB", "JPEG", 1)
    assert header.conversions is Conversion.NONE
    with pytest.raises(UnreadableImage, match="cut off or damaged") as caught:
        read_image(file)
    assert caught.value.cause == "damaged"


def test_header_tells_frames_and_losses(tmp_path):
    frames = [Image.new("L", (WIDTH, HEIGHT), value) for value in (0, 100, 200)]
    file = tmp_path / "image.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    header = inspect_image(file)
    assert header.frames == 3 and header.conversions is Conversion.FRAMES


@pytest.mark.parametrize("argument", [{"image_format": "L"}, {"exif": "rotate"}])
def test_unknown_settings_are_refused(image, argument):
    with pytest.raises(ValueError, match=f"{next(iter(argument))}: expected one of"):
        read_image(image, **argument)


def test_pixel_limit_is_lent_to_pillow_and_given_back(image, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match=r"exceeds limit of 40 pixels.* raise max_pixels"):
        read_image(image)
    assert read_image(image, max_pixels=48).shape == (HEIGHT, WIDTH, 3)
    assert Image.MAX_IMAGE_PIXELS == 20
    with pytest.raises(DataError, match="exceeds limit"):
        read_image(image, max_pixels=46)
    assert Image.MAX_IMAGE_PIXELS == 20


def test_large_images_become_arrays_in_bands_of_the_same_pixels(tmp_path, monkeypatch):
    """Bands of 3 rows, the last one of 1; modes that are converted, and one that is not."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 7, 4), dtype=np.uint8)
    rgb = Image.fromarray(pixels[:, :, :3])
    images = [rgb, rgb.convert("P"), rgb.convert("L"), rgb.convert("CMYK"), Image.fromarray(pixels)]
    for number, each in enumerate(images):
        each.save(tmp_path / f"{number}.tif")
        whole = read_image(tmp_path / f"{number}.tif")
        with monkeypatch.context() as small:
            small.setattr("dinox.data.images._PIXELS_AT_ONCE", 21)
            banded = read_image(tmp_path / f"{number}.tif")
        np.testing.assert_array_equal(banded, whole)
        assert banded.flags.c_contiguous and banded.flags.writeable


def test_twelve_bits_are_scaled_by_their_own_range(tmp_path):
    """A 12-bit TIFF, two pixels in three bytes: 0, 4095, 2048, 1."""
    entries = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (278, 1), (279, 6)]
    file = tmp_path / "image.tif"
    directory = b"".join(
        tag.to_bytes(2, "little") + b"\3\0\1\0\0\0" + value.to_bytes(4, "little") for tag, value in entries
    )
    pixels = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x01])
    count = len(entries).to_bytes(2, "little")
    file.write_bytes(b"II*\0" + (14).to_bytes(4, "little") + pixels + count + directory + b"\0\0\0\0")
    assert read_image(file)[0, :, 0].tolist() == [0, 255, 128, 0]


def test_losses_are_said_once_and_counted_at_the_end(tmp_path, caplog):
    for name in "abc":
        Image.new("RGBA", (WIDTH, HEIGHT)).save(tmp_path / f"{name}.png")
    with caplog.at_level(logging.INFO, logger="dinox"):
        with conversions_counted():
            for name in "aab":
                read_image(tmp_path / f"{name}.png")
            assert [record.message for record in caplog.records] == [
                f"Image {tmp_path / 'a.png'} is converted on reading: with transparency, which is dropped. "
                "Others like it are counted, and not named."
            ]
            # As it arrives from a mapper in a worker process.
            sample = {"file_name": str(tmp_path / "c.png"), "conversions": load_image(tmp_path / "c.png").conversions}
            count_conversions_of([sample, {"file_name": "d"}])
        with conversions_counted():
            pass
    assert len(caplog.records) == 2
    assert caplog.records[1].message == "Images converted on reading: 3 with transparency, which is dropped"
