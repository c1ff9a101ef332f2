"""Checks of what single parts of a training config need of the data."""

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf

from dinox.config.calls import parameters
from dinox.data.errors import DataError
from dinox.data.masks import COPY_PASTE_WITHOUT_MASKS

IMAGE_COUNTS = "model.criterion.class_loss.image_counts"
HEADS = "model.auxiliary_heads"


def check_parts(cfg: DictConfig, *, num_classes: int | None) -> None:
    """Check that copy-paste and auxiliary heads that learn from masks get them, and a federated loss the counts of all
    classes. Raises DataError."""
    train = cfg.dataloader.get("train")
    if isinstance(train, DictConfig) and train.get("copy_paste") is not None and not asks_for_masks(train):
        raise DataError(COPY_PASTE_WITHOUT_MASKS)
    check_masks_for_heads(cfg)
    counts = OmegaConf.select(cfg, IMAGE_COUNTS, throw_on_resolution_failure=False)
    if isinstance(counts, DictConfig):
        found = len(instantiate(counts)())
        if num_classes is not None and found != num_classes:
            raise DataError(
                f"{IMAGE_COUNTS}: {found} classes are counted in {counts.get('source')}, but the model has "
                f"{num_classes}. Count those of the dataset that is trained on."
            )


def check_masks_for_heads(cfg: DictConfig) -> None:
    """Check that masks reach the auxiliary heads that learn from them, if it is known that the training data loses
    them. Raises DataError naming the head."""
    cure = _cure_for_lost_masks(cfg.dataloader.get("train"))
    names = [] if cure is None else _heads_that_need(cfg, "gt_masks")
    if names:
        raise DataError(
            f"{HEADS}.{names[0]} learns from masks, which the training data comes without: set {cure}, or leave the "
            f"head out with {HEADS}.{names[0]}=null"
        )


def _cure_for_lost_masks(loader: DictConfig | None) -> str | None:
    """The override with which ``dataloader.train`` gives masks; None if it does, or is not known to drop them."""
    if not isinstance(loader, DictConfig):
        return None
    if _masks_argument(loader.get("mapper")) == "none":
        return "dataloader.train.mapper.masks=bitmask"
    drops = _masks_argument(loader.get("copy_paste")) == "drop"
    return "dataloader.train.copy_paste.masks=keep" if drops else None


def _masks_argument(part: DictConfig | None) -> str | None:
    """``masks`` of a mapper or of copy-paste, as set or by default; None if it has no such argument."""
    if not isinstance(part, DictConfig):
        return None
    parameter = (parameters(part) or {}).get("masks")
    found = OmegaConf.select(part, "masks", throw_on_resolution_failure=False)
    return parameter.default if found is None and parameter is not None else found


def _heads_that_need(cfg: DictConfig, field: str) -> list[str]:
    """Names of the auxiliary heads that learn from this field of ``instances``."""
    node = OmegaConf.select(cfg, HEADS, throw_on_resolution_failure=False)
    if not isinstance(node, DictConfig):
        return []
    try:
        with torch.device("meta"):  # takes neither time nor memory, and draws no random numbers
            heads = instantiate(node)
    except Exception:  # building the model, which comes next, says what is wrong with it
        return []
    return [name for name in heads if field in getattr(heads[name], "needs", ())]


def asks_for_masks(loader: DictConfig | None) -> bool:
    """Whether the mapper of ``dataloader.train`` gives masks."""
    masks = None if loader is None else OmegaConf.select(loader, "mapper.masks", throw_on_resolution_failure=False)
    return masks not in (None, "none")
