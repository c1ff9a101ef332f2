"""The embedded dataset "shapes": synthetic images with exact boxes and masks, written on first use."""

from dinox.data.shapes.registration import register_default_shapes, register_shapes

__all__ = ["register_default_shapes", "register_shapes"]
