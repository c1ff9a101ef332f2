"""Loading LazyConfigs, with overrides that cannot be misspelt in silence."""

from .calls import check_calls
from .errors import ConfigError
from .loading import load_config, load_file
from .overrides import apply_overrides

__all__ = ["ConfigError", "apply_overrides", "check_calls", "load_config", "load_file"]
