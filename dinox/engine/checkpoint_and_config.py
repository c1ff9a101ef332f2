"""Evaluation of a checkpoint with a config that may not be the one that it was trained with."""

import logging

from detectron2.data import MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from dinox.checkpoint import CheckpointDescription
from dinox.checkpoint.description import differences
from dinox.data.checks import dataset_names
from dinox.data.class_numbering import number_like_checkpoint
from dinox.data.errors import DataError
from dinox.data.problems import listed

logger = logging.getLogger(__name__)

_ONLY_IN_TRAINING = ("model.criterion.", "model.query_groups.denoising.", "model.device")


def warn_of_another_model(description: CheckpointDescription, cfg: DictConfig) -> None:
    """Weights that fit say nothing of a temperature or a number of detections, which change the metrics."""
    found = [x for x in differences(description, cfg) if not x.key.startswith(_ONLY_IN_TRAINING)]
    if found:
        logger.warning(
            "The config is not that of %s, which may change the metrics:\n  %s\nIf it was not meant so, set the "
            "checkpoint's values, or evaluate with the config that it was trained or converted with",
            description.origin,
            "\n  ".join(map(str, found)),
        )


def number_classes_like(description: CheckpointDescription, cfg: DictConfig) -> None:
    """The data may number its classes otherwise than the data that the checkpoint was trained on."""
    if description.class_names is not None:
        for name in dataset_names(cfg.dataloader.test):
            _check_numbers_of_known(name, description, cfg)
            number_like_checkpoint(name, description.class_names, checkpoint=description.origin)


def _check_numbers_of_known(dataset: str, description: CheckpointDescription, cfg: DictConfig) -> None:
    """What the loader tells the model of an image has the numbers that its dataset had when it was loaded."""
    told = [key for key in ("known_objects", "known_labels") if OmegaConf.select(cfg.dataloader.test, f"mapper.{key}")]
    names = MetadataCatalog.get(dataset).get("thing_classes")
    if told and names is not None and list(names) != list(description.class_names):
        raise DataError(
            f"dataloader.test.mapper.{told[0]}: the model would be told other classes, since {description.origin} "
            f"numbers them {listed(description.class_names, total=len(description.class_names))}, and dataset "
            f"{dataset!r} {listed(names, total=len(names))}. Give the 'categories' of its json the checkpoint's order, "
            "or set dataloader.test.dataset.numbered_like to the dataset that was trained on"
        )
