"""What is no mistake in a dataset, but good to know before training."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dinox.data.inspection.limits import ModelLimits
from dinox.data.inspection.statistics import ObjectTable
from dinox.data.problems import Place, Problem, listed


def find_notes(coco: dict, table: ObjectTable, limits: ModelLimits) -> list[Problem]:
    return [
        *_category_ids(coco, table),
        *_repeated_names(table),
        *_unused_classes(table),
        *_images_without_objects(table),
        *_repeated_files(coco),
        *_annotation_notes(coco, table),
        *_crowded_images(table, limits),
    ]


def _category_ids(coco: dict, table: ObjectTable) -> Iterator[Problem]:
    """Ids that are not 1, 2, 3, ... are fine, but indices in results are not ids."""
    ids = [c["id"] for c in coco["categories"] if isinstance(c, dict) and isinstance(c.get("id"), (int, float))]
    faults = []
    if ids and min(ids) != 1:
        faults.append(f"begin with {min(ids):g}")
    if ids and max(ids) - min(ids) + 1 > len(set(ids)):
        faults.append("have gaps")
    if ids != sorted(ids):
        faults.append("are not in order")
    if not faults:
        return
    places = tuple(Place(i, f"class index {index}") for index, i in enumerate(table.category_ids))
    mapping = listed((f"{i} -> {index}" for index, i in enumerate(table.category_ids)), total=len(places))
    text = f"category ids {', '.join(faults)}; the order of ids gives the class index: {mapping}"
    yield Problem(
        "category-ids", "note", "category", text, places, "Nothing to do: predictions are written with the ids."
    )


def _repeated_names(table: ObjectTable) -> Iterator[Problem]:
    counts = Counter(table.category_names.values())
    places = [Place(i, f"name {name!r}") for i, name in table.category_names.items() if counts[name] > 1]
    cure = "If they are one class, give their annotations one id: the model tells them apart, or tries to."
    yield from _note("repeated-class-name", "category", places, "several categories of one name", cure)


def _unused_classes(table: ObjectTable) -> Iterator[Problem]:
    places = [
        Place(i, f"no object of {table.category_names[i]!r}")
        for i, objects in zip(table.category_ids, table.objects_per_class)
        if objects == 0
    ]
    cure = "Remove the categories if they are not meant to be found."
    yield from _note("unused-class", "category", places, "categories without objects", cure)


def _images_without_objects(table: ObjectTable) -> Iterator[Problem]:
    empty = table.objects_per_image == 0
    bare = [Place(table.image_ids[i]) for i in np.flatnonzero(empty & (table.annotations_per_image == 0))]
    crowds = [Place(table.image_ids[i]) for i in np.flatnonzero(empty & (table.annotations_per_image > 0))]
    cure = "Training leaves them out, unless dataloader.train.dataset.filter_empty=False."
    yield from _note("image-without-annotations", "image", bare, "images without annotations", cure)
    yield from _note("image-without-objects", "image", crowds, "images with crowds or left-out boxes only", cure)


def _repeated_files(coco: dict) -> Iterator[Problem]:
    names = [(image.get("id"), image.get("file_name")) for image in coco["images"] if isinstance(image, dict)]
    counts = Counter(name for _, name in names if isinstance(name, str))
    if len(counts) == len(names):
        return
    places = [Place(i, f"{name} is there {counts[name]} times", name) for i, name in names if counts.get(name, 0) > 1]
    cure = "Join their annotations: each image now misses those of the others."
    yield from _note("repeated-file", "image", places, "images that share a file", cure)


def _annotation_notes(coco: dict, table: ObjectTable) -> Iterator[Problem]:
    annotations = coco["annotations"]

    def places(positions: Sequence[int]) -> list[Place]:
        entries = (annotations[table.rows[position]] for position in positions)
        return [Place(entry.get("id"), f"'bbox': {entry['bbox']}, image {entry['image_id']}") for entry in entries]

    outside = places(np.flatnonzero(table.partly_outside()))
    cure = "Training cuts them off at the edge. Many of them hint at boxes of another image size."
    yield from _note("cut-box", "annotation", outside, "boxes that stick out of their image", cure)
    crowds = places(np.flatnonzero(table.crowd))
    cure = "They are no objects to train on; evaluation ignores detections inside of them."
    yield from _note("crowd", "annotation", crowds, "crowd regions (iscrowd=1)", cure)
    zero = [Place(0, "'id': 0")] if any(isinstance(a, dict) and a.get("id") == 0 for a in annotations) else []
    cure = "pycocotools takes it for no match: a detection of it counts as wrong. dinox check-data --fix renumbers it."
    yield from _note("annotation-id-0", "annotation", zero, "an annotation with the id 0", cure)


def _crowded_images(table: ObjectTable, limits: ModelLimits) -> Iterator[Problem]:
    def places(limit: int | None) -> list[Place]:
        found = [] if limit is None else np.flatnonzero(table.objects_per_image > limit)
        return [Place(table.image_ids[i], f"{table.objects_per_image[i]} objects") for i in found]

    text = f"images with more objects than queries ({limits.num_queries})"
    cure = "So many objects cannot be found at once: raise model.num_queries, or cut the images."
    yield from _note("more-objects-than-queries", "image", places(limits.num_queries), text, cure)
    text = f"images with more objects than denoising has room for ({limits.denoising_objects})"
    cure = "Denoising trains on a random choice of them. Its cap: model.query_groups.denoising.max_queries."
    yield from _note("more-objects-than-denoising", "image", places(limits.denoising_objects), text, cure)
    text = f"images with more objects than detections are kept ({limits.num_detections})"
    cure = "Raise num_detections in model.postprocess. (COCO's metrics count 100 per image.)"
    yield from _note("more-objects-than-detections", "image", places(limits.num_detections), text, cure)


def _note(kind: str, where: str, places: Sequence[Any], text: str, cure: str) -> Iterator[Problem]:
    if places:
        yield Problem(kind, "note", where, text, tuple(places), cure)
