"""Configs by name, with the semantics of ``detectron2.model_zoo``."""

from dinox.model_zoo.zoo import get, get_checkpoint_url, get_config, get_config_file, list_configs

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file", "list_configs"]
