"""Unstable scores of decoder layers as a bar plot (Stable-DINO, figure 3), of this analysis and of earlier ones."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dinox.utils.colours import COLOURS
from dinox.utils.whole_files import written_whole

_KEY = "unstable_scores"  # of MatchingMetrics, in what `dinox analyze matching --json` writes
_GROUP_WIDTH = 0.8  # of the distance between layers
_NUMBERED = 3  # more bars than that beside each other leave no room for numbers over them
_PANEL_SIZE = (6.4, 3.8)  # inches
_DOTS_PER_INCH = 130
_ROWS_OF_LEGEND = 8


@dataclass(frozen=True)
class LayerScores:
    """name: of the checkpoint. scores: of each decoder layer, first to last, in percent; None: there is none."""

    name: str
    scores: Sequence[float | None]


def read_layer_scores(path: str | os.PathLike) -> list[LayerScores]:
    """From a file that ``dinox analyze matching --json`` wrote; named by it. Raises ValueError for another file."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["checkpoints"]
        found = [(str(row["name"]), [None if score is None else float(score) for score in row[_KEY]]) for row in rows]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected results with unstable scores, as `dinox analyze matching ... --json {path}` writes them"
        ) from error
    stem = Path(path).stem
    return [LayerScores(stem if len(found) == 1 else f"{stem}: {name}", scores) for name, scores in found]


def first_known_layer(groups: Sequence[LayerScores]) -> int | None:
    """The first layer, from 0, that some checkpoint has a score of; None if none has any."""
    known = [layer for group in groups for layer, score in enumerate(group.scores) if score is not None]
    return min(known, default=None)


def draw_layer_scores(groups: Sequence[LayerScores], path: str | os.PathLike) -> None:
    """A PNG with a group of bars for each layer, from the first one that has a score, and a colour for each checkpoint.

    Raises ValueError if there is no score at all.
    """
    first = first_known_layer(groups)
    if first is None:
        raise ValueError("expected at least one unstable score to draw, got none")
    layers = range(first, max(len(group.scores) for group in groups))
    figure = Figure(figsize=_PANEL_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    panel.grid(axis="y", color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    width = _GROUP_WIDTH / len(groups)
    for place, (group, colour) in enumerate(zip(groups, _colours(len(groups)), strict=True)):
        known = [layer for layer in layers if layer < len(group.scores) and group.scores[layer] is not None]
        middles = [layer + 1 - _GROUP_WIDTH / 2 + (place + 0.5) * width for layer in known]
        bars = panel.bar(middles, [group.scores[layer] for layer in known], width, color=colour, label=group.name)
        if len(groups) <= _NUMBERED:
            panel.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    panel.set_xticks([layer + 1 for layer in layers])
    panel.set_xlabel("decoder layer")
    panel.set_ylabel("unstable score (%)")
    panel.margins(y=0.08)
    columns = -(-len(groups) // _ROWS_OF_LEGEND)
    figure.legend(loc="outside upper center", ncols=max(columns, min(len(groups), 3)), frameon=False, fontsize=8)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)


def _colours(number: int) -> Sequence:
    """Told apart with any kind of colour vision; from dark to light for the many checkpoints of a long run."""
    if number <= len(COLOURS):
        return COLOURS[:number]
    return [matplotlib.colormaps["viridis"](i / (number - 1)) for i in range(number)]
