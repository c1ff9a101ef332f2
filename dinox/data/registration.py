"""Registering COCO datasets with detectron2."""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from dinox.data.errors import DataError


def register_coco(name: str, json_file: str | os.PathLike, image_root: str | os.PathLike) -> None:
    """detectron2's ``register_coco_instances``, which may be called again with the same arguments.

    So a config that registers its datasets can be loaded more than once in a process. Versions of detectron2 differ in
    what they do with a name that is taken: an error, or nothing, which would train on the other json.

    Args:
        json_file: annotations in COCO's format. Not read before the dataset is used.
        image_root: the folder that its file names are relative to.

    Raises DataError if the name stands for another dataset.
    """
    wanted = (os.fspath(json_file), os.fspath(image_root))
    if name not in DatasetCatalog.list():
        register_coco_instances(name, {}, *wanted)
        return
    metadata = MetadataCatalog.get(name)
    registered = (metadata.get("json_file"), metadata.get("image_root"))
    if registered != wanted:
        raise DataError(
            f"Dataset {name!r} is already registered, for {registered[0]} with images in {registered[1]}; got "
            f"{wanted[0]} with images in {wanted[1]}. Choose another name."
        )
