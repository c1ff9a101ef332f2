"""Loading LazyConfigs, with overrides that cannot be misspelt in silence."""

from dinox.config.calls import check_calls
from dinox.config.errors import ConfigError
from dinox.config.loading import load_config, load_file
from dinox.config.overrides import apply_overrides

__all__ = ["ConfigError", "apply_overrides", "check_calls", "load_config", "load_file"]
