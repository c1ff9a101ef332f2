"""dinox: the detectron2 extension for end-to-end detection transformers.

Importing it registers the meta-architecture, the backbones and the embedded dataset with detectron2.
"""

from dinox import data, modeling

__version__ = "0.1.0"

__all__ = ["__version__", "data", "modeling"]
