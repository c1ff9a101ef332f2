"""The dataset to inspect, as the content of a COCO json, whatever it is given as."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from dinox.data.checks import coco_json_of, load_dataset
from dinox.data.class_numbering import own_class_names_of
from dinox.data.coco_json import check_sections, read_coco_json
from dinox.data.errors import DataError
from dinox.utils.suggest import did_you_mean

_IMAGE_FOLDERS = (".", "images", "../images")
"""Where images are looked for, seen from their json, unless it is said."""


@dataclass(frozen=True)
class DatasetSource:
    """name: as it was given. json_file: None for datasets of another kind. image_root: what file names are relative to;
    None: not known. coco: images, annotations and categories.
    """

    name: str
    json_file: str | None
    image_root: str | None
    coco: dict

    @property
    def title(self) -> str:
        """For messages."""
        return self.json_file or self.name

    def path(self, file_name: str) -> str:
        """Of an image; as the json has it where the image folder is not known."""
        return os.path.join(self.image_root or "", file_name)


def load_source(dataset: str | os.PathLike, *, image_root: str | os.PathLike | None = None) -> DatasetSource:
    """Read a dataset that is registered with detectron2, or a COCO json file.

    Args:
        dataset: a registered name, or the path of a json.
        image_root: the folder of its images; by default that of the registration, or for a file its own folder or
            ``images`` beside it, where the first image is.

    Raises DataError if there is no such dataset, or it cannot be read at all.
    """
    name = os.fspath(dataset)
    if name in DatasetCatalog.list():
        json_file, coco = _read_registered(name)
        image_root = MetadataCatalog.get(name).get("image_root") if image_root is None else image_root
    elif os.path.exists(name) or name.endswith(".json"):
        json_file, coco = name, read_coco_json(name)
    else:
        raise DataError(
            f"{name!r} is neither a registered dataset nor a file.{did_you_mean(name, DatasetCatalog.list())} "
            f"Give a COCO json, or the config that registers the dataset: --config-file CONFIG"
        )
    check_sections(coco, json_file or name, annotated=False)
    if image_root is None and json_file is not None:
        image_root = _find_images(Path(json_file), coco)
    root = None if image_root is None else os.fspath(image_root)
    return DatasetSource(name, json_file, root, coco)


def _read_registered(name: str) -> tuple[str | None, dict]:
    json_file = coco_json_of(name)
    if json_file is not None and not os.path.isfile(json_file):
        load_dataset(name)  # some are made when they are first asked for
    if json_file is not None:
        return json_file, read_coco_json(json_file)
    return None, _as_coco(load_dataset(name), own_class_names_of(name))


def _as_coco(dicts: list[dict], classes: list[str] | None) -> dict:
    """Dataset dicts in detectron2's format as the content of a json. Annotations are numbered from 1."""
    used = {annotation["category_id"] for record in dicts for annotation in record.get("annotations", ())}
    names = [f"class {index}" for index in range(max(used, default=0) + 1)] if classes is None else classes
    coco = {"images": [], "annotations": [], "categories": [{"id": i, "name": name} for i, name in enumerate(names)]}
    for position, record in enumerate(dicts):
        image = {"id": record.get("image_id", position), "file_name": os.fspath(record["file_name"])}
        coco["images"].append(image | {side: record[side] for side in ("height", "width") if side in record})
        for annotation in record.get("annotations", ()):
            x, y, width, height = map(float, annotation["bbox"])
            if annotation["bbox_mode"] == BoxMode.XYXY_ABS:
                width, height = width - x, height - y
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": int(annotation["category_id"]),
                    "bbox": [x, y, width, height],
                    "area": width * height if math.isfinite(width * height) else 0.0,
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                }
            )
    return coco


def _find_images(json_file: Path, coco: dict) -> str | None:
    names = (image.get("file_name") for image in coco["images"] if isinstance(image, dict))
    first = next((name for name in names if isinstance(name, str)), None)
    folders = [json_file.parent / folder for folder in _IMAGE_FOLDERS]
    return next((os.path.normpath(folder) for folder in folders if first and (folder / first).is_file()), None)
