"""Loading configs, with overrides that cannot be misspelt in silence, and yaml that runs nothing."""

from dinox.config.checks import check_calls
from dinox.config.detectron2_yaml import add_dinox_config, add_roi_denoising_config, lazy_config
from dinox.config.errors import ConfigError
from dinox.config.loading import load_config, load_file, parse_config, setting_place
from dinox.config.overrides import apply_overrides
from dinox.config.yaml_merging import merge_yaml

__all__ = [
    "ConfigError",
    "add_dinox_config",
    "add_roi_denoising_config",
    "apply_overrides",
    "check_calls",
    "lazy_config",
    "load_config",
    "load_file",
    "merge_yaml",
    "parse_config",
    "setting_place",
]
