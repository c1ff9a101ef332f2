"""Reading image files: any kind that Pillow knows, as 8-bit RGB or BGR, or an error that names the file and the cure.

What is not 8-bit RGB is converted: gray, palette, 1-bit and CMYK images as Pillow does it, gray images of 9 to 16 bits
by the full range of their bits (0..65535 becomes 0..255). Of transparent images the colours are kept and the alpha is
dropped; of animations and multi-page files the first frame is taken. Float and 32-bit images have no range that could
be known, and are errors.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from typing import IO

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from dinox.data.conversions import Conversion, count_conversions
from dinox.data.errors import DataError, UnreadableImage

IMAGE_FORMATS = ("RGB", "BGR")
EXIF_POLICIES = ("apply", "ignore")
CAUSES = ("missing", "empty", "no image", "damaged")
"""Of UnreadableImage. "no image": of no kind that Pillow knows, such as a web page that was saved as a .jpg."""

_ORIENTATION = 0x0112  # the EXIF tag
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS = 256, 257, 258  # tags
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)
_INVERSE = {6: 8, 8: 6}  # all others are their own
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_NO_RANGE = {"I": "int32", "F": "float32"}

_PIXELS_AT_ONCE = 2**24
"""Of an image while it becomes an array. A whole large one would be in memory four times."""

_limit_lock = threading.Lock()


@dataclass(frozen=True)
class ImageFile:
    """What the header of an image file says.

    width, height: in pixels as the image is shown, with its EXIF orientation applied. stored_size: (width, height)
    without it. orientation: EXIF's, 1 (upright) to 8. mode, format: Pillow's names, such as "RGB" and "JPEG". frames: 1
    unless it is an animation or has several pages. conversions: what ``read_image`` loses.
    """

    width: int
    height: int
    stored_size: tuple[int, int]
    orientation: int
    mode: str
    format: str
    frames: int
    conversions: Conversion


@dataclass(frozen=True)
class LoadedImage:
    """pixels: (H, W, 3) uint8, contiguous and writable. orientation: EXIF's, applied or not."""

    pixels: np.ndarray
    orientation: int
    conversions: Conversion


def read_image(
    path: str | PathLike, image_format: str = "RGB", *, exif: str = "apply", max_pixels: int | None = None
) -> np.ndarray:
    """The pixels of an image file: uint8 (H, W, 3), 0..255, contiguous and writable.

    The first image that loses something on the way is named in a warning (see ``dinox.data.conversions``).

    Args:
        path: a file, or a URL that detectron2's ``PathManager`` has a handler for.
        image_format: "RGB" or "BGR".
        exif: "apply" turns the image as its EXIF orientation says, as viewers show it; "ignore" takes it as it is
            stored, for annotations that were made that way.
        max_pixels: a larger image is an error. None: Pillow's guard against files that fill the memory, twice
            ``PIL.Image.MAX_IMAGE_PIXELS``, which is 179 million pixels.

    Raises DataError naming the path and the cure: UnreadableImage, with its ``cause``, for files that are missing,
    empty, no image or damaged, else for paths that cannot be opened, too many pixels, and float or 32-bit pixels.
    """
    loaded = load_image(path, image_format, exif=exif, max_pixels=max_pixels)
    count_conversions(path, loaded.conversions)
    return loaded.pixels


def load_image(
    path: str | PathLike, image_format: str = "RGB", *, exif: str = "apply", max_pixels: int | None = None
) -> LoadedImage:
    """As ``read_image``, with what was converted on the way, which the caller has to tell."""
    check_image_settings(image_format=image_format, exif=exif)
    with _opened(path, max_pixels) as image:
        orientation, conversions = _orientation(image), _conversions(image)
        image.load()
        image = _turned(image, orientation, already=_orientation(image) != orientation, policy=exif)
        pixels = _as_rgb(image, _gray_bits(image, fspath(path)), fspath(path))
        if image_format == "BGR":
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    return LoadedImage(pixels, orientation, conversions)


def inspect_image(path: str | PathLike, *, max_pixels: int | None = None) -> ImageFile:
    """What the header of an image file says; the pixels are not decoded, so that damage in them stays unseen.

    Raises DataError as ``read_image``.
    """
    with _opened(path, max_pixels) as image:
        _gray_bits(image, fspath(path))
        orientation = _orientation(image)
        stored_size = _stored_size(image)
        width, height = reversed(stored_size) if orientation in _SWAPS_SIDES else stored_size
        return ImageFile(
            width=width,
            height=height,
            stored_size=stored_size,
            orientation=orientation,
            mode=image.mode,
            format=image.format,
            frames=getattr(image, "n_frames", 1),
            conversions=_conversions(image),
        )


def check_image_settings(*, image_format: str, exif: str) -> None:
    """Raises ValueError naming the argument and its choices."""
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"image_format: expected one of {', '.join(IMAGE_FORMATS)}, got {image_format!r}")
    if exif not in EXIF_POLICIES:
        raise ValueError(f"exif: expected one of {', '.join(EXIF_POLICIES)}, got {exif!r}")


# --------------------------------------------------------------------------------------------- opening, and errors


@contextmanager
def _opened(path: str | PathLike, max_pixels: int | None) -> Iterator[Image.Image]:
    """An open image. Whatever goes wrong with it in the body of the ``with`` becomes a DataError too."""
    path = fspath(path)
    try:
        with PathManager.open(path, "rb") as file, _pixel_limit(max_pixels):
            try:
                with Image.open(file) as image:
                    _check_pixels(image, max_pixels)
                    yield image
            except UnidentifiedImageError as error:
                raise _unidentified(path, file) from error
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise _unreadable(path, error.strerror, cause="missing") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"Image {path} cannot be read: {error} If the file is right, raise max_pixels (in a config "
            f"dataloader.train.mapper.max_pixels), or shrink or cut the image."
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error, ...
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(
                f"Image {path} cannot be read: {error.strerror}. Expected a file that this process may read."
            ) from error
        raise _unreadable(path, f"it is cut off or damaged ({error})", cause="damaged") from error


@contextmanager
def _pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Pillow refuses images of more than twice its global limit, so that a greater limit means to lend it one."""
    if max_pixels is None:
        yield
        return
    with _limit_lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_pixels(image: Image.Image, max_pixels: int | None) -> None:
    pixels = image.size[0] * image.size[1]
    if max_pixels is not None and pixels > max_pixels:
        raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {max_pixels} pixels.")


def _unidentified(path: str, file: IO[bytes]) -> UnreadableImage:
    file.seek(0)
    begin = file.read(64).lstrip()
    if not begin:
        return _unreadable(path, "the file is empty", cause="empty")
    what = (
        "it is a web page or other text" if begin.startswith(b"<") else "it is damaged, or of no kind that Pillow knows"
    )
    return _unreadable(path, what, cause="no image")


def _unreadable(path: str, reason: str, *, cause: str) -> UnreadableImage:
    return UnreadableImage(f"Image {path} cannot be read: {reason}. Replace it, or leave it out.", cause=cause)


# --------------------------------------------------------------------------------------------------------------- pixels


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 if there is none. Needs the header only."""
    # In a PNG it may also stand behind the pixels, where Pillow would decode them to find it.
    if image.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & image.info.keys():
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data raises nearly anything, and says nothing about the pixels
        return 1
    return orientation if orientation in _TRANSPOSITIONS else 1


def _turned(image: Image.Image, orientation: int, *, already: bool, policy: str) -> Image.Image:
    """The loaded image as shown, or as stored. ``already``: Pillow turned it on loading, as it does TIFFs."""
    if policy == "ignore":
        orientation = _INVERSE.get(orientation, orientation) if already else 1
    elif already:
        orientation = 1
    return image.transpose(_TRANSPOSITIONS[orientation]) if orientation in _TRANSPOSITIONS else image


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height. Of a TIFF, ``image.size`` is the size as shown."""
    tags = getattr(image, "tag_v2", {})
    return (tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]) if _TIFF_WIDTH in tags else image.size


def _conversions(image: Image.Image) -> Conversion:
    found = Conversion.NONE
    if image.mode.startswith("I"):
        found |= Conversion.DEPTH
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        found |= Conversion.ALPHA
    if getattr(image, "is_animated", False):
        found |= Conversion.FRAMES
    return found


def _gray_bits(image: Image.Image, path: str) -> int | None:
    """9 to 16 for a gray image of so many bits, None for what Pillow converts. Raises DataError for all others."""
    if image.mode.startswith("I;16"):
        return getattr(image, "tag_v2", {}).get(_TIFF_BITS, (16,))[0]
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 16  # Pillow keeps them in 32 bits
    if image.mode in _NO_RANGE:
        raise DataError(
            f"Image {path}: expected pixels of 8 or 16 bits, got {_NO_RANGE[image.mode]}, of which nothing says what "
            f"is black and what is white. Scale them, and save the image with 8 or 16 bits."
        )
    return None


def _in_bands(image: Image.Image) -> np.ndarray:
    rows = max(1, _PIXELS_AT_ONCE // image.width)
    if image.height <= rows:
        return np.array(image.convert("RGB"))
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(band.convert("RGB"))
    return pixels


def _as_rgb(image: Image.Image, gray_bits: int | None, path: str) -> np.ndarray:
    if gray_bits is not None:
        greatest = 2**gray_bits - 1
        gray = np.rint(np.asarray(image).clip(0, greatest) * np.float32(255 / greatest)).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    try:
        return _in_bands(image)
    except ValueError as error:
        raise DataError(
            f"Image {path}: Pillow cannot turn pixels of the kind {image.mode!r} into RGB ({error}). Save it as RGB."
        ) from error
