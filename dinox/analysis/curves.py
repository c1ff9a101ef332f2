"""Curves of training runs in one picture: AP and losses against epochs and time.

Evaluations are drawn as they are, one marker each, joined by lines. Values of training steps are noisy: pale, as
metrics.json has them (medians of 20 iterations), and over them their running mean, which at each place is the mean of
all values within 1 % of the axis to either side. That is a length on the axis, not a number of values: runs that log
more often, or take more steps per epoch, are not smoothed less.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dinox.analysis.runs import Run, is_evaluation, require_metric
from dinox.utils.colours import COLOURS
from dinox.utils.suggest import did_you_mean
from dinox.utils.whole_files import written_whole

DEFAULT_METRICS = ("bbox/AP", "total_loss")
DEFAULT_AXES = ("epochs", "hours")
AXIS_LABELS = {"epochs": "epochs", "hours": "hours of training", "iterations": "iterations"}
_METRIC_LABELS = {
    "bbox/AP": "AP",
    "bbox/AP50": "AP50",
    "bbox/AP75": "AP75",
    "total_loss": "total loss",
    "matching/instability": "instability of matching (IS)",
    "matching/anchor_target_l1": "anchor to target, mean L1",
}
_TOP_K_DISTANCE = re.compile(r"matching/atd_(\d+)(_small)?")
_UNSTABLE_SCORE = re.compile(r"matching/unstable_(\d+)")

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINE_STYLES = ("-", "--", ":", "-.")  # the next one after each round of colours

_PANEL_SIZE = (5.4, 3.6)  # inches
_LEGEND_ROW = 0.3  # inches
_LEGEND_WIDTH = 75  # letters in a row of the legend, per panel
_DOTS_PER_INCH = 130
_SMOOTHING = 0.02  # width of the window, as a share of the axis
_SETTLED = 0.03  # share of the axis after which losses have to fit into their panel


@dataclass(frozen=True)
class _Style:
    colour: str
    line: str
    marker: str


def draw_curves(
    runs: Sequence[Run],
    path: str | os.PathLike,
    *,
    metrics: Sequence[str] | None = None,
    axes: Sequence[str] = DEFAULT_AXES,
) -> None:
    """Write a picture with a row of panels per metric, a column per axis, and a line per run.

    Args:
        path: where to; .png, .pdf, .svg, and whatever else matplotlib knows. Replaced when the new one is complete.
        metrics: names in metrics.json; ``bbox/AP`` and ``total_loss`` by default, where some run has them. A run
            without a metric (not evaluated yet) is missing in its panels only.
        axes: of "epochs", "hours", "iterations".

    Raises ValueError for a metric that no run has, an axis that a run tells nothing about, and an unknown kind of file.
    """
    metrics = choose_metrics(runs, metrics)
    _check_axes(axes)
    rows_of_legend = _legend_rows(runs, columns=len(axes))
    size = (_PANEL_SIZE[0] * len(axes), _PANEL_SIZE[1] * len(metrics) + _LEGEND_ROW * rows_of_legend)
    figure = Figure(figsize=size, layout="constrained")
    file_type = _file_type(path, FigureCanvasAgg(figure))
    panels = figure.subplots(len(metrics), len(axes), sharey="row", sharex="col", squeeze=False)
    styles = [_style(i) for i in range(len(runs))]
    for metric, row in zip(metrics, panels):
        for axis, panel in zip(axes, row):
            _draw_panel(panel, runs, styles, metric, axis)
        row[0].set_ylabel(_metric_label(metric))
    for axis, panel in zip(axes, panels[-1]):
        panel.set_xlabel(AXIS_LABELS[axis])
        panel.set_xlim(left=0)
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.line, marker=s.marker, markersize=5, label=run.name)
        for run, s in zip(runs, styles)
    ]
    columns = -(-len(runs) // rows_of_legend)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=file_type, dpi=_DOTS_PER_INCH)


def choose_metrics(runs: Sequence[Run], metrics: Sequence[str] | None) -> list[str]:
    """The given metrics, if some run has each of them; None: the default ones that some run has. Raises ValueError."""
    if metrics is not None:
        for metric in metrics:
            require_metric(runs, metric)
        return list(metrics)
    found = [metric for metric in DEFAULT_METRICS if any(metric in run.metrics for run in runs)]
    if not found:
        require_metric(runs, DEFAULT_METRICS[0])
    return found


def running_mean(x: np.ndarray, values: np.ndarray, *, width: float) -> np.ndarray:
    """At each x (P,), ascending, the mean of the values (P,) within width / 2 to either side of it, ends included."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(x, x - width / 2, side="left")
    behind = np.searchsorted(x, x + width / 2, side="right")
    return (sums[behind] - sums[first]) / (behind - first)


def _draw_panel(panel: Axes, runs: Sequence[Run], styles: Sequence[_Style], metric: str, axis: str) -> None:
    panel.grid(color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    curves = [
        (run.along(axis, run.metrics[metric].iterations), run.metrics[metric].values, style)
        for run, style in zip(runs, styles)
        if metric in run.metrics
    ]
    if is_evaluation(metric):
        for x, values, style in curves:
            panel.plot(x, values, color=style.colour, linestyle=style.line, marker=style.marker, markersize=5)
        if all(np.min(values) >= 0 for _, values, _ in curves):
            most = max(np.max(values) for _, values, _ in curves)
            panel.set_ylim(0, 1.05 * most if most > 0 else None)
        return
    length = max(x[-1] for x, _, _ in curves)
    shown = []
    for x, values, style in curves:
        smooth = running_mean(x, values, width=_SMOOTHING * length)
        panel.plot(x, values, color=style.colour, linewidth=0.7, alpha=0.25, zorder=1)
        marker = style.marker if len(x) == 1 else None  # one point has no line
        panel.plot(x, smooth, color=style.colour, linestyle=style.line, linewidth=1.6, marker=marker, zorder=2)
        shown.append(smooth[x >= min(_SETTLED * length, x[-1])])
    # The first steps, or a single spike, would leave the rest of the curves flat on the ground.
    low = min(np.min(values) for values in shown)
    high = max(np.quantile(values, 0.99) for values in shown)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    panel.set_ylim(low - margin, high + margin)


def _metric_label(metric: str) -> str:
    distance = _TOP_K_DISTANCE.fullmatch(metric)
    if distance:
        return f"ATD({distance[1]}){', small objects' if distance[2] else ''}"
    unstable = _UNSTABLE_SCORE.fullmatch(metric)
    if unstable:
        return f"unstable score of layer {int(unstable[1]) + 1} (%)"
    return _METRIC_LABELS.get(metric, metric)


def _check_axes(axes: Sequence[str]) -> None:
    for axis in axes:
        if axis not in AXIS_LABELS:
            raise ValueError(
                f"axis: expected some of {', '.join(AXIS_LABELS)}, got {axis!r}.{did_you_mean(axis, AXIS_LABELS)}"
            )


def _file_type(path: str | os.PathLike, canvas: FigureCanvasAgg) -> str:
    known, path = sorted(canvas.get_supported_filetypes()), Path(path)
    ending = path.suffix.removeprefix(".").lower()
    if ending not in known:
        raise ValueError(f"{path}: expected a picture's name, which ends in .png or another of {', '.join(known)}")
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ValueError(f"{path}: expected the name of a picture in a folder that exists")
    return ending


def _legend_rows(runs: Sequence[Run], *, columns: int) -> int:
    letters = max(len(run.name) for run in runs) + 8  # the line before the name
    in_a_row = max(1, _LEGEND_WIDTH * columns // letters)
    return -(-len(runs) // in_a_row)


def _style(index: int) -> _Style:
    turn, index = divmod(index, len(COLOURS))
    return _Style(COLOURS[index], _LINE_STYLES[turn % len(_LINE_STYLES)], _MARKERS[(index + turn) % len(_MARKERS)])
