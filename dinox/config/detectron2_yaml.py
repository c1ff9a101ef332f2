"""detectron2's yaml configs (CfgNode) for users of DefaultTrainer and DefaultPredictor.

A yaml config names a LazyConfig for the model and repeats none of it: ``MODEL.DINOX.CONFIG``, with changes in
``MODEL.DINOX.OVERRIDES``. Everything that detectron2's own keys can say (datasets, solver, image sizes, output) is said
there. ``lazy_config`` puts both into one LazyConfig, from which everything is then built.
"""

import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg
from omegaconf import DictConfig, OmegaConf

from dinox.config.calls import detections_key
from dinox.config.checks import check_calls
from dinox.config.errors import ConfigError, Source
from dinox.config.files import find_config, resolve_config
from dinox.config.loading import load_config
from dinox.config.overrides import apply_overrides
from dinox.config.safety import Origin, check_config, check_override
from dinox.config.syntax import parse_value, split_override

logger = logging.getLogger(__name__)

_COCO_STEP, _COCO_END = 82_500, 90_000  # of 12 epochs, 16 images per step
_PIXEL_MEAN, _PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]

_OF_THE_MODEL = ("DINOX", "META_ARCHITECTURE", "DEVICE", "WEIGHTS", "PIXEL_MEAN", "PIXEL_STD")
"""The keys below MODEL that mean something to dinox; the others describe detectron2's own detectors."""

_SAME = {"INPUT.FORMAT": "input_format", "MODEL.PIXEL_MEAN": "pixel_mean", "MODEL.PIXEL_STD": "pixel_std"}
"""What both say: key -> argument of the model."""

_CLASS_COUNTS = ("ROI_HEADS.NUM_CLASSES", "RETINANET.NUM_CLASSES")
"""Where the detectors of detectron2 have their number of classes."""


_ROI_DENOISING = {"NUM_GROUPS": 10, "CENTER_SHIFT": 0.4, "SCALE": 0.4, "LOSS_WEIGHT": 1.0}  # DN-DETR, section 4.8


def add_roi_denoising_config(cfg: CfgNode) -> None:
    """Add ``MODEL.DINOX.ROI_DENOISING`` to detectron2's config, and change nothing else: for its own R-CNNs.

    Its keys are read by the ROI heads with denoising training (``MODEL.ROI_HEADS.NAME: DenoisingROIHeads`` or
    ``DenoisingCascadeROIHeads``), which do without them if the paper's values shall stay:

    * ``NUM_GROUPS``: noised copies of each object;
    * ``CENTER_SHIFT``, ``SCALE``: lambda1 and lambda2 of the box noise;
    * ``LOSS_WEIGHT``: of a noised box, compared with a proposal.
    """
    if "DINOX" not in cfg.MODEL:
        cfg.MODEL.DINOX = CfgNode()
    cfg.MODEL.DINOX.ROI_DENOISING = CfgNode(dict(_ROI_DENOISING))


def add_dinox_config(cfg: CfgNode) -> None:
    """Add dinox's keys to detectron2's config, and set the defaults that detection transformers are trained with.

    Call it before ``merge_from_file``. New keys:

    * ``MODEL.DINOX.CONFIG``: a name in the model zoo (``dino/dino_r50_4scale_12ep``), or a LazyConfig in yaml;
    * ``MODEL.DINOX.OVERRIDES``: a list of ``key=value``, such as ``model.num_classes=2``;
    * ``MODEL.DINOX.ROI_DENOISING``: see ``add_roi_denoising_config``, which is enough for R-CNNs;
    * ``SOLVER.BACKBONE_MULTIPLIER``: the backbone's learning rate, as a factor.

    The solver's defaults are AdamW's in the papers, for 12 epochs of COCO in steps of 16 images; ``DinoxTrainer``
    clips the norm of the whole model's gradient at ``SOLVER.CLIP_GRADIENTS.CLIP_VALUE``. Images are RGB, with DETR's
    sizes. ``TEST.DETECTIONS_PER_IMAGE`` is None: as many as the model's config says.
    """
    cfg.MODEL.META_ARCHITECTURE = "DetectionTransformer"
    cfg.MODEL.DINOX = CfgNode({"CONFIG": "", "OVERRIDES": []})
    add_roi_denoising_config(cfg)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(_PIXEL_MEAN), list(_PIXEL_STD)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = tuple(range(480, 801, 32))
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = 1333
    cfg.INPUT.MIN_SIZE_TEST = 800
    solver = cfg.SOLVER
    solver.BASE_LR = 1e-4
    solver.BACKBONE_MULTIPLIER = 0.1
    solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM = 1e-4, 0.0
    solver.CLIP_GRADIENTS.ENABLED = True
    solver.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    solver.CLIP_GRADIENTS.CLIP_VALUE, solver.CLIP_GRADIENTS.NORM_TYPE = 0.1, 2.0
    solver.IMS_PER_BATCH = 16
    solver.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS = _COCO_END, (_COCO_STEP,), 0
    cfg.TEST.DETECTIONS_PER_IMAGE = None


def model_config(cfg: CfgNode) -> DictConfig:
    """The LazyConfig that ``MODEL.DINOX`` names, changed as it says, after a check that nothing contradicts it.

    Nothing else of ``cfg`` is in it yet; see ``lazy_config``. Raises ConfigError.
    """
    return _loaded(cfg)[0]


def lazy_config(cfg: CfgNode) -> DictConfig:
    """One LazyConfig with the model of ``MODEL.DINOX`` and with all that ``cfg`` says about data, solver and output.

    Raises ConfigError for keys that contradict each other, and for those that would be ignored.
    """
    lazy, file = _loaded(cfg)
    missing = [key for key in ("dataloader.train", "dataloader.test", "optimizer.params") if _select(lazy, key) is None]
    if missing:
        raise ConfigError(f"MODEL.DINOX.CONFIG: {file} has no {', '.join(missing)}, which training needs")
    settings = _settings(cfg)
    _refuse_settings_twice(cfg, settings)
    _refuse_ignored(cfg, {yaml_key for yaml_key, _ in settings.values()})
    for key, (_, value) in settings.items():
        OmegaConf.update(lazy, key, value, merge=False)
    check_config(lazy, Origin("of MODEL.DINOX, changed by the yaml config", {}))  # texts may hold interpolations
    check_calls(lazy, file=f"{file}, changed by the yaml config")
    return lazy


# ----------------------------------------------------------------------------------------------------------- the model


def _loaded(cfg: CfgNode) -> tuple[DictConfig, str]:
    """The LazyConfig and the file that it is from."""
    if "CONFIG" not in cfg.MODEL.get("DINOX", {}):
        raise ConfigError(
            "this config has no MODEL.DINOX.CONFIG: call dinox.add_dinox_config(cfg) after get_cfg(), before "
            "merge_from_file"
        )
    name = cfg.MODEL.DINOX.CONFIG
    if not name:
        raise ConfigError(
            "MODEL.DINOX.CONFIG is empty: give the name of a config, such as dino/dino_r50_4scale_12ep "
            "(dinox.model_zoo.list_configs() lists them). Detectors of detectron2, which MODEL itself describes, are "
            "for its DefaultTrainer"
        )
    file = find_config(name) or resolve_config(name)
    if file.suffix == ".py" and find_config(name) is None:
        raise ConfigError(
            f"MODEL.DINOX.CONFIG: {name} is a program, which a yaml config may not run: give the name of a config in "
            f"the model zoo, or a LazyConfig in yaml (LazyConfig.save writes one)"
        )
    lazy = load_config(file)
    _apply_own_overrides(lazy, cfg.MODEL.DINOX.OVERRIDES)
    if _select(lazy, "model") is None:
        raise ConfigError(f"MODEL.DINOX.CONFIG: {file} has no model")
    _set_detections(lazy, cfg)
    _check_agreement(cfg, lazy)
    return lazy, str(file)


def _apply_own_overrides(lazy: DictConfig, overrides: Any) -> None:
    """They come with the yaml, so they may call no more than it could."""
    key = "MODEL.DINOX.OVERRIDES"
    if not isinstance(overrides, (list, tuple)) or not all(isinstance(text, str) for text in overrides):
        raise ConfigError(f"{key}: expected a list of texts such as 'model.num_classes=2', got {overrides!r}")
    for text in overrides:
        source = Source(key, text)
        dotted, written = split_override(source)
        check_override(dotted, parse_value(source, dotted, written, is_text=True), Origin(f"{key} '{text}'", {}))
    apply_overrides(lazy, overrides, file=key)
    check_config(lazy, Origin(f"{key}, all together", {}))


def _set_detections(lazy: DictConfig, cfg: CfgNode) -> None:
    wanted, ours = cfg.TEST.DETECTIONS_PER_IMAGE, detections_key(lazy)
    if wanted is None:  # add_dinox_config's default: what the model's config says
        return
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ConfigError(f"TEST.DETECTIONS_PER_IMAGE: expected a whole number of at least 1, got {wanted!r}")
    _refuse_settings_twice(cfg, {ours: ("TEST.DETECTIONS_PER_IMAGE", wanted)})
    apply_overrides(lazy, [f"{ours}={wanted}"], file="TEST.DETECTIONS_PER_IMAGE")


def _check_agreement(cfg: CfgNode, lazy: DictConfig) -> None:
    """What yaml users set by habit has to agree with the model, or it would be ignored in silence."""
    model = lazy.model
    if _select(model, "num_classes") is None:
        raise ConfigError(
            f"MODEL.DINOX.CONFIG: {cfg.MODEL.DINOX.CONFIG} has no model.num_classes, so it is no detection "
            "transformer; detectron2's own detectors are described by MODEL itself"
        )
    for key, ours in _SAME.items():
        here, there = _get(cfg, key), _select(model, ours)
        if there is not None and _plain(here) != _plain(there):
            raise ConfigError(
                f"{key} is {_shown(here)}, but the model of MODEL.DINOX.CONFIG has {ours} {_shown(there)}. Set "
                f"{key} to that, or add 'model.{ours}={_shown(here)}' to MODEL.DINOX.OVERRIDES: both have to be what "
                f"the weights are made for"
            )
    num_classes, defaults = _select(model, "num_classes"), _defaults()
    for key in _CLASS_COUNTS:
        here = _get(cfg.MODEL, key)
        if here not in (_get(defaults.MODEL, key), num_classes):
            raise ConfigError(
                f"MODEL.{key} is {here}, but the model of MODEL.DINOX.CONFIG has {num_classes} classes. Add "
                f"'model.num_classes={here}' to MODEL.DINOX.OVERRIDES; MODEL.{key} is for detectron2's own detectors"
            )
    used = {*_OF_THE_MODEL, *_CLASS_COUNTS}
    ignored = [f"MODEL.{key}" for key in _changed(cfg.MODEL, defaults.MODEL, used)]
    ignored += _changed(cfg.MODEL.DINOX.ROI_DENOISING, CfgNode(_ROI_DENOISING), (), "MODEL.DINOX.ROI_DENOISING.")
    if ignored:
        _warn_of_ignored(", ".join(ignored))


@functools.cache  # the config is read for each thing that is built from it; one line is enough
def _warn_of_ignored(keys: str) -> None:
    logger.warning(
        "%s have no effect: MODEL.DINOX.CONFIG describes the model, and MODEL.DINOX.OVERRIDES changes it "
        "('model.backbone.bottom_up.depth=101')",
        keys,
    )


@functools.cache
def _defaults() -> CfgNode:
    return get_cfg()


def _changed(node: CfgNode, default: CfgNode, used: Collection[str], prefix: str = "") -> list[str]:
    """The dotted keys of detectron2's own that are not at their defaults, but for those that are used."""
    changed = []
    for key, value in default.items():
        dotted = f"{prefix}{key}"
        if dotted in used:
            continue
        if isinstance(value, CfgNode):
            changed += _changed(node[key], value, used, f"{dotted}.")
        elif _plain(node[key]) != _plain(value):
            changed.append(dotted)
    return changed


# ------------------------------------------------------------------------------------------------------ everything else


def _settings(cfg: CfgNode) -> Mapping[str, tuple[str, Any]]:
    """Key of the LazyConfig -> (key of the CfgNode, value)."""
    _refuse_unsupported(cfg)
    solver, inputs = cfg.SOLVER, cfg.INPUT
    train, test = "dataloader.train", "dataloader.test"
    clip = solver.CLIP_GRADIENTS.CLIP_VALUE if solver.CLIP_GRADIENTS.ENABLED else None
    names = list(cfg.DATASETS.TRAIN)
    return {
        f"{train}.dataset.names": ("DATASETS.TRAIN", names[0] if len(names) == 1 else names),
        f"{train}.dataset.filter_empty": (
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
            cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        ),
        f"{train}.mapper.image_format": ("INPUT.FORMAT", inputs.FORMAT),
        f"{train}.mapper.augmentations.short_edges": ("INPUT.MIN_SIZE_TRAIN", _short_edges(inputs)),
        f"{train}.mapper.augmentations.max_size": ("INPUT.MAX_SIZE_TRAIN", inputs.MAX_SIZE_TRAIN),
        f"{train}.mapper.augmentations.flip_probability": (
            "INPUT.RANDOM_FLIP",
            0.5 if inputs.RANDOM_FLIP == "horizontal" else 0.0,
        ),
        f"{train}.total_batch_size": ("SOLVER.IMS_PER_BATCH", solver.IMS_PER_BATCH),
        f"{train}.num_workers": ("DATALOADER.NUM_WORKERS", cfg.DATALOADER.NUM_WORKERS),
        f"{train}.aspect_ratio_grouping": ("DATALOADER.ASPECT_RATIO_GROUPING", cfg.DATALOADER.ASPECT_RATIO_GROUPING),
        f"{test}.dataset.names": ("DATASETS.TEST", list(cfg.DATASETS.TEST)),
        f"{test}.mapper.image_format": ("INPUT.FORMAT", inputs.FORMAT),
        f"{test}.mapper.augmentations.short_edge": ("INPUT.MIN_SIZE_TEST", _short_edge(inputs)),
        f"{test}.mapper.augmentations.max_size": ("INPUT.MAX_SIZE_TEST", inputs.MAX_SIZE_TEST),
        f"{test}.num_workers": ("DATALOADER.NUM_WORKERS", cfg.DATALOADER.NUM_WORKERS),
        "optimizer.lr": ("SOLVER.BASE_LR", solver.BASE_LR),
        "optimizer.weight_decay": ("SOLVER.WEIGHT_DECAY", solver.WEIGHT_DECAY),
        "optimizer.max_grad_norm": ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", clip),
        "optimizer.params.norm_weight_decay": ("SOLVER.WEIGHT_DECAY_NORM", solver.WEIGHT_DECAY_NORM),
        "optimizer.params.backbone_lr_factor": ("SOLVER.BACKBONE_MULTIPLIER", solver.BACKBONE_MULTIPLIER),
        "train.output_dir": ("OUTPUT_DIR", cfg.OUTPUT_DIR),
        "train.init_checkpoint": ("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS),
        "train.max_iter": ("SOLVER.MAX_ITER", solver.MAX_ITER),
        "train.seed": ("SEED", cfg.SEED),
        "train.device": ("MODEL.DEVICE", cfg.MODEL.DEVICE),
        "train.amp.enabled": ("SOLVER.AMP.ENABLED", solver.AMP.ENABLED),
        "train.eval_period": ("TEST.EVAL_PERIOD", cfg.TEST.EVAL_PERIOD),
        "train.checkpointer.period": ("SOLVER.CHECKPOINT_PERIOD", solver.CHECKPOINT_PERIOD),
    }


_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "INPUT.CROP.ENABLED": (False,),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": (2.0,),
    "SOLVER.BIAS_LR_FACTOR": (1.0,),
    "SOLVER.WEIGHT_DECAY_BIAS": (None,),
    "MODEL.LOAD_PROPOSALS": (False,),
    "MODEL.KEYPOINT_ON": (False,),
    "MODEL.MASK_ON": (False,),
    "TEST.PRECISE_BN.ENABLED": (False,),
}
"""What DinoxTrainer can do of what these keys offer."""

_OF_DETECTRON2 = (
    "VERSION",
    "MODEL",  # see _check_agreement
    "CUDNN_BENCHMARK",  # default_setup's, as the next
    "FLOAT32_PRECISION",
    "SOLVER.REFERENCE_WORLD_SIZE",
    "SOLVER.CLIP_GRADIENTS.ENABLED",
    "SOLVER.LR_SCHEDULER_NAME",  # build_lr_scheduler's, as the rest
    "SOLVER.STEPS",
    "SOLVER.GAMMA",
    "SOLVER.WARMUP_FACTOR",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.WARMUP_METHOD",
    "SOLVER.BASE_LR_END",
    "SOLVER.NUM_DECAYS",
    "SOLVER.RESCALE_INTERVAL",
    "TEST.DETECTIONS_PER_IMAGE",
)
"""What is used in other ways than by a setting of the LazyConfig."""

_INSTEAD = {
    "INPUT.CROP.ENABLED": "; DETR's crop is 'dataloader.train.mapper.augmentations.crop_probability' in "
    "MODEL.DINOX.OVERRIDES",
    "DATALOADER.SAMPLER_TRAIN": "; override build_train_loader for another one",
}


def _refuse_unsupported(cfg: CfgNode) -> None:
    for key, values in _SUPPORTED.items():
        if _get(cfg, key) not in values:
            expected = " or ".join(map(repr, values))
            raise ConfigError(f"{key} is {_get(cfg, key)!r}: DinoxTrainer knows {expected} only{_INSTEAD.get(key, '')}")


def _refuse_ignored(cfg: CfgNode, used: Collection[str]) -> None:
    ignored = _changed(cfg, _defaults(), {*used, *_SUPPORTED, *_OF_DETECTRON2})
    if ignored:
        values = ", ".join(f"{key} (set to {_shown(_get(cfg, key))})" for key in ignored)
        raise ConfigError(f"DinoxTrainer does not use {values}: it would have no effect. Leave it out")


def _refuse_settings_twice(cfg: CfgNode, settings: Mapping[str, tuple[str, Any]]) -> None:
    for text in cfg.MODEL.DINOX.OVERRIDES:
        dotted, _ = split_override(Source("MODEL.DINOX.OVERRIDES", text))
        for key, (yaml_key, _) in settings.items():
            if key == dotted or key.startswith(dotted + "."):
                raise ConfigError(f"MODEL.DINOX.OVERRIDES '{text}': set {yaml_key} instead, which decides about {key}")


def _short_edges(inputs: CfgNode) -> list[int]:
    edges = inputs.MIN_SIZE_TRAIN
    edges = [edges] if isinstance(edges, int) else list(edges)
    if not edges or min(edges) < 1:
        raise ConfigError(f"INPUT.MIN_SIZE_TRAIN: expected at least one size of 1 pixel or more, got {edges}")
    if inputs.MIN_SIZE_TRAIN_SAMPLING == "choice":
        return edges
    if len(edges) != 2:
        raise ConfigError(f"INPUT.MIN_SIZE_TRAIN: a range has two ends, got {edges}")
    return list(range(edges[0], edges[1] + 1))


def _short_edge(inputs: CfgNode) -> int:
    if inputs.MIN_SIZE_TEST < 1:
        raise ConfigError(f"INPUT.MIN_SIZE_TEST: expected 1 pixel or more, got {inputs.MIN_SIZE_TEST}")
    return inputs.MIN_SIZE_TEST


# -------------------------------------------------------------------------------------------------------------- helpers


def _get(node: CfgNode, key: str) -> Any:
    for part in key.split("."):
        node = node[part]
    return node


def _select(node: DictConfig, key: str) -> Any:
    return OmegaConf.select(node, key, throw_on_resolution_failure=False)


def _plain(value: Any) -> Any:
    """Tuples, lists and ListConfigs compare by their members."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return value
    return [_plain(member) for member in value]


def _shown(value: Any) -> str:
    return str(_plain(value)).replace(" ", "")
