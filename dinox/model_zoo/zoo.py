"""What ``detectron2.model_zoo`` does, for dinox's configs.

Names are ``dino/dino_r50_4scale_12ep``, with or without ``.py``; the shared parts can be had as
``common/data/coco_detr.py``.
"""

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from dinox.checkpoint import load_weights
from dinox.config import ConfigError, load_config
from dinox.config.files import list_config_names, require_config

_CHECKPOINT_URLS: dict[str, str] = {}
"""Config name -> address of its trained weights, with their digest: ``https://...#sha256=HEX``. Empty until weights are
published."""


def list_configs() -> list[str]:
    """The names of all configs, sorted."""
    return list_config_names()


def get_config_file(name: str) -> str:
    """The path of a config. Raises ConfigError with the nearest names if there is none."""
    return str(require_config(name))


def get_checkpoint_url(name: str) -> str:
    """The address of the trained weights of a config. Raises ConfigError if none are published."""
    file = get_config_file(name)  # of one config, whichever of its names this is
    url = next((url for known, url in _CHECKPOINT_URLS.items() if get_config_file(known) == file), None)
    if url is None:
        raise ConfigError(
            f"No trained weights are published for {name!r} ({file}). Use trained=False, or train it and set "
            f"train.init_checkpoint to your own file."
        )
    return url


def get_config(name: str, trained: bool = False) -> DictConfig:
    """The config of a name, not yet instantiated.

    Args:
        name: see above.
        trained: put the address of the trained weights into ``train.init_checkpoint``. Otherwise it stays what the
            config says, which is the pretrained backbone or nothing.
    """
    cfg = load_config(get_config_file(name))
    if trained:
        cfg.train.init_checkpoint = get_checkpoint_url(name)
    return cfg


def get(name: str, trained: bool = False, device: str | None = None) -> torch.nn.Module:
    """The model of a name, in training mode, with the weights of ``train.init_checkpoint`` loaded (see ``get_config``).

    Args:
        device: where to put it; by default where the config builds it, and the CPU if there is no GPU.

    Raises CheckpointError if these are not weights of this model.
    """
    cfg = get_config(name, trained)
    if "model" not in cfg:
        raise ConfigError(
            f"{name!r} has no model, only {', '.join(cfg)}: it is a part of configs. dinox.model_zoo.list_configs() "
            "lists those of models."
        )
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    model = instantiate(cfg.model)
    if device is not None:
        model = model.to(device)
    if "train" in cfg and cfg.train.get("init_checkpoint"):
        purpose, ema = "evaluate" if trained else "train", cfg.train.get("use_ema_weights", True)
        load_weights(model, cfg.train.init_checkpoint, purpose=purpose, ema=ema)
    return model
