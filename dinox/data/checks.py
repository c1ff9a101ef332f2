"""Checks of datasets before training and evaluation: are they there, readable, and made for this model?"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from dinox.data.boxes import box_fault, box_format_fault
from dinox.data.class_numbering import class_names_of, number_of_classes, own_class_names_of
from dinox.data.coco_json import DEFAULT_MAX_BAD_BOXES, check_coco_json, class_names, dataset_root_hint, read_coco_json
from dinox.data.coco_problems import is_whole
from dinox.data.errors import DataError
from dinox.data.image_paths import ALLOW_KEY, first_outside, root_name
from dinox.data.masks import masks_missing
from dinox.data.problems import listed
from dinox.data.training_checks import asks_for_masks, check_parts
from dinox.utils.suggest import did_you_mean

_ORDER_CURE = {True: "", False: " and in the same order of ids, or set dataloader.test.dataset.numbered_like"}

_BOX_MODES = (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)


def check_data(cfg: DictConfig, *, training: bool = True) -> None:
    """Check everything about the data of a LazyConfig that can be known before the first step.

    The datasets are registered, their files are there and well formed, their classes are the same, and as many as
    ``cfg.model.num_classes``; the mappers read images in the format ``cfg.model.input_format``. It reads each json, so
    that one process of several is enough.

    Args:
        cfg: with ``dataloader.test`` and, in training, ``dataloader.train``; either may be missing.
        training: False checks the test datasets only.

    Raises DataError.
    """
    num_classes = number_of_classes(cfg)
    check_image_formats(cfg)
    if training:
        check_parts(cfg, num_classes=num_classes)
    loaders = {split: cfg.dataloader.get(split) for split in (("train", "test") if training else ("test",))}
    names = {split: dataset_names(loader) for split, loader in loaders.items()}
    for split, loader in loaders.items():
        for name in names[split]:
            check_dataset(
                name,
                annotated=split == "train",
                evaluated=split == "test",
                num_classes=num_classes,
                max_bad_boxes=_setting(loader, "max_bad_boxes", DEFAULT_MAX_BAD_BOXES),
                allow_outside_image_root=_setting(loader, ALLOW_KEY, False),
                masked=split == "train" and asks_for_masks(loader),
            )
    train, test = names.get("train", []), names["test"]
    check_same_classes(train)
    check_same_classes([*train[:1], *test], any_order=_setting(loaders["test"], "numbered_like", None) is not None)
    if num_classes is not None:
        check_num_classes(num_classes, [*train, *test])


def _setting(loader: DictConfig | None, argument: str, default: Any) -> Any:
    """An argument of the loader's ``load_dataset_dicts``."""
    value = None if loader is None else OmegaConf.select(loader, f"dataset.{argument}")
    return default if value is None else value


def dataset_names(loader: DictConfig | None) -> list[str]:
    """The dataset names of ``dataloader.train`` or ``dataloader.test``; none if it is missing or made otherwise."""
    names = None if loader is None else OmegaConf.select(loader, "dataset.names")
    if names is None:
        return []
    return list(names) if isinstance(names, (list, tuple, ListConfig)) else [names]


def check_image_formats(cfg: DictConfig) -> None:
    """Check that the mappers of a LazyConfig read what its model takes. Raises DataError with the keys and values."""
    expected = OmegaConf.select(cfg, "model.input_format")
    for split in ("train", "test"):
        key = f"dataloader.{split}.mapper.image_format"
        found = OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
        if expected is not None and found is not None and found != expected:
            raise DataError(
                f"{key} is {found!r}, but model.input_format is {expected!r}. Set both to the order of the channels "
                f"that the initial weights, pixel_mean and pixel_std are made for."
            )


def check_dataset(
    name: str,
    *,
    annotated: bool = True,
    evaluated: bool = False,
    num_classes: int | None = None,
    max_bad_boxes: float = DEFAULT_MAX_BAD_BOXES,
    allow_outside_image_root: bool = False,
    masked: bool = False,
) -> None:
    """Check one registered dataset: its json and image folder or, without a COCO json, its dicts.

    ``num_classes``: the model's, for datasets that do not name their classes; the others are those of
    ``check_coco_json``. Raises DataError.
    """
    check_registered(name)
    metadata = MetadataCatalog.get(name)
    json_file = coco_json_of(name)
    if json_file is None or not os.path.isfile(json_file):
        # Datasets may be made when they are first asked for. If this is none of them, it says that the file is missing.
        dicts = load_dataset(name, num_classes=num_classes)
        if masked and (fault := masks_missing([each for record in dicts for each in record.get("annotations", ())])):
            raise DataError(f"Dataset {name!r}: {fault}")
        return
    classes = _check_json(
        name,
        json_file,
        annotated=annotated,
        evaluated=evaluated,
        max_bad_boxes=max_bad_boxes,
        allow_outside_image_root=allow_outside_image_root,
        masked=masked,
    )
    if metadata.get("thing_classes") is None:
        # As detectron2 does on loading; known earlier, so that they can be compared with other datasets and the model.
        metadata.thing_classes = classes
    registered = metadata.thing_classes if own_class_names_of(name) == class_names_of(name) else classes
    if registered != classes:  # for detectron2 a tuple is another value than a list
        raise DataError(
            f"Dataset {name!r}: registered with the {type(registered).__name__} of classes {_listed(registered)}, "
            f"but {json_file} has the list {_listed(classes)}. "
            f"Leave 'thing_classes' out of the registration: they are read from the file."
        )


def check_image_paths(name: str, dicts: Sequence[dict]) -> None:
    """Check that the images of a registered json lie in its image folder. Raises DataError with image id and path.

    Datasets that name no json and no image folder make their paths themselves, and are not checked.
    """
    metadata = MetadataCatalog.get(name)
    image_root = metadata.get("image_root")
    if image_root is None or metadata.get("json_file") is None:
        return
    position = first_outside([os.fspath(record["file_name"]) for record in dicts], image_root)
    if position is not None:
        record = dicts[position]
        raise DataError(
            f"Dataset {name!r}: image {record.get('image_id')}: its path {record['file_name']} leads out of the image "
            f"folder {root_name(image_root)}. If such files are meant to be read, allow it: {ALLOW_KEY}=True in the "
            f"config's dataloader.train.dataset or dataloader.test.dataset."
        )


def check_registered(name: str) -> None:
    """Raises DataError with the nearest names if there is no such dataset."""
    registered = DatasetCatalog.list()
    if name not in registered:
        raise DataError(
            f"Dataset {name!r} is not registered.{did_you_mean(name, registered)} "
            f"Register your own with dinox.data.register_coco(name, json_file, image_root)."
        )


def load_dataset(name: str, *, num_classes: int | None = None) -> list[dict]:
    """The dicts of a registered dataset, in detectron2's format, checked.

    Class indices are checked against the dataset's classes, or ``num_classes`` if it does not name them. Boxes that can
    be no object are still there (see ``leave_out_bad_boxes``). The json is parsed once when it is good. When it is not,
    it is read again to find the annotation at fault. Raises DataError.
    """
    check_registered(name)
    try:
        dicts = DatasetCatalog.get(name)
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "lvis":
            raise DataError(f"Dataset {name!r} is read by the package lvis: pip install 'dinox[lvis]'") from error
        explain_by_json(name)
        raise DataError(f"Dataset {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if len(dicts) == 0:
        raise DataError(f"Dataset {name!r} is empty: expected at least one image.")
    classes = class_names_of(name)
    if classes is not None:
        num_classes = len(classes)
    if not annotations_are_valid(dicts, num_classes=num_classes):
        explain_by_json(name)  # it knows the annotations' ids
        _check_each(name, dicts, num_classes)
    return dicts


def known_classes(name: str) -> list[str] | None:
    """The classes of a dataset in the order of their numbers, from its json if it was not loaded yet.

    None if it is not registered, names none, or its file is missing.
    """
    if name not in DatasetCatalog.list():
        return None
    json_file = coco_json_of(name)
    if class_names_of(name) is None and json_file is not None and os.path.isfile(json_file):
        return class_names(read_coco_json(json_file))
    return class_names_of(name)


def check_same_classes(names: Sequence[str], *, any_order: bool = True) -> None:
    """Check that all datasets have the same classes. Raises DataError naming two that differ.

    Datasets whose classes are not known (not loaded yet, or without metadata) are left out. ``any_order``: they are
    matched by name.
    """
    known = [(name, class_names_of(name)) for name in names]
    known = [(name, classes) for name, classes in known if classes is not None]
    for name, classes in known[1:]:
        first_name, first = known[0]
        if classes == first or (any_order and sorted(classes) == sorted(first) and len(set(first)) == len(first)):
            continue
        if sorted(classes) == sorted(first):
            at = next(i for i, (a, b) in enumerate(zip(first, classes)) if a != b)
            difference = f"in another order: class {at} is {first[at]!r} in the one and {classes[at]!r} in the other"
        else:
            only_first = _listed(c for c in first if c not in classes)
            only_other = _listed(c for c in classes if c not in first)
            difference = f"only in {first_name!r}: {only_first}; only in {name!r}: {only_other}"
        raise DataError(
            f"Datasets {first_name!r} and {name!r} have different classes ({difference}). A model numbers its classes "
            f"once: give the 'categories' of both files the same names, each once{_ORDER_CURE[any_order]}."
        )


def check_num_classes(num_classes: int, names: Sequence[str], *, key: str = "model.num_classes") -> None:
    """Check the model's number of classes against that of the datasets. Raises DataError with both, and the override.

    Datasets whose classes are not known are left out. ``key``: the config key that holds the number.
    """
    for name in names:
        classes = class_names_of(name)
        if classes is not None and len(classes) != num_classes:
            raise DataError(
                f"{key} is {num_classes}, but dataset {name!r} has {len(classes)} classes ({_listed(classes)}). "
                f"Set {key}={len(classes)}"
            )


def check_annotations(record: dict, *, num_classes: int | None = None) -> None:
    """Check class indices and boxes of one image in detectron2's format. Raises DataError naming file and annotation.

    ``category_id`` is an index from 0 here; None leaves its upper bound unchecked.
    """
    for index, annotation in enumerate(record.get("annotations", ())):
        fault = _annotation_fault(annotation, num_classes, box_fault)
        if fault:
            raise DataError(f"{_record_name(record)}, annotation {index}: {fault}")


def annotations_are_valid(dicts: Sequence[dict], *, num_classes: int | None = None) -> bool:
    """A fast yes for what nearly all datasets are: each annotation has a class index and 4 numbers. A no means: look at
    each."""
    annotations = [annotation for record in dicts for annotation in record.get("annotations", ())]
    if not annotations:
        return True
    try:
        boxes = np.array([annotation["bbox"] for annotation in annotations])
        classes = np.array([annotation["category_id"] for annotation in annotations])
        modes = {annotation["bbox_mode"] for annotation in annotations}
    except (KeyError, TypeError, ValueError):
        return False
    if not modes <= set(_BOX_MODES) or boxes.shape != (len(annotations), 4):
        return False
    if boxes.dtype.kind not in "iuf" or classes.dtype.kind != "i":
        return False
    return bool(classes.min() >= 0 and (num_classes is None or classes.max() < num_classes))


# -------------------------------------------------------------------------------------------------------------- helpers


def coco_json_of(name: str) -> str | None:
    """The file of a registered dataset in COCO's format; None for any other, LVIS for instance."""
    metadata = MetadataCatalog.get(name)
    return metadata.get("json_file") if metadata.get("evaluator_type") == "coco" else None


def explain_by_json(name: str, *, max_bad_boxes: float = 1.0) -> None:
    """Raise DataError if the json of a dataset, where it has one, explains why the dataset cannot be used."""
    json_file = coco_json_of(name)
    if json_file is not None:
        _check_json(name, json_file, annotated=False, max_bad_boxes=max_bad_boxes, allow_outside_image_root=True)


def _check_json(name: str, json_file: str, **options: Any) -> list[str]:
    try:
        return check_coco_json(json_file, MetadataCatalog.get(name).get("image_root"), **options)
    except DataError as error:
        hint = "" if os.path.isfile(json_file) else f" {dataset_root_hint()}"
        raise DataError(f"Dataset {name!r}: {error}{hint}") from error


def _check_each(name: str, dicts: Sequence[dict], num_classes: int | None) -> None:
    for record in dicts:
        for index, annotation in enumerate(record.get("annotations", ())):
            fault = _annotation_fault(annotation, num_classes, box_format_fault)
            if fault:
                raise DataError(f"Dataset {name!r}: {_record_name(record)}, annotation {index}: {fault}")


def _annotation_fault(annotation: dict, num_classes: int | None, fault_of_box: Callable) -> str | None:
    category = annotation.get("category_id")
    if not is_whole(category) or category < 0 or (num_classes is not None and category >= num_classes):
        allowed = "a class index from 0" + (f" to {num_classes - 1}" if num_classes is not None else "")
        cure = "Map the ids of your categories to 0, 1, 2, ..., and set model.num_classes to their number."
        return f"'category_id': expected {allowed}, got {category!r}. {cure}"
    box, mode = annotation.get("bbox"), annotation.get("bbox_mode")
    if mode not in _BOX_MODES:
        return (
            f"'bbox_mode': expected BoxMode.XYWH_ABS or BoxMode.XYXY_ABS, got {mode!r}. Set it to what the boxes are."
        )
    fault = fault_of_box(box, corners=mode == BoxMode.XYXY_ABS)
    if fault:
        expected, got, cure = fault
        return f"'bbox': expected {expected}, got {got}. {cure}"
    return None


def _record_name(record: dict) -> str:
    return str(record.get("file_name") or f"image {record.get('image_id')}")


def _listed(names: Iterable[Any]) -> str:
    names = list(names)
    return listed(names, total=len(names)) or "none"
