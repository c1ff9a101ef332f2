"""Detections for the package "supervision", which draws, tracks and counts them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances


def to_supervision(instances: Instances, *, class_names: Sequence[str] | None = None) -> Any:
    """``supervision.Detections`` of one image.

    Args:
        instances: of a detector, on any device.
        class_names: by class index, for ``data["class_name"]``; without them it is left out.

    Raises ImportError if that package is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError(
            f"to_supervision needs the package supervision ({error}): install it with `pip install supervision`"
        ) from error
    instances = instances.to("cpu")
    classes = instances.pred_classes.numpy()
    names = (
        {} if class_names is None else {"class_name": np.array([class_names[index] for index in classes], dtype=str)}
    )
    return supervision.Detections(
        xyxy=instances.pred_boxes.tensor.detach().numpy(),
        confidence=instances.scores.detach().numpy(),
        class_id=classes,
        data=names,
    )
