"""README's section "From detrex", command by command, on a small model and a few images.

Substitutions: ``dino_r50_4scale_12ep.pth`` is a small DINO in detrex's format, ``street.jpg`` a picture of noise. A
command with a ``--config-file`` gets the settings of the small model too, and a dataset of two images with COCO's
categories instead of COCO.
"""

import json

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from dinox.checkpoint import convert
from dinox.config import load_config
from tests.cli.readme import commands_under, readme_commands
from tests.small_models import DINO, SMALL, randomise_heads

DETREX = [
    "model.heads.shared=False",
    "model.memory_builder.position_embedding.temperature=10000",
    "model.memory_builder.position_embedding.offset=-0.5",
]
SIZE = (96, 128)


def write_photo(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)


def write_coco(folder):
    """Two images with an object each, of the first and of the last category."""
    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    images, annotations = [], []
    for i, category in enumerate((categories[0], categories[-1]), start=1):
        write_photo(folder / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]})
        box = {"bbox": [10, 20, 30, 40], "area": 1200, "iscrowd": 0}
        annotations.append({"id": i, "image_id": i, "category_id": category["id"]} | box)
    data = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "val.json").write_text(json.dumps(data))


@pytest.fixture
def workplace(tmp_path, monkeypatch, forget_datasets):
    """A folder with what the commands read; the settings that make a config's model and data small."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = randomise_heads(instantiate(load_config(DINO, [*SMALL, *DETREX]).model))
    weights = convert(model.state_dict(), "dinox", "detrex")
    torch.save({"model": weights, "iteration": 89999}, "dino_r50_4scale_12ep.pth")
    write_photo("street.jpg")
    write_coco(tmp_path)
    register_coco_instances("from_detrex_val", {}, "val.json", str(tmp_path))
    data = [f"dataloader.{kind}.dataset.names=from_detrex_val" for kind in ("train", "test")]
    data += ["dataloader.test.mapper.augmentations.short_edge=96", "dataloader.test.num_workers=0"]
    return tmp_path, [*SMALL, *data]


def test_the_commands_in_the_readme(dinox, workplace):
    folder, settings = workplace
    commands = readme_commands("From detrex")
    assert {command[1] for command in commands} >= {"convert", "predict", "eval"}
    for command in commands:
        code, out, err = dinox(*command[1:], *(settings if "--config-file" in command else []))
        assert code == 0, (command, out, err)
    theirs, back = (torch.load(folder / command[i])["model"] for command, i in ((commands[0], 2), (commands[-1], 3)))
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.items())


README = """
# dinox
## Other
```
dinox demo
```
## From detrex
```
dinox convert a.pth b.pth \\
    --config-file "x y"
# a remark
make test
```
### Details
```python
dinox = 1
```
```
dinox predict b.jpg
```
## Next
```
dinox train
```
"""


def test_commands_are_those_of_the_section():
    assert commands_under("From detrex", README) == [
        ["dinox", "convert", "a.pth", "b.pth", "--config-file", "x y"],
        ["dinox", "predict", "b.jpg"],
    ]
    assert commands_under("Nowhere", README) == []
