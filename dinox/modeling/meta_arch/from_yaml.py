"""DetectionTransformer from detectron2's yaml configs: for ``build_model(cfg)`` and what builds on it."""

import functools
import logging
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dinox.config import ConfigError
from dinox.config.calls import TARGET, call_target
from dinox.config.detectron2_yaml import model_config

logger = logging.getLogger(__name__)


def arguments_from_yaml(cls: type, cfg: CfgNode) -> dict[str, Any]:
    """The arguments of ``cls`` that ``MODEL.DINOX`` describes, its parts built.

    Raises ConfigError if ``cfg`` contradicts the model: another class, channel order, pixel statistics, or number of
    classes than its datasets have.
    """
    node = model_config(cfg).model
    if call_target(node) is not cls:
        raise ConfigError(
            f"MODEL.DINOX.CONFIG: {cfg.MODEL.DINOX.CONFIG} describes a {call_target(node).__name__}, but "
            f"MODEL.META_ARCHITECTURE is {cls.__name__}"
        )
    check_class_counts(cfg, node.num_classes)
    OmegaConf.resolve(node)
    arguments = {name: instantiate(value) for name, value in node.items() if name != TARGET}
    warn_of_sgd(next(part for part in arguments.values() if isinstance(part, nn.Module)))
    return arguments


def check_class_counts(cfg: CfgNode, num_classes: int) -> None:
    """Of the datasets whose classes are known without reading them. Raises ConfigError with both numbers."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        classes = MetadataCatalog.get(name).get("thing_classes") if name in DatasetCatalog.list() else None
        if classes is not None and len(classes) != num_classes:
            raise ConfigError(
                f"the model of MODEL.DINOX.CONFIG has {num_classes} classes, but the dataset {name!r} of DATASETS has "
                f"{len(classes)}. Add 'model.num_classes={len(classes)}' to MODEL.DINOX.OVERRIDES"
            )


def warn_of_sgd(part: nn.Module) -> None:
    """Say so, once, when the optimizer of this part of a model turns out to be SGD.

    detectron2's DefaultTrainer builds no other, and detection transformers learn next to nothing with it: the losses
    fall a little, and AP stays near 0. No part of a model sees its optimizer, so torch is asked to call us before every
    optimizer's step; that costs nothing once each part has been seen in one.
    """
    _register_hook()
    _not_seen_training.add(part)


_not_seen_training: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@functools.cache
def _register_hook() -> None:
    # It stays: torch does not allow to remove a hook from inside of it.
    register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: _look_at(optimizer))


def _look_at(optimizer: torch.optim.Optimizer) -> None:
    if not _not_seen_training:
        return
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for part in list(_not_seen_training):
        if optimized.isdisjoint(id(parameter) for parameter in part.parameters()):
            continue
        _not_seen_training.discard(part)
        if isinstance(optimizer, torch.optim.SGD):
            logger.warning(
                "!!! The optimizer is SGD, with which detection transformers hardly learn: expect an AP near 0. "
                "detectron2's DefaultTrainer builds no other. Use dinox.engine.DinoxTrainer in its place (AdamW, the "
                "backbone ten times slower, the norm of the whole gradient clipped), or override build_optimizer."
            )
