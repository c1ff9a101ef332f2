"""dinox: the detectron2 extension for end-to-end detection transformers.

Importing it registers the meta-architecture, the backbones and the embedded dataset with detectron2.
"""

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"dinox extends detectron2, which cannot be imported here ({error}). In a checkout of dinox, `make setup` "
        "makes an environment with everything, and `python tools/detectron2_v06.py` installs detectron2 v0.6 into the "
        "active one. Other ways: https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
    ) from None

from dinox import checkpoint, data, model_zoo, modeling

__version__ = "0.1.0"

__all__ = ["__version__", "checkpoint", "data", "model_zoo", "modeling"]
