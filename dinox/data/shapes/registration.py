"""The embedded dataset "shapes" in detectron2's catalogs."""

import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from dinox.data.shapes.files import (
    ANNOTATIONS_FILE,
    CATEGORY_IDS,
    DEFAULT_SIZE,
    IMAGES_FOLDER,
    ShapesSpec,
    ensure_dataset,
)

DEFAULT_DATASETS = {
    "dinox_shapes_train": ShapesSpec(seed=1, num_images=2000),
    "dinox_shapes_val": ShapesSpec(seed=2, num_images=300),
}


def register_shapes(
    name: str, *, seed: int, num_images: int, size: int = DEFAULT_SIZE, root: str | os.PathLike | None = None
) -> None:
    """Register a "shapes" dataset with detectron2 under ``name``.

    Registering touches no file. The first ``DatasetCatalog.get(name)`` writes the dataset to ``<root>/dinox_shapes/``,
    in a folder of its own for each seed, number of images, size and version of the generator, unless it is there.

    Args:
        seed: of everything random. Datasets of different seeds have no image in common.
        num_images: number of images. Of two datasets of one seed and size, the smaller is the beginning of the larger.
        size: height and width of the images in pixels (>= 96).
        root: the folder of all datasets; by default ``$DETECTRON2_DATASETS``, else ``datasets``, as in detectron2.

    Masks are run-length encoded: a mapper that reads them needs ``mask_format="bitmask"``.

    Raises ValueError if ``name`` is already registered for another dataset, or an argument is out of range.
    """
    spec = ShapesSpec(seed=seed, num_images=num_images, size=size)
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets") if root is None else root).expanduser()
    folder = root / "dinox_shapes" / spec.folder_name
    json_file = str(folder / ANNOTATIONS_FILE)
    if name in DatasetCatalog.list():
        registered = MetadataCatalog.get(name).get("json_file")
        if registered != json_file:
            raise ValueError(
                f"dataset name {name!r} is already registered for {registered}, got {json_file}: choose another name"
            )
        return
    DatasetCatalog.register(name, lambda: _load(name, spec, folder))
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=str(folder / IMAGES_FOLDER),
        evaluator_type="coco",
        thing_classes=list(CATEGORY_IDS),
        thing_dataset_id_to_contiguous_id={
            category_id: index for index, category_id in enumerate(CATEGORY_IDS.values())
        },
    )


def register_default_shapes() -> None:
    """Register ``dinox_shapes_train`` and ``dinox_shapes_val``."""
    for name, spec in DEFAULT_DATASETS.items():
        register_shapes(name, seed=spec.seed, num_images=spec.num_images, size=spec.size)


def _load(name: str, spec: ShapesSpec, folder: Path) -> list[dict]:
    ensure_dataset(spec, folder)
    return load_coco_json(str(folder / ANNOTATIONS_FILE), str(folder / IMAGES_FOLDER), name)
