"""What a config's model has room for."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from dinox.config.calls import detections_key
from dinox.data.class_numbering import number_of_classes
from dinox.data.coco_json import DEFAULT_MAX_BAD_BOXES
from dinox.data.skipping import DEFAULT_MAX_BAD


@dataclass(frozen=True)
class ModelLimits:
    """Numbers of a config; None where it has none.

    denoising_objects: objects per image that denoising has room for. short_edge, max_size: of training images, after
    the augmentation's largest resize. images_per_step: of all GPUs together. max_bad_boxes, max_bad: the shares of the
    annotations and images that training may leave out; validation_max_bad_boxes: that evaluation may. filter_empty:
    whether images without objects are not trained on.
    """

    config: str
    num_classes: int | None = None
    num_queries: int | None = None
    num_detections: int | None = None
    denoising_objects: int | None = None
    short_edge: int | None = None
    max_size: int | None = None
    images_per_step: int | None = None
    max_bad_boxes: float = DEFAULT_MAX_BAD_BOXES
    max_bad: float = DEFAULT_MAX_BAD
    validation_max_bad_boxes: float = 0
    filter_empty: bool = True

    @classmethod
    def of(cls, cfg: DictConfig, *, name: str) -> ModelLimits:
        """Read them from a LazyConfig, without building anything. ``name``: of the config, for messages."""
        short_edge, max_size = _training_size(cfg)
        return cls(
            config=name,
            num_classes=number_of_classes(cfg),
            num_queries=_num_queries(cfg),
            num_detections=_number(cfg, detections_key(cfg)),
            denoising_objects=_denoising_objects(cfg),
            short_edge=short_edge,
            max_size=max_size,
            images_per_step=_number(cfg, "dataloader.train.total_batch_size"),
            max_bad_boxes=_value(cfg, "dataloader.train.dataset.max_bad_boxes", DEFAULT_MAX_BAD_BOXES),
            max_bad=_value(cfg, "dataloader.train.max_bad", DEFAULT_MAX_BAD),
            validation_max_bad_boxes=_value(cfg, "dataloader.test.dataset.max_bad_boxes", DEFAULT_MAX_BAD_BOXES),
            filter_empty=_value(cfg, "dataloader.train.dataset.filter_empty", True),
        )


def _num_queries(cfg: DictConfig) -> int | None:
    """Of all patterns, where every anchor has several."""
    queries = _number(cfg, "model.num_queries")
    patterns = _number(cfg, "model.query_groups.matching.anchors.times")
    return queries if queries is None or patterns is None else queries * patterns


def _denoising_objects(cfg: DictConfig) -> int | None:
    """As ``DenoisingQueries`` counts: every object needs a query in each half of the fewest groups."""
    node = OmegaConf.select(cfg, "model.query_groups.denoising")
    if node is None:
        return None
    cap = _argument(node, "max_queries")
    box_noise, groups = node.get("box_noise"), node.get("groups")
    halves = getattr(_target(box_noise), "halves", 1)
    fewest = _argument(groups, "num_groups") or getattr(_target(groups), "fewest", 1)
    return None if cap is None else cap // (halves * fewest)


def _training_size(cfg: DictConfig) -> tuple[int | None, int | None]:
    node = OmegaConf.select(cfg, "dataloader.train.mapper.augmentations")
    if not isinstance(node, DictConfig):
        return None, None
    edges = _argument(node, "short_edges")
    return None if edges is None else int(max(edges)), _argument(node, "max_size")


def _number(cfg: DictConfig, key: str) -> int | None:
    value = OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
    return value if isinstance(value, int) else None


def _value(cfg: DictConfig, key: str, default: float) -> float:
    value = OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
    return default if value is None else value


def _target(node: DictConfig | None):
    target = None if node is None else node.get("_target_")
    return locate(target) if isinstance(target, str) else target


def _argument(node: DictConfig | None, name: str):
    """The value of an argument in a LazyCall, or its default."""
    if node is None:
        return None
    if name in node:
        return node[name]
    target = _target(node)
    parameter = inspect.signature(target).parameters.get(name) if callable(target) else None
    return None if parameter is None or parameter.default is parameter.empty else parameter.default
