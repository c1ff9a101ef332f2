"""Dataset dicts, and batches of them: on detectron2's own loaders."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

from detectron2.data import build_detection_train_loader
from detectron2.data.build import filter_images_with_only_crowd_annotations, print_instances_class_histogram
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import Sampler

from dinox.data.bound_workers import bind_workers
from dinox.data.checks import check_image_paths, check_registered, explain_by_json, known_classes, load_dataset
from dinox.data.class_numbering import class_names_of, number_alike
from dinox.data.coco_json import DEFAULT_MAX_BAD_BOXES
from dinox.data.copy_paste import CopyPaste
from dinox.data.errors import DataError
from dinox.data.left_out import DatasetDicts, entries_left_out, leave_out_bad_boxes
from dinox.data.masks import COPY_PASTE_WITHOUT_MASKS
from dinox.data.problems import listed
from dinox.data.sampling import NumberedSampler
from dinox.data.skipping import DEFAULT_MAX_BAD, ReadableImages, SkippingLoader

logger = logging.getLogger(__name__)


def build_train_loader(
    *,
    dataset: Sequence[dict],
    mapper: Callable[[dict], dict],
    total_batch_size: int,
    num_workers: int = 0,
    sampler: Sampler | Callable[[Sequence[dict]], Sampler] | None = None,
    copy_paste: CopyPaste | None = None,
    aspect_ratio_grouping: bool = True,
    max_bad: float = DEFAULT_MAX_BAD,
    output_dir: str | None = None,
) -> SkippingLoader:
    """detectron2's ``build_detection_train_loader``, which goes on when a few images cannot be read.

    An image that is missing or damaged is replaced by another one, the same each time, and counted. Batches and
    augmentations do not depend on the number of workers.

    Args:
        dataset: dicts in detectron2's format.
        mapper: from a dict to a model's input, as ``DetectionMapper``.
        total_batch_size, num_workers, aspect_ratio_grouping: detectron2's.
        sampler: detectron2's, or a function that makes one for the dicts, such as ``RepeatFactorSampling``. None: all
            images alike, in random order. Augmentations depend on the sampler's seed and on the place in its stream.
        copy_paste: pastes objects of other images, which needs a mapper that gives masks. None: nothing is pasted.
        max_bad: the share of the images, 0 to 1, that may be left out; rounded up, so that it is one image at least
            unless it is 0. Training ends with a DataError when there are more.
        output_dir: where ``skipped.csv`` lists them: path, image id, cause.
    """
    if copy_paste is not None and getattr(mapper, "masks", "none") == "none":
        raise DataError(COPY_PASTE_WITHOUT_MASKS)
    images = ReadableImages(dataset, mapper, max_bad=max_bad, copy_paste=copy_paste)
    if sampler is not None and not isinstance(sampler, Sampler):
        sampler = sampler(dataset)
    sampler = NumberedSampler(sampler or TrainingSampler(len(images)))
    processes = comm.get_world_size()
    loader = build_detection_train_loader(
        images,
        mapper=None,
        sampler=sampler,
        # Without grouping, every worker would make batches of its own share of the images: others for other numbers of
        # workers. So they give one image at a time, as they do for batches that are grouped.
        total_batch_size=total_batch_size if aspect_ratio_grouping else processes,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
    )
    bind_workers(loader)
    if not aspect_ratio_grouping:
        loader = _Batches(loader, total_batch_size // processes)
    return SkippingLoader(loader, images, sampler=sampler, output_dir=output_dir)


class _Batches:
    """Batches of ``size`` images from a loader whose batches are of one."""

    def __init__(self, loader: Iterable[list[dict]], size: int) -> None:
        self._loader, self._size = loader, size

    def __iter__(self) -> Iterator[list[dict]]:
        images = chain.from_iterable(self._loader)
        while batch := list(islice(images, self._size)):
            yield batch


def load_dataset_dicts(
    names: str | Sequence[str],
    *,
    filter_empty: bool = True,
    numbered_like: str | Sequence[str] | None = None,
    max_bad_boxes: float = DEFAULT_MAX_BAD_BOXES,
    allow_outside_image_root: bool = False,
) -> list[dict]:
    """The dicts of registered datasets in detectron2's format, checked, with errors that name file and annotation.

    A json file is parsed once when it is good, and again only to explain what is wrong. Annotations whose boxes can be
    no object are left out and counted (see ``leave_out_bad_boxes``). Classes are matched by name: all datasets get the
    numbers of the first one.

    Args:
        names: of registered datasets, which have to have the same classes.
        filter_empty: leave out images without annotations other than crowds, as the papers do in training on COCO.
            Evaluation needs them: pass False.
        numbered_like: the dataset (or the first of several) whose class numbers to take, where it has the same
            classes; of an evaluation's dataset, the one that was trained on.
        max_bad_boxes: the share of the annotations that may be left out, 0 to 1; rounded up, and 10 at least. 0: none,
            as evaluation needs, which would count them as missed objects.
        allow_outside_image_root: let the images of a json lie outside of its image folder.

    Raises DataError.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise DataError("dataset.names is empty: expected at least one name of a registered dataset.")
    for name in names:
        check_registered(name)
    dicts, classes = [], None
    for name in names:
        loaded = load_dataset(name)
        classes = classes or _classes_to_match(name, numbered_like)
        if classes is not None:
            loaded = number_alike(name, loaded, classes)
        if not allow_outside_image_root:
            check_image_paths(name, loaded)
        dicts += _without_bad_boxes(name, loaded, max_bad_boxes)
    left_out = entries_left_out(dicts)  # now: images that lost all of their boxes are empty
    return DatasetDicts(_without_empty(names, dicts, filter_empty=filter_empty), left_out=left_out)


def _classes_to_match(name: str, numbered_like: str | Sequence[str] | None) -> list[str] | None:
    """The classes of the dataset to number like; the dataset's own if it has others."""
    own = class_names_of(name)
    if numbered_like is None or own is None:
        return own
    other = numbered_like if isinstance(numbered_like, str) else next(iter(numbered_like))
    wanted = known_classes(other)
    if wanted is None or wanted == own:
        return own
    if sorted(wanted) == sorted(own) and len(set(own)) == len(own):
        return wanted
    logger.warning(
        "Dataset %s has the classes %s, and not those of %s, which are %s: they cannot be matched by name, and keep "
        "the order of their own file. Metrics are of a model only that numbers its classes so.",
        name,
        listed(own, total=len(own)),
        other,
        listed(wanted, total=len(wanted)),
    )
    return own


def _without_bad_boxes(name: str, dicts: list[dict], max_bad_boxes: float) -> Sequence[dict]:
    try:
        return leave_out_bad_boxes(name, dicts, max_bad_boxes=max_bad_boxes)
    except DataError:
        explain_by_json(name, max_bad_boxes=max_bad_boxes)  # it knows the annotations' ids
        raise


def _without_empty(names: Sequence[str], dicts: list[dict], *, filter_empty: bool) -> list[dict]:
    """Log what is in the dicts, and leave out images without objects if asked."""
    annotations = [annotation for record in dicts for annotation in record.get("annotations", ())]
    crowds = sum(bool(annotation.get("iscrowd", 0)) for annotation in annotations)
    if crowds:
        logger.info("%s: %d crowd regions, which are no objects to train on", ", ".join(names), crowds)
    annotated = all("annotations" in record for record in dicts)
    if filter_empty and annotated:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if not dicts:
        raise DataError(
            f"{', '.join(names)}: no image has an object. Expected annotations other than crowds; images without are "
            f"kept with dataset.filter_empty=False."
        )
    classes = class_names_of(names[0])
    if classes is not None and annotated:
        print_instances_class_histogram(dicts, classes)
    return dicts
