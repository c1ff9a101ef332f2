"""From a dataset dict to a model's input."""

from collections.abc import Sequence

import detectron2.data.transforms as T
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from dinox.data.checks import check_annotations
from dinox.data.errors import DataError

IMAGE_FORMATS = ("RGB", "BGR")

_EXIF_ORIENTATION = 0x0112

_UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for files that are missing, truncated or no image, for damaged PNGs, and for too large ones."""


class DetectionMapper:
    """detectron2's ``DatasetMapper`` for detection, with errors that name the file.

    In: a dict with ``file_name``, and in training ``annotations``. Out: the same dict (another object) with

    * ``image``: uint8 tensor (3, H, W), 0..255, channels in the order of ``image_format``, after the augmentations;
    * in training ``instances``: ``gt_boxes`` (absolute x1, y1, x2, y2 inside of the augmented image) and
      ``gt_classes``. Crowds are left out, and so are boxes that have no area, as after a crop. It may be empty.

    ``height`` and ``width`` stay those of the image file: the size that detections are given in.

    Args:
        is_train: whether to make ``instances``.
        augmentations: of detectron2, applied in this order.
        image_format: "RGB" or "BGR".
        num_classes: if given, class indices are checked against it. Datasets loaded by ``load_dataset_dicts`` are
            checked there.

    Raises DataError for an image that cannot be read or has another size than its dict says, and for annotations with a
    class index or a box that cannot be right.
    """

    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str = "RGB",
        num_classes: int | None = None,
    ) -> None:
        if image_format not in IMAGE_FORMATS:
            raise ValueError(f"image_format: expected one of {', '.join(IMAGE_FORMATS)}, got {image_format!r}")
        self.is_train = is_train
        self.num_classes = num_classes
        self.mapper = DatasetMapper(is_train, augmentations=list(augmentations), image_format=image_format)

    def __call__(self, record: dict) -> dict:
        if self.is_train:
            check_annotations(record, num_classes=self.num_classes)
            record = {"annotations": [], **record}  # images of a dataset without annotations are background
        file_name = record["file_name"]
        try:
            return self.mapper(record)
        except SizeMismatchError as error:
            raise DataError(f"{file_name}: {_size_message(record, file_name)}") from error
        except _UNREADABLE as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(
                f"Image {file_name} cannot be read: {reason}. Replace it, or remove it from the dataset."
            ) from error


def _size_message(record: dict, file_name: str) -> str:
    with Image.open(file_name) as image:
        stored, orientation = image.size, image.getexif().get(_EXIF_ORIENTATION, 1)
    expected = f"expected the image to be {record.get('width')} x {record.get('height')} pixels, as its annotation says"
    if orientation != 1:
        return (
            f"{expected}, got {stored[0]} x {stored[1]} with the EXIF orientation {orientation}, which is applied on "
            f"reading. Annotate the image as it is shown, or remove the orientation from the file."
        )
    return f"{expected}, got {stored[0]} x {stored[1]}. Correct 'width' and 'height', or replace the image."
