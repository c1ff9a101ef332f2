"""Detections as plain numbers and texts."""

from collections.abc import Sequence

from detectron2.structures import Instances

from dinox.evaluation.drawing import class_name


def detections_as_json(instances: Instances, class_names: Sequence[str]) -> list[dict]:
    """One entry for each detection, scores descending: ``class``, ``class_index``, ``score``, ``box`` (x0, y0, x1, y1
    in pixels)."""
    return [
        {
            "class": class_name(class_names, index),
            "class_index": index,
            "score": round(score, 5),
            "box": [round(side, 2) for side in box],
        }
        for index, score, box in zip(
            instances.pred_classes.tolist(), instances.scores.tolist(), instances.pred_boxes.tensor.tolist()
        )
    ]
