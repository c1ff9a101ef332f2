"""A small COCO dataset of one's own with a config that registers it, for tests to spoil."""

import json
from pathlib import Path

from tests.cli.conftest import TINY_CONFIG
from tests.data.coco_files import annotation, write_image

HEIGHT, WIDTH = 48, 64
BAD = 5
"""The number of the image that tests spoil. The first is the one that training looks at before it begins."""

_CONFIG = """
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from dinox.config import load_file

for name in ("train", "val"):
    if "own_" + name not in DatasetCatalog.list():  # a test may run it twice
        register_coco_instances("own_" + name, {{}}, "{folder}/" + name + ".json", "{folder}/" + name)

base = load_file({base!r})
model, dataloader, train, optimizer = base.model, base.dataloader, base.train, base.optimizer
lr_multiplier, schedule = base.lr_multiplier, base.schedule
del base

dataloader.train.dataset.names = "own_train"
dataloader.test.dataset.names = "own_val"
model.num_classes = 2
train.max_iter = 4
"""


def write_dataset(folder: Path, *, num_images: int = 8, suffix: str = "png", base: str = TINY_CONFIG) -> Path:
    """Write ``train`` and ``val``, each of so many images with an object each; return the config, in ``folder``."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        images = [
            {"id": 100 + i, "file_name": f"{i}.{suffix}", "height": HEIGHT, "width": WIDTH} for i in range(num_images)
        ]
        for image in images:
            write_image(folder / split / image["file_name"], height=HEIGHT, width=WIDTH)
        objects = [
            annotation(id=i + 1, image_id=100 + i, category_id=1, bbox=[4, 6, 20, 10]) for i in range(num_images)
        ]
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"images": images, "annotations": objects, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    config = folder / "own.py"
    config.write_text(_CONFIG.format(folder=folder, base=base))
    return config


def change_json(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
