"""The pictures of a report of detections.

Symbols: T IoU thresholds, R recalls, K classes, S scores.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dinox.evaluation.detection_matches import Operation, Sweep
from dinox.utils.colours import COLOURS
from dinox.utils.whole_files import written_whole

_PANEL_SIZE = (5.4, 4.0)  # inches
_DOTS_PER_INCH = 130
_FAINT = "0.75"
_IOUS = (0, 2, 4, 6, 8)  # of COCO's thresholds: .5, .6, .7, .8, .9
_NAMED = len(COLOURS)  # classes with a colour of their own
_BARS = 100  # classes at most, those with the lowest AP
_BAR_HEIGHT = 0.2  # inches


def draw_curves(path: Path, recall: np.ndarray, precision: np.ndarray, class_names: Sequence[str]) -> None:
    """COCO's precision (T, R, K), NaN for classes without objects, against recall (R,): the mean over classes at some
    IoUs, and every class at an IoU of .5. Where there are more classes than colours, the worst ones have one."""
    figure, (means, classes) = _panels(2)
    there = ~np.isnan(precision[0]).all(0)
    precision, names = precision[:, :, there], [name for name, is_there in zip(class_names, there) if is_there]
    for index, colour in zip(_IOUS, COLOURS):
        if names:
            label = f"IoU {0.5 + 0.05 * index:.2f}"
            means.plot(recall, precision[index].mean(1), color=colour, linewidth=1.8, label=label)
    worst = precision[0].mean(0).argsort(kind="stable")
    for k in worst[_NAMED:]:
        classes.plot(recall, precision[0, :, k], color=_FAINT, linewidth=0.6)
    for k, colour in zip(sorted(worst[:_NAMED]), COLOURS):
        classes.plot(recall, precision[0, :, k], color=colour, linewidth=1.5, label=names[k])
    of_which = f"; named: the {_NAMED} with the lowest AP50" if len(names) > _NAMED else ""
    _finish(means, title="mean over classes", x="recall", y="precision")
    _finish(classes, title=f"classes at IoU 0.50{of_which}", x="recall", y="precision")
    _save(figure, path)


def draw_scores(
    path: Path, overall: Sweep, best: Operation | None, scores: np.ndarray, duplicates: Mapping[str, np.ndarray]
) -> None:
    """What is left above each score: precision, recall and F1, and the shares (S,) of duplicates at ``scores`` (S,)."""
    figure, (worth, twice) = _panels(2)
    curves = {"precision": overall.precision, "recall": overall.recall, "F1": overall.f1}
    for (name, values), colour in zip(curves.items(), COLOURS):
        worth.plot(overall.scores, values, color=colour, linewidth=1.8, label=name)
    if best is not None:
        worth.axvline(best.score, color="0.4", linestyle=":", linewidth=1)
        worth.plot([best.score], [best.f1], "o", color=COLOURS[2], label=f"best F1: {best.f1:.3f} at {best.score:.3f}")
    for (name, values), colour in zip(duplicates.items(), COLOURS[3:]):
        twice.plot(scores, 100 * values, color=colour, linewidth=1.8, label=name)
    _finish(worth, title="all classes, IoU 0.50", x="least score that is kept", y="share")
    _finish(twice, title="objects found more than once", x="least score that is kept", y="%", top=None)
    _save(figure, path)


def draw_class_aps(path: Path, class_names: Sequence[str], ap: np.ndarray, ap50: np.ndarray) -> None:
    """AP and AP50 (K,) of each class, 0..1, in rising order; of very many classes the lowest ones."""
    order = [k for k in ap.argsort(kind="stable") if not np.isnan(ap[k])][:_BARS]
    height = max(_PANEL_SIZE[1] / 2, 1.2 + _BAR_HEIGHT * len(order))
    figure, (panel,) = _panels(1, size=(_PANEL_SIZE[0] * 1.3, height))
    places = np.arange(len(order))
    panel.barh(places, 100 * ap50[order], color=COLOURS[5], height=0.8, label="AP50")
    panel.barh(places, 100 * ap[order], color=COLOURS[0], height=0.8, label="AP")
    for place, k in zip(places, order):
        panel.text(100 * ap50[k] + 1, place, f"{100 * ap[k]:.1f} / {100 * ap50[k]:.1f}", va="center", fontsize=7)
    panel.set_yticks(places, [class_names[k] for k in order], fontsize=8)
    panel.set_ylim(len(order) - 0.4, -0.6)
    which = "" if len(order) == (~np.isnan(ap)).sum() else f" (the {_BARS} lowest)"
    _finish(panel, title=f"classes{which}", x="%", y="", top=None, right=115)
    panel.set_xticks(range(0, 101, 20))
    _save(figure, path)


def _panels(number: int, *, size: tuple[float, float] = _PANEL_SIZE) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(size[0] * number, size[1]), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, number, squeeze=False)[0]


def _finish(panel: Axes, *, title: str, x: str, y: str, top: float | None = 1.02, right: float = 1.0) -> None:
    panel.grid(color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.set_xlim(0, right)
    if y:
        panel.set_ylim(0, top)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False, fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)
