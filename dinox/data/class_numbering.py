"""One numbering of classes for several datasets.

detectron2 numbers a dataset's classes by the order of their ids in its json. Two files with the same classes in another
order would train and evaluate different things under one number. Here the classes of one are matched to those of the
other by name.
"""

import logging
from collections.abc import Callable, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from dinox.data.errors import DataError
from dinox.data.problems import listed

logger = logging.getLogger(__name__)


def class_names_of(name: str) -> list[str] | None:
    """The classes of a registered dataset in the order of their numbers; None if they are not known yet."""
    classes = MetadataCatalog.get(name).get("thing_classes")
    return None if classes is None else list(classes)


def own_class_names_of(name: str) -> list[str] | None:
    """As ``class_names_of``, in the order of the dataset's file, whatever ``number_alike`` did."""
    load = DatasetCatalog[name] if name in DatasetCatalog.list() else None
    return load.own_classes if isinstance(load, _Renumbered) else class_names_of(name)


def number_alike(name: str, dicts: list[dict], classes: Sequence[str]) -> list[dict]:
    """Number the classes of a registered dataset as in ``classes``, from now on and everywhere in this process.

    ``dicts``: what ``DatasetCatalog.get(name)`` gave. Returns them with the new numbers; they are not changed. Its
    catalog entries are replaced, so that evaluators and drawings use the same numbers.

    Raises DataError if the names are not the same.
    """
    own, classes = class_names_of(name), list(classes)
    if own is None or own == classes:
        return dicts
    if sorted(own) != sorted(classes) or len(set(own)) < len(own):
        raise DataError(
            f"Dataset {name!r}: its classes {listed(own, total=len(own))} cannot be matched by name to "
            f"{listed(classes, total=len(classes))}. Give the 'categories' of all files the same names, each once."
        )
    logger.warning(
        "Dataset %s has its classes in another order; they are matched by name and numbered %s",
        name,
        listed(classes, total=len(classes)),
    )
    load = DatasetCatalog[name]
    if isinstance(load, _Renumbered):  # numbered for another run in this process
        load.restore()
        dicts = load.load()
        load = load.load
    renumbered = _Renumbered(name, load, classes)
    DatasetCatalog[name] = renumbered
    return renumbered.apply(dicts)


def number_like_checkpoint(name: str, classes: Sequence[str], *, checkpoint: str) -> None:
    """Number the classes of a dataset that was loaded as a checkpoint's model does, by name.

    ``classes``: of the checkpoint, by class index. Raises DataError with both if they are other ones.
    """
    own = class_names_of(name)
    if own is None:
        return
    if sorted(own) != sorted(classes):
        raise DataError(
            f"{checkpoint} detects {listed(classes, total=len(classes))}, but dataset {name!r} has the classes "
            f"{listed(own, total=len(own))}. Evaluate on data with the same classes; names that are spelt otherwise "
            f"only can be changed in the json's 'categories'."
        )
    number_alike(name, [], classes)


class _Renumbered:
    """A dataset function of detectron2's catalog that gives other class numbers than ``load``."""

    def __init__(self, name: str, load: Callable[[], list[dict]], classes: list[str]):
        metadata = MetadataCatalog.get(name)
        self.name, self.load, self.classes = name, load, classes
        self.own_classes = list(metadata.thing_classes)
        self._own_ids = metadata.get("thing_dataset_id_to_contiguous_id")
        self._number = [classes.index(own) for own in self.own_classes]

    def __call__(self) -> list[dict]:
        self.restore()  # detectron2's loader insists on the numbers it gives
        return self.apply(self.load())

    def restore(self) -> None:
        self._set(self.own_classes, self._own_ids)

    def apply(self, dicts: list[dict]) -> list[dict]:
        ids = self._own_ids
        self._set(self.classes, ids and {own_id: self._number[index] for own_id, index in ids.items()})
        return [self._renumber(record) for record in dicts]

    def _set(self, classes: list[str], ids: dict | None) -> None:
        # Metadata refuses to change what is set, by attributes; there is no other way to ask for it.
        vars(MetadataCatalog.get(self.name)).update(thing_classes=list(classes))
        if ids is not None:
            vars(MetadataCatalog.get(self.name)).update(thing_dataset_id_to_contiguous_id=dict(ids))

    def _renumber(self, record: dict) -> dict:
        if "annotations" not in record:
            return record
        annotations = [{**a, "category_id": self._number[a["category_id"]]} for a in record["annotations"]]
        return {**record, "annotations": annotations}


def number_of_classes(cfg: DictConfig) -> int | None:
    """Of a LazyConfig's model; of another meta-architecture's, what its mapper says. None: it does not say."""
    for key in ("model.num_classes", "dataloader.train.mapper.num_classes"):
        number = OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
        if isinstance(number, int):
            return number
    return None
