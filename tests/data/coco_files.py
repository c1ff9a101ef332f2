"""Small COCO datasets on disk for the tests of `dinox.data`."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def small_coco() -> dict:
    """Two images of 64 x 48 pixels, two classes with a gap in their ids, three boxes; the second image has a crowd."""
    return {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 48, "width": 64},
            {"id": 2, "file_name": "b.jpg", "height": 48, "width": 64},
        ],
        "annotations": [
            annotation(id=11, image_id=1, category_id=3, bbox=[4, 6, 20, 10]),
            annotation(id=12, image_id=1, category_id=7, bbox=[30, 20, 16.5, 20]),
            annotation(id=13, image_id=2, category_id=7, bbox=[0, 0, 64, 48], iscrowd=1),
        ],
    }


def annotation(**fields) -> dict:
    return {"iscrowd": 0, "area": 1.0, **fields}


def write_image(path: Path, *, height: int = 48, width: int = 64) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_coco(folder: Path, coco: dict, *, images: bool = True) -> Path:
    """Write `images/` and `annotations.json` below `folder`; return the json."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    if images:
        for image in coco["images"]:
            write_image(folder / "images" / image["file_name"], height=image["height"], width=image["width"])
    file = folder / "annotations.json"
    file.write_text(json.dumps(coco))
    return file
