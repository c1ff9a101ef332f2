"""Dataset dicts for detectron2's own ``build_detection_train_loader`` and ``build_detection_test_loader``."""

from collections.abc import Sequence

from detectron2.data import get_detection_dataset_dicts

from dinox.data.checks import annotations_are_valid, check_registered, check_same_classes, load_dataset
from dinox.data.errors import DataError


def load_dataset_dicts(names: str | Sequence[str], *, filter_empty: bool = True) -> list[dict]:
    """detectron2's ``get_detection_dataset_dicts``, with errors that name the file and the annotation.

    The json files are parsed once when they are good, and again only to explain what is wrong.

    Args:
        names: of registered datasets, which have to have the same classes.
        filter_empty: leave out images without annotations other than crowds, as the papers do in training on COCO.
            Evaluation needs them: pass False.

    Raises DataError.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise DataError("dataset.names is empty: expected at least one name of a registered dataset.")
    for name in names:
        check_registered(name)
    try:
        dicts = get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except Exception as error:
        _explain(names)
        raise DataError(
            f"Datasets {', '.join(names)} (filter_empty={filter_empty}) cannot be used: {type(error).__name__}: {error}"
        ) from error
    if not annotations_are_valid(dicts):
        _explain(names)
    return dicts


def _explain(names: Sequence[str]) -> None:
    """Raise DataError for what is wrong with one of the datasets, if it is anything that dinox knows."""
    for name in names:
        load_dataset(name)
    check_same_classes(names)
