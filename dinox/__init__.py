"""dinox: the detectron2 extension for end-to-end detection transformers.

Importing it registers the meta-architecture, the backbones and the embedded dataset with detectron2.
"""

import sys

from dinox.utils.compat import require_detectron2
from dinox.utils.unusable import explain, runs_as_command

try:
    require_detectron2()
except ImportError as error:
    if not runs_as_command():
        raise
    sys.exit(explain(error, sys.argv[1:]))  # the commands need more of dinox than there will be

# isort: split
from dinox import checkpoint, data, model_zoo, modeling
from dinox.config import add_dinox_config
from dinox.inference import Predictor

__version__ = "0.1.0"

__all__ = ["Predictor", "__version__", "add_dinox_config", "checkpoint", "data", "model_zoo", "modeling"]
