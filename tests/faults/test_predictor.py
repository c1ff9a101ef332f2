"""Images that a predictor cannot take, or takes with a warning."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image

from dinox import Predictor
from dinox.data import DataError
from tests.inference.marker import marker_config, picture, write_checkpoint
from tests.small_models import build_small, make_input

RED = (10, 20, 30, 50)
IMAGE = picture(red=RED)
CHW = IMAGE.transpose(2, 0, 1)
ARRAY = r"expected a numpy array \(height, width, 3\)"
TENSOR = r"expected a torch tensor \(3, height, width\)"


@pytest.fixture
def predictor(tmp_path):
    return Predictor(write_checkpoint(tmp_path / "model.pth"), config=marker_config(), device="cpu")


# ----------------------------------------------------------------------------------------------------- what is no image


@pytest.mark.parametrize(
    "image, message",
    [
        (IMAGE / 255, ARRAY + r" of uint8 in 0\.\.255, got float64 in 0\.\.1\. Give \(255 \* image\)\.round"),
        (IMAGE.astype(np.float32), ARRAY + r" of uint8 in 0\.\.255, got float32 in 0\.\.255\. Give image\.astype"),
        (IMAGE.astype(np.int64), ARRAY + r" of uint8 in 0\.\.255, got int64"),
        (IMAGE > 100, ARRAY + r" of uint8 in 0\.\.255, got bool"),
        (np.array([["a"]]), ARRAY + r" of uint8 in 0\.\.255, got <U1"),
        (np.zeros((0, 80, 3), np.uint8), ARRAY + r", got an empty one of shape \(0, 80, 3\)"),
        (np.zeros(0), ARRAY + r", got an empty one of shape \(0,\)"),
        (np.zeros(5, np.uint8), ARRAY + r", got the shape \(5,\)"),
        (CHW, ARRAY + r", got the shape \(3, 60, 80\)\. Give image\.transpose\(1, 2, 0\)"),
        (IMAGE[None], ARRAY + r", got the shape \(1, 60, 80, 3\)\. Give a batch as a list"),
        (np.zeros((60, 80, 2), np.uint8), ARRAY + r", got the shape \(60, 80, 2\)"),
        (torch.from_numpy(CHW / 255), TENSOR + r" of uint8 in 0\.\.255, got float64 in 0\.\.1.*\.byte\(\)"),
        (torch.zeros(3, 6, 8, dtype=torch.bfloat16), TENSOR + r" of uint8 in 0\.\.255, got float"),
        (torch.from_numpy(IMAGE), TENSOR + r", got the shape \(60, 80, 3\)\. Give image\.permute\(2, 0, 1\)"),
        (torch.zeros(0, dtype=torch.uint8), TENSOR + r", got an empty one of shape \(0,\)"),
        ([1, 2, 3], r"expected a path, a PIL image.*got the number 1: numbers in lists are no image"),
        (IMAGE.tolist(), r"expected a path.*got a list: numbers in lists are no image"),
        ([IMAGE, None], r"image 1: expected a path.*got None, which cv2\.imread gives"),
        (b"\xff\xd8\xff", r"expected a path.*got bytes: open them with PIL\.Image\.open"),
        ({"image": CHW}, r"expected a path.*got a dict"),
        (7, r"expected a path.*got the number 7"),
        (None, r"image 0: expected a path.*got None, which cv2\.imread gives for a file that is not there"),
        (torch.zeros(3, 6, 8, dtype=torch.uint8).to_sparse(), TENSOR + r".*dense.*got one of torch.uint8 and torch.sp"),
        (torch.zeros(3, 6, 8, dtype=torch.uint8, device="meta"), TENSOR + r".*with values, got one without values"),
        (Image.new("F", (8, 6)), r"image 0: a PIL image of the mode 'F' has no range.*'L'"),
        (Image.new("RGB", (0, 6)), r"image 0: the PIL image is empty: 0 x 6"),
    ],
)
def test_row_40_what_is_no_image_is_an_error_that_says_what_is(predictor, image, message):
    with pytest.raises(DataError, match=message):
        list(predictor(image))


@pytest.mark.parametrize("image", [None, b"\xff\xd8", bytearray(2), 3, {"image": CHW}])
def test_row_40_what_is_no_image_is_an_error_at_once(predictor, image):
    with pytest.raises(DataError, match="expected a path, a PIL image, a numpy array"):
        predictor(image)


@pytest.mark.parametrize("weights", [None, b"model.pth", 3])
def test_row_40_weights_that_are_no_path(weights):
    with pytest.raises(ValueError, match="weights: expected the path of a checkpoint or of an exported model, got"):
        Predictor(weights)


@pytest.mark.parametrize("device", ["mps", "meta", "xpu"])
def test_row_40_a_device_that_is_not_there(tmp_path, device):
    with pytest.raises(ValueError, match=f"device: .*'{device}'"):
        Predictor(write_checkpoint(tmp_path / "model.pth"), config=marker_config(), device=device)


GRAY = IMAGE[:, :, 0]
RGBA = np.dstack([IMAGE, np.full(IMAGE.shape[:2], 7, np.uint8)])


@pytest.mark.parametrize(
    "image, warning",
    [
        (GRAY, "gray"),
        (GRAY[:, :, None], "gray"),
        (torch.from_numpy(GRAY.copy()), "gray"),
        (torch.from_numpy(GRAY.copy())[None], "gray"),
        (RGBA, "four channels"),
        (torch.from_numpy(RGBA).permute(2, 0, 1), "four channels"),
    ],
    ids=["HW", "HW1", "HW tensor", "1HW tensor", "HW4", "4HW tensor"],
)
def test_row_40_gray_and_alpha_are_converted_with_a_warning(predictor, image, warning):
    with pytest.warns(UserWarning, match=warning):
        instances, pixels = predictor(image), predictor.read(image)
    is_rgba = "four" in warning
    assert instances.image_size == (60, 80)
    assert np.array_equal(pixels, IMAGE if is_rgba else np.dstack([GRAY] * 3))
    assert len(instances) == is_rgba  # gray has no red


@pytest.mark.parametrize("image", [IMAGE[::-1, ::-1], IMAGE.transpose(1, 0, 2), np.asfortranarray(IMAGE)])
@pytest.mark.filterwarnings("error")
def test_row_40_strides_do_not_matter(predictor, image):
    assert torch.equal(predictor(image).pred_boxes.tensor, predictor(image.copy()).pred_boxes.tensor)
    assert len(predictor(image)) == 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "RGBA"])
@pytest.mark.filterwarnings("error")
def test_row_40_pil_images_of_all_modes_are_converted(predictor, mode):
    assert predictor(Image.fromarray(IMAGE).convert(mode)).image_size == (60, 80)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_row_40_a_device_that_is_not_there_is_an_error_and_only_then(tmp_path):
    weights = write_checkpoint(tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"device=cuda: torch .* finds no CUDA device here.*device=cpu"):
        Predictor(weights, config=marker_config(), device="cuda")
    with pytest.raises(ValueError, match="device: expected 'cpu' or 'cuda', got 'gpu'"):
        Predictor(weights, config=marker_config(), device="gpu")
    assert len(Predictor(weights, config=marker_config())(IMAGE)) == 1


def test_row_40_a_model_in_training_mode_without_objects_is_an_error_that_names_the_image():
    image = make_input(64, 64, 0) | {"file_name": "street.jpg"}
    del image["instances"]
    with pytest.raises(ValueError, match=r"`instances`.* missing for street\.jpg \(1 of 1\); call model\.eval\(\)"):
        build_small()([image])


@pytest.mark.parametrize("image", [torch.zeros(64, 64, 3), torch.zeros(64, 64), torch.zeros(1, 3, 64, 64)])
def test_row_40_a_model_given_another_layout_says_what_it_expects(image):
    inputs = [make_input(64, 64, 0) | {"image": image}]
    with pytest.raises(ValueError, match=r"0\.png: expected an image of shape \(3, height, width\), got \("):
        build_small().eval()(inputs)


# -------------------------------------------------------------------------------------------------- files that are none


def jpeg():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (jpeg()[:1000], "cut off or damaged"),
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (None, "No such file or directory"),
    ],
    ids=["truncated", "empty", "HTML", "missing"],
)
def test_row_01_to_03_a_file_that_is_no_image_is_an_error_with_its_path(predictor, tmp_path, content, message):
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"Image {path} cannot be read: .*{message}"):
        predictor(path)


def test_row_04_a_folder_is_no_image(predictor, tmp_path):
    with pytest.raises(DataError, match=f"Image {tmp_path} cannot be read: Is a directory"):
        predictor(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- sizes


def write_png_header(path, *, height, width):
    """A gray PNG that ends where its pixels begin."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    length = struct.pack(">I", len(header) - 4)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + length + header + checksum + b"\0\0\1\0IDAT")


def test_row_10_a_huge_image_is_refused_by_its_header_and_tiles_are_offered(predictor, tmp_path):
    path = tmp_path / "huge.png"
    write_png_header(path, height=20_000, width=20_000)
    message = r"huge\.png has 20,000 x 20,000 pixels, more than max_pixels=178,956,970: give tile=1000 \(--tile 1000\)"
    with pytest.raises(DataError, match=message):
        predictor(path)


def test_row_10_tiles_take_larger_images_up_to_a_limit_of_their_own(tmp_path):
    path = tmp_path / "large.png"
    Image.fromarray(picture(height=300, width=400, red=(201, 101, 205, 105))).save(path)
    weights, options = write_checkpoint(tmp_path / "model.pth"), {"config": marker_config(), "device": "cpu"}
    with pytest.raises(DataError, match=r"400 x 300 pixels, more than max_pixels=100,000: give tile"):
        Predictor(weights, max_pixels=100_000, **options)(path)
    with pytest.raises(DataError, match=r"400 x 300 pixels, more than max_pixels=100,000: cut it into pieces"):
        Predictor(weights, max_pixels=100_000, tile=64, **options)(path)
    assert len(Predictor(weights, max_pixels=200_000, tile=64, **options)(path)) == 1


@pytest.mark.filterwarnings("error")
def test_row_10_below_the_limit_nothing_is_said(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr("dinox.inference.images.MAX_PIXELS", 60 * 80)
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    assert len(predictor(tmp_path / "a.png")) == 1


@pytest.mark.parametrize("size", [(1, 1), (3, 4000), (4000, 3), (1, 100)])
def test_row_11_images_of_odd_shapes_run(predictor, size):
    assert predictor(picture(height=size[0], width=size[1])).image_size == size


def test_row_11_an_image_too_thin_to_be_resized_is_an_error_that_says_so(tmp_path):
    cfg = marker_config()
    cfg.dataloader.test.mapper.augmentations = [L(ResizeShortestEdge)(short_edge_length=64, max_size=256)]
    predictor = Predictor(write_checkpoint(tmp_path / "model.pth"), config=cfg)
    with pytest.raises(DataError, match="image 0: an image of 5000 x 1 pixels cannot be resized"):
        predictor(picture(height=1, width=5000))
