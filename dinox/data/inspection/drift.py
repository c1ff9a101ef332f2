"""How a validation set differs from the training set."""

from dataclasses import dataclass

from dinox.data.inspection.source import DatasetSource
from dinox.data.inspection.statistics import ClassCount
from dinox.data.problems import Place, Problem, listed

SHARE_FACTOR = 2.0
"""How many times a class's share of the objects may differ before it is mentioned..."""

_LEAST_OBJECTS = 10
"""... and how many objects it has to have in one of the two."""


@dataclass(frozen=True)
class ClassDrift:
    """One class in both sets: its objects and its share of all objects, 0 to 1."""

    name: str
    train_objects: int
    val_objects: int
    train_share: float
    val_share: float

    @property
    def is_large(self) -> bool:
        low, high = sorted((self.train_share, self.val_share))
        return max(self.train_objects, self.val_objects) >= _LEAST_OBJECTS and high > SHARE_FACTOR * low


def compare_shares(train: tuple[ClassCount, ...], val: tuple[ClassCount, ...]) -> tuple[ClassDrift, ...]:
    """By name, in the order of the training set; classes that only one of them has are left out."""
    total, val_total = (max(sum(each.objects for each in classes), 1) for classes in (train, val))
    by_name = {each.name: each for each in val}
    return tuple(
        ClassDrift(
            each.name,
            each.objects,
            by_name[each.name].objects,
            each.objects / total,
            by_name[each.name].objects / val_total,
        )
        for each in train
        if each.name in by_name
    )


def find_drift(
    train: DatasetSource,
    val: DatasetSource,
    train_classes: tuple[ClassCount, ...],
    val_classes: tuple[ClassCount, ...],
) -> list[Problem]:
    """What is different; ids are those of the validation set."""
    return [
        *_names(train, train_classes, val_classes),
        *_shares(compare_shares(train_classes, val_classes)),
        *_shared_images(train, val),
    ]


def _names(source: DatasetSource, train: tuple[ClassCount, ...], val: tuple[ClassCount, ...]) -> list[Problem]:
    names, val_names = [each.name for each in train], [each.name for each in val]
    if names == val_names:
        return []
    if sorted(names) != sorted(val_names):
        places = [Place(each.category_id, f"{each.name!r} only here") for each in val if each.name not in names]
        places += [Place(name, f"{name!r} only in {source.title}") for name in names if name not in val_names]
        details = listed((place.detail for place in places), total=len(places))
        text = f"other classes than {source.title}: {details or 'one of them several times'}"
        cure = "Give the 'categories' of both files the same names."
        return [Problem("other-classes", "error", "category", text, tuple(places) or (Place("all"),), cure)]
    index = {name: i for i, name in enumerate(names)}
    places = [
        Place(each.category_id, f"{each.name!r}: class {each.index} here, {index[each.name]} in {source.title}")
        for each in val
        if index[each.name] != each.index
    ]
    text = f"the same classes in another order than {source.title}: {places[0].detail}"
    cure = "dinox matches them by name (dataloader.test.dataset.numbered_like); other programs may not."
    return [Problem("class-order", "note", "category", text, tuple(places), cure)]


def _shares(shares: tuple[ClassDrift, ...]) -> list[Problem]:
    places = tuple(
        Place(each.name, f"{each.train_share:.1%} of the objects in training, {each.val_share:.1%} here")
        for each in shares
        if each.is_large
    )
    if not places:
        return []
    text = f"classes whose share of the objects differs by more than {SHARE_FACTOR:g} times"
    cure = "The metrics then say little about the training data: draw both from the same images."
    return [Problem("class-share", "note", "category", text, places, cure)]


def _shared_images(train: DatasetSource, val: DatasetSource) -> list[Problem]:
    def paths(source: DatasetSource) -> dict[str, object]:
        entries = (image for image in source.coco["images"] if isinstance(image, dict))
        return {source.path(i["file_name"]): i.get("id") for i in entries if isinstance(i.get("file_name"), str)}

    if train.image_root is None or val.image_root is None:
        return []
    trained = paths(train)
    places = tuple(Place(i, f"{path} is trained on", path) for path, i in paths(val).items() if path in trained)
    if not places:
        return []
    text, cure = "images that are in the training set too", "Remove them from one of the two, or the metrics flatter."
    return [Problem("trained-image", "note", "image", text, places, cure)]
