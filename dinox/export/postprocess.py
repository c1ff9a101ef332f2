"""What files say about how their outputs become detections, and what it stands for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dinox.export.description import FileDescription, OutsideNMS, Ranking
from dinox.modeling import BestClassDetections, ClassNMS, ClassSoftNMS, TopKDetections

POSTPROCESSES: Mapping[Ranking, type[TopKDetections] | type[BestClassDetections]] = {
    "pairs": TopKDetections,
    "queries": BestClassDetections,
}


def ranking_part(model: nn.Module) -> TopKDetections | BestClassDetections:
    """What files compute of the post-processing. Raises ValueError for one that they have no word for."""
    own = model.postprocess
    part = own.ranking if isinstance(own, (ClassNMS, ClassSoftNMS)) else own
    if isinstance(part, tuple(POSTPROCESSES.values())):
        return part
    names = " or ".join(known.__name__ for known in POSTPROCESSES.values())
    raise ValueError(f"postprocess: expected {names}, got {type(part).__name__}: it cannot be exported")


def ranking_of(model: nn.Module) -> Ranking:
    """Raises ValueError as ``ranking_part``."""
    part = ranking_part(model)
    return next(ranking for ranking, known in POSTPROCESSES.items() if isinstance(part, known))


def nms_of(model: nn.Module) -> OutsideNMS | None:
    """What files do not compute of the post-processing."""
    own = model.postprocess
    if isinstance(own, ClassNMS):
        return OutsideNMS("nms", own.iou_threshold)
    if isinstance(own, ClassSoftNMS):
        return OutsideNMS("linear soft-nms", own.iou_threshold, own.min_score, own.num_detections)
    return None


def build_postprocess(
    description: FileDescription,
) -> TopKDetections | BestClassDetections | ClassNMS | ClassSoftNMS:
    """The model's, from what a file says."""
    ranking, nms = (
        POSTPROCESSES[description.ranking](num_detections=description.num_detections),
        description.nms_outside,
    )
    if nms is None:
        return ranking
    if nms.method == "nms":
        return ClassNMS(ranking=ranking, iou_threshold=nms.iou_threshold)
    return ClassSoftNMS(
        ranking=ranking,
        iou_threshold=nms.iou_threshold,
        min_score=nms.min_score,
        num_detections=nms.num_detections,
    )


def pairs_of(ranking: Ranking, ranked: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Flat indices of (query, class), (B, M), from what the top-k of a file with post-processing inside has taken.

    ranked: (B, M), pairs or queries. classes: (B, M), the file's own, of which those out of range become others.
    """
    return ranked if ranking == "pairs" else ranked * num_classes + classes.clamp(0, num_classes - 1)
