"""What people call an image, as 8-bit RGB in an array; or an error that says which layout is expected.

A path is read as ``dinox.data.images.load_image`` does it: turned as its EXIF orientation says, as viewers show it. A
PIL image is taken as it is, in the frame of its ``size``: EXIF orientations are for whoever opened the file to apply.
Arrays are (H, W, 3), tensors (3, H, W), both uint8 in 0..255, in memory of any strides.
"""

import os
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinox.data import DataError
from dinox.data.conversions import count_conversions
from dinox.data.images import inspect_image, load_image

CHANNEL_ORDERS = ("RGB", "BGR")

ImageLike = str | os.PathLike | Image.Image | np.ndarray | Tensor

MAX_PIXELS = 178_956_970
"""Of a file that is shrunk as a whole; Pillow's own limit."""

MAX_PIXELS_IN_TILES = 500_000_000
"""Of a file that is cut into tiles; 20,000 x 20,000 pixels take 3 GB of memory while they are decoded."""

_NO_LIMIT = 2**62

_EXPECTED = (
    "expected a path, a PIL image, a numpy array (height, width, 3) or a torch tensor (3, height, width), arrays and "
    "tensors of uint8 in 0..255"
)
_ARRAY, _TENSOR = "a numpy array (height, width, 3)", "a torch tensor (3, height, width)"


def is_image(value: Any) -> bool:
    """Whether a value is one image rather than several."""
    return isinstance(value, (str, os.PathLike, Image.Image, np.ndarray, Tensor))


def image_name(image: Any, index: int) -> str:
    """What messages call an image: its path, or its place among the images."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {index}"


def to_rgb(
    image: ImageLike,
    *,
    name: str,
    channel_order: str = "RGB",
    exif: str = "apply",
    max_pixels: int | None = None,
    tiled: bool = False,
) -> np.ndarray:
    """The image as a contiguous array (H, W, 3) of uint8, RGB.

    Args:
        image: see above. Gray arrays and tensors are repeated, alpha channels dropped, both with a warning.
        name: what messages call it.
        channel_order: of arrays and tensors, "RGB" or "BGR" (as OpenCV reads them).
        exif: of a file, "apply" or "ignore" its orientation.
        max_pixels: of a file; None: ``MAX_PIXELS``, or ``MAX_PIXELS_IN_TILES``.
        tiled: whether the image is cut into tiles.

    Raises DataError naming the image, the layout that is expected, and the cure.
    """
    if isinstance(image, (str, os.PathLike)):
        limit = (MAX_PIXELS_IN_TILES if tiled else MAX_PIXELS) if max_pixels is None else max_pixels
        return _from_file(image, exif=exif, limit=limit, tiled=tiled)
    if isinstance(image, Image.Image):
        return _from_pil(image, name)
    if isinstance(image, np.ndarray):
        pixels = _three_channels(image, name, axis=2, kind=_ARRAY, swap="image.transpose(1, 2, 0)")
    elif isinstance(image, Tensor):
        pixels = _three_channels(_tensor_values(image, name), name, axis=0, kind=_TENSOR, swap="image.permute(2, 0, 1)")
        pixels = pixels.transpose(1, 2, 0)
    else:
        raise DataError(f"{name}: {_EXPECTED}, got {_described(image)}")
    return np.ascontiguousarray(pixels[:, :, ::-1] if channel_order == "BGR" else pixels)


def _tensor_values(image: Tensor, name: str) -> np.ndarray:
    try:
        array = image.detach().cpu()
        if array.dtype == torch.bfloat16:  # numpy has none; the message is that of all floats
            array = array.float()
        return array.numpy()
    except (RuntimeError, TypeError) as error:  # sparse, quantized, nested, without values
        kind = "without values, on the device 'meta'" if image.is_meta else f"of {image.dtype} and {image.layout}"
        raise DataError(f"{name}: expected {_TENSOR} of uint8 in 0..255, dense and with values, got one {kind}") from (
            error
        )


def _from_file(path: str | os.PathLike, *, exif: str, limit: int, tiled: bool) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is one limit, and it is an error
            loaded = load_image(path, "RGB", exif=exif, max_pixels=limit)
    except DataError as error:
        if not isinstance(error.__cause__, Image.DecompressionBombError):
            raise
        file = inspect_image(path, max_pixels=_NO_LIMIT)
        cure = "cut it into pieces"
        if not tiled:
            cure = "give tile=1000 (--tile 1000) to detect in tiles at full size, for shrunk it loses small objects"
        raise DataError(
            f"Image {os.fspath(path)} has {file.width:,} x {file.height:,} pixels, more than max_pixels={limit:,}: "
            f"{cure}. Or give a larger max_pixels (--max-pixels), if there are 9 bytes of memory for each pixel"
        ) from error
    count_conversions(path, loaded.conversions)
    return loaded.pixels


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    if 0 in image.size:
        raise DataError(f"{name}: the PIL image is empty: {image.width} x {image.height} pixels")
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        raise DataError(
            f"{name}: a PIL image of the mode {image.mode!r} has no range that could be known. Scale it to 0..255 and "
            "convert it to 'L', or give the path of the file"
        )
    return np.array(image.convert("RGB"))


def _three_channels(array: np.ndarray, name: str, *, axis: int, kind: str, swap: str) -> np.ndarray:
    """Checked, with three channels on ``axis``."""
    if array.size == 0:
        raise DataError(f"{name}: expected {kind}, got an empty one of shape {array.shape}")
    channels = 1 if array.ndim == 2 else array.shape[axis] if array.ndim == 3 else None
    if channels not in (1, 3, 4):
        cure = _layout_cure(array, axis=axis, swap=swap)
        raise DataError(f"{name}: expected {kind}, got the shape {tuple(array.shape)}. {cure}")
    if array.dtype != np.uint8:
        raise DataError(f"{name}: expected {kind} of uint8 in 0..255, got {array.dtype}{_range(array)}")
    if channels == 1:
        warnings.warn("gray arrays are repeated to three channels", stacklevel=2)
        gray = array if array.ndim == 2 else array.squeeze(axis)
        return np.stack([gray] * 3, axis=axis)
    if channels == 4:
        warnings.warn("of arrays with four channels the last one (alpha) is dropped", stacklevel=2)
        return np.take(array, range(3), axis=axis)
    return array


def _layout_cure(array: np.ndarray, *, axis: int, swap: str) -> str:
    other = 0 if axis == 2 else 2
    if array.ndim == 3 and array.shape[other] in (1, 3, 4):
        return f"Give {swap}"
    if array.ndim == 4:
        return "Give a batch as a list of its images: list(batch)"
    return "Give one image, or a list of images"


def _range(array: np.ndarray) -> str:
    if array.dtype.kind not in "fiu":
        return ". Give pixels"
    least, greatest = array.min(), array.max()
    cure = "Give image.astype('uint8') (of a tensor: image.byte())"
    if array.dtype.kind == "f" and greatest <= 1:
        cure = "Give (255 * image).round().astype('uint8') (of a tensor: (255 * image).round().byte())"
    return f" in {least:g}..{greatest:g}. {cure}"


def _described(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        return "bytes: open them with PIL.Image.open(io.BytesIO(...))"
    if value is None:
        return "None, which cv2.imread gives for a file that is not there or is no image: check the path"
    got = f"the number {value}" if isinstance(value, (int, float)) else f"a {type(value).__name__}"
    if isinstance(value, (int, float, list, tuple)):
        return f"{got}: numbers in lists are no image, make them an array with numpy.array(..., 'uint8')"
    return got
