"""What files say about how their outputs become detections, and what it stands for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dinox.export.description import Ranking
from dinox.modeling import BestClassDetections, TopKDetections

POSTPROCESSES: Mapping[Ranking, type[TopKDetections] | type[BestClassDetections]] = {
    "pairs": TopKDetections,
    "queries": BestClassDetections,
}


def ranking_of(model: nn.Module) -> Ranking:
    """Raises ValueError for a post-processing that files have no word for."""
    own = model.postprocess
    for ranking, known in POSTPROCESSES.items():
        if isinstance(own, known):
            return ranking
    names = " or ".join(known.__name__ for known in POSTPROCESSES.values())
    raise ValueError(f"postprocess: expected {names}, got {type(own).__name__}: it cannot be exported")


def pairs_of(ranking: Ranking, ranked: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Flat indices of (query, class), (B, M), from what the top-k of a file with post-processing inside has taken.

    ranked: (B, M), pairs or queries. classes: (B, M), the file's own, of which those out of range become others.
    """
    return ranked if ranking == "pairs" else ranked * num_classes + classes.clamp(0, num_classes - 1)
