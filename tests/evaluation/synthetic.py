"""A registered dataset of random boxes, and detections of it: some near the objects, some anywhere."""

import json
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

NAME = "dinox_synthetic"
CATEGORY_IDS = (2, 3, 7, 11)
SIZE = (240, 320)  # height, width


def register(folder: Path, *, num_images: int = 12, objects_per_image: int = 6, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    objects = []
    for image_id in range(num_images):
        for box in _boxes(rng, objects_per_image):
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": 10 * image_id + 5,
                    "category_id": int(rng.choice(CATEGORY_IDS)),
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3]),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    content = {
        "images": [
            {"id": 10 * i + 5, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(num_images)
        ],
        "annotations": objects,
        "categories": [{"id": c, "name": f"kind {c}"} for c in CATEGORY_IDS],
    }
    (folder / "synthetic.json").write_text(json.dumps(content))
    register_coco_instances(NAME, {}, str(folder / "synthetic.json"), str(folder))
    DatasetCatalog.get(NAME)


def unregister() -> None:
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def detections(folder: Path, *, per_image: int = 30, seed: int = 1) -> list[tuple[dict, dict]]:
    """(input, output) of each image; an image without detections is among them, and scores that are equal."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    content = json.loads((folder / "synthetic.json").read_text())
    pairs = []
    for number, image in enumerate(content["images"]):
        true = [o for o in content["annotations"] if o["image_id"] == image["id"]]
        near = np.array([o["bbox"] for o in true]) + rng.normal(0, 4, (len(true), 4))
        boxes = np.concatenate([near, _boxes(rng, per_image - len(true))])
        classes = [CATEGORY_IDS.index(o["category_id"]) for o in true]
        classes += rng.integers(len(CATEGORY_IDS), size=per_image - len(true)).tolist()
        boxes[:, 2:] = boxes[:, :2] + np.maximum(boxes[:, 2:], 1)
        found = Instances(
            SIZE,
            pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
            scores=(torch.rand(per_image, generator=generator) * 50).round() / 50,
            pred_classes=torch.tensor(classes),
        )
        pairs.append(({"image_id": image["id"]}, {"instances": found[: 0 if number == 3 else None]}))
    return pairs


def process(evaluator, pairs):
    """The evaluator, which has seen what ``detections`` gives."""
    evaluator.reset()
    for x, output in pairs:
        evaluator.process([x], [output])
    return evaluator


def same(first: dict, second: dict) -> bool:
    """To the last bit; NaN is NaN."""
    return first.keys() == second.keys() and all(str(first[name]) == str(second[name]) for name in first)


def _boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """x, y, width, height, of all of COCO's three sizes."""
    sizes = np.exp(rng.uniform(np.log(8), np.log(150), (number, 2)))
    return np.concatenate([rng.uniform(0, 1, (number, 2)) * (np.array(SIZE[::-1]) - sizes), sizes], 1).round(1)
