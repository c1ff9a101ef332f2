"""Checks of what single parts of a training config need of the data."""

from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf

from dinox.data.errors import DataError
from dinox.data.masks import COPY_PASTE_WITHOUT_MASKS

IMAGE_COUNTS = "model.criterion.class_loss.image_counts"


def check_parts(cfg: DictConfig, *, num_classes: int | None) -> None:
    """Check that copy-paste gets masks, and a federated loss the counts of all classes. Raises DataError."""
    train = cfg.dataloader.get("train")
    if isinstance(train, DictConfig) and train.get("copy_paste") is not None and not asks_for_masks(train):
        raise DataError(COPY_PASTE_WITHOUT_MASKS)
    counts = OmegaConf.select(cfg, IMAGE_COUNTS, throw_on_resolution_failure=False)
    if isinstance(counts, DictConfig):
        found = len(instantiate(counts)())
        if num_classes is not None and found != num_classes:
            raise DataError(
                f"{IMAGE_COUNTS}: {found} classes are counted in {counts.get('source')}, but the model has "
                f"{num_classes}. Count those of the dataset that is trained on."
            )


def asks_for_masks(loader: DictConfig | None) -> bool:
    """Whether the mapper of ``dataloader.train`` gives masks."""
    masks = None if loader is None else OmegaConf.select(loader, "mapper.masks", throw_on_resolution_failure=False)
    return masks not in (None, "none")
