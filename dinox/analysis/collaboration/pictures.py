"""Pictures of what ``dinox analyze collaboration`` measures (Co-DETR, figures 2, 3, 6, 7 and 8)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dinox.analysis.collaboration.discrimination import Curve
from dinox.analysis.collaboration.measuring import ImageCollaboration
from dinox.analysis.collaboration.report import CollaborationReport, Conflicts, ModelCollaboration
from dinox.structures.boxes import cxcywh_to_xyxy
from dinox.utils.whole_files import written_whole

# Okabe and Ito's colours, told apart with any kind of colour vision; without their yellow, which is faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES = ("-", "--", "-.", ":")
_LINE_WIDTHS = (2.6, 1.6, 1.6, 2.0)  # the first one shows between the dashes of curves that lie upon it
_HEAD_COLOURS = ("#1F77FF", "#FF9500", "#B14CFF", "#00C8D7", "#FF5CC8", "#C7B800")  # Faster R-CNN blue, ATSS orange
_ORIGINAL_COLOUR, _OBJECT_COLOUR = "#E60000", "#2FE02F"  # red and green, as in figure 7
# Warm where a map is high, as in figure 3. The ends of turbo are too dark to be seen on a picture.
_HEAT = LinearSegmentedColormap.from_list("heat", colormaps["turbo"](np.linspace(0.06, 0.95, 64)))
_HEAT_OPACITY = 0.6
_LEAST_RANGE = 1e-3  # of a map's colours: a map that is flat but for rounding should look so
_FADED = 0.6  # how much of the image is left, for points to stand out
_PANEL_WIDTH = 3.6  # inches
_TITLE = 0.35  # inches
_DOTS_PER_INCH = 130


@dataclass(frozen=True)
class Panel:
    title: str
    draw: Callable[[Axes], None]


def draw_collaboration(report: CollaborationReport, folder: str | os.PathLike) -> list[str]:
    """Write all pictures that apply; returns their paths.

    ``iof_iob.png``: a curve per model. ``conflicts_<model>.png``: distances between heads. And of every image that the
    report keeps, a row per model: ``maps_...`` beside the image, ``cams_...`` of every head, ``queries_...``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [_draw_curves(report.models, folder / "iof_iob.png")]
    names = _file_names([model.name for model in report.models])
    for model, name in zip(report.models, names, strict=True):
        if model.conflicts is not None:
            written.append(_draw_conflicts(model.conflicts, model.name, folder / f"conflicts_{name}.png"))
    for place, index in enumerate(sorted(report.models[0].pictures), start=1):
        written += _draw_image(report, index, folder, f"{place}_{Path(report.images.names[index]).stem}.png")
    return written


def _file_names(names: Sequence[str]) -> list[str]:
    safe = [re.sub(r"[^\w.-]+", "_", name).strip("_") or "model" for name in names]
    return [each if safe.count(each) == 1 else f"{each}_{i}" for i, each in enumerate(safe, start=1)]


def _save(figure: Figure, path: Path) -> str:
    FigureCanvasAgg(figure)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight")  # labels may be long
    return str(path)


# --------------------------------------------------------------------------------------------------------------- curves


def _draw_curves(models: Sequence[ModelCollaboration], path: Path) -> str:
    kinds: list[tuple[str, Callable[[ModelCollaboration], Curve | None]]] = [
        ("encoder features", lambda model: model.encoder),
        ("decoder attention", lambda model: model.attention),
    ]
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    for axis, (title, curve_of) in zip(figure.subplots(1, 2), kinds, strict=True):
        axis.plot([0, 1], [0, 1], color="0.75", linewidth=0.9, linestyle=(0, (2, 3)))
        for i, model in enumerate(models):
            curve = curve_of(model)
            if curve is None:
                continue
            iof, iob = (np.concatenate([[1.0], share.numpy(), [0.0]]) for share in (curve.iof, curve.iob))
            axis.plot(iob, iof, label=f"{model.name} (area {curve.area:.3f})", **line_of(i))
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="IoB, activated share of the background", title=title, aspect="equal")
        axis.set_ylabel("IoF, activated share of the foreground")
        axis.grid(color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="lower right", frameon=False, fontsize=9)
        else:
            axis.text(0.5, 0.5, "of an unknown kind", ha="center", va="center", color="0.4")
    return _save(figure, path)


def line_of(index: int) -> dict[str, str | float]:
    """Another colour and another style for each curve, and the same pair only after 28 of them."""
    style = index % len(_LINE_STYLES)
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _LINE_STYLES[style],
        "linewidth": _LINE_WIDTHS[style],
    }


# ------------------------------------------------------------------------------------------------------------ conflicts


def _draw_conflicts(conflicts: Conflicts, name: str, path: Path) -> str:
    matrix, number = conflicts.distances.numpy(), len(conflicts.heads)
    side = 1.9 + 0.85 * number
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    axis = figure.subplots()
    hidden = np.where(np.eye(number, dtype=bool), np.nan, matrix)  # zeros by definition
    highest = np.nanmax(hidden) if np.isfinite(hidden).any() else 0.0
    image = axis.imshow(hidden, cmap="YlOrRd", vmin=0, vmax=max(highest, 1e-12))
    for i in range(number):
        for j in range(number):
            dark = matrix[i, j] > 0.6 * highest and i != j
            text = "-" if np.isnan(matrix[i, j]) else "0" if i == j else f"{matrix[i, j]:.2g}"
            axis.text(j, i, text, ha="center", va="center", fontsize=10, color="white" if dark else "black")
    axis.set_xticks(range(number), conflicts.heads, rotation=0 if number < 4 else 30)
    means = ["-" if np.isnan(mean) else f"{mean:.2g}" for mean in conflicts.means.tolist()]
    labels = [f"{head}\nmean {mean}" for head, mean in zip(conflicts.heads, means, strict=True)]
    axis.set_yticks(range(number), labels)
    axis.set(xlabel="head j", ylabel="head i")
    axis.set_title(f"{name}\nKL(CAM of i || CAM of j), {conflicts.overall:.2g} over all pairs", fontsize=10)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, label="nats", fraction=0.046, pad=0.03)
    return _save(figure, path)


# --------------------------------------------------------------------------------------------------------------- images


def _draw_image(report: CollaborationReport, index: int, folder: Path, suffix: str) -> list[str]:
    pixels = report.images.mapper(report.images.records[index])["image"].permute(1, 2, 0).numpy()
    pixels = np.ascontiguousarray(pixels if report.input_format == "RGB" else pixels[:, :, ::-1])
    found = [(model.name, model.pictures[index]) for model in report.models]
    kinds: dict[str, list[list[Panel]]] = {
        "maps": [_map_panels(name, image, pixels) for name, image in found],
        "cams": [_cam_panels(name, image, pixels) for name, image in found],
    }
    queries = [_query_panel(name, image, pixels) for name, image in found if image.positives and image.num_objects]
    if queries:
        kinds["queries"] = [queries]
    written = []
    for kind, rows in kinds.items():
        scale = 1.6 if kind == "queries" else 1.0
        written.append(_draw_panels(rows, pixels.shape[:2], folder / f"{kind}_{suffix}", scale=scale))
    return written


def _draw_panels(rows: Sequence[Sequence[Panel]], size: tuple[int, int], path: Path, *, scale: float) -> str:
    height, width = size
    columns = max(len(row) for row in rows)
    panel_width = _PANEL_WIDTH * scale
    panel_height = panel_width * height / width + _TITLE
    figure = Figure(figsize=(panel_width * columns, panel_height * len(rows)), layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axis in axes[len(row) :]:
            axis.set_axis_off()
        for axis, panel in zip(axes, row, strict=False):
            panel.draw(axis)
            axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
            axis.set_title(panel.title, fontsize=9)
    return _save(figure, path)


def _map_panels(name: str, image: ImageCollaboration, pixels: np.ndarray) -> list[Panel]:
    panels = [_with_boxes(name, image, pixels), _heat("encoder features", image.encoder, pixels)]
    if image.attention is not None:
        panels.append(_heat("decoder attention", image.attention, pixels))
    return panels


def _cam_panels(name: str, image: ImageCollaboration, pixels: np.ndarray) -> list[Panel]:
    return [_with_boxes(name, image, pixels), *(_heat(head, cam, pixels) for head, cam in image.cams.items())]


def _heat(name: str, scores: torch.Tensor, pixels: np.ndarray) -> Panel:
    """The map over a grey image, coloured from its own least value to its largest, which the title tells: figure 3 is
    about where, not how much."""
    values = scores.float().cpu().numpy()
    least, largest = float(values.min()), float(values.max())

    def draw(axis: Axes) -> None:
        axis.imshow(pixels.mean(2), cmap="gray", vmin=0, vmax=255, extent=_extent(pixels))
        colours = {"cmap": _HEAT, "vmin": least, "vmax": max(largest, least + _LEAST_RANGE)}
        axis.imshow(values, alpha=_HEAT_OPACITY, extent=_extent(pixels), **colours)

    return Panel(f"{name} ({least:.2f} to {largest:.2f})", draw)


def _with_boxes(name: str, image: ImageCollaboration, pixels: np.ndarray) -> Panel:
    def draw(axis: Axes) -> None:
        axis.imshow(pixels, extent=_extent(pixels))
        for index in range(image.num_objects):
            _outline(axis, image, index, pixels)

    return Panel(name, draw)


def _extent(pixels: np.ndarray) -> tuple[float, float, float, float]:
    """Pixels (0, 0) to (1, 1) cover [0, 1] in x and y, as boxes count."""
    return (0, pixels.shape[1], pixels.shape[0], 0)


def _outline(axis: Axes, image: ImageCollaboration, index: int, pixels: np.ndarray) -> None:
    size = (pixels.shape[1], pixels.shape[0])
    x0, y0, x1, y1 = (cxcywh_to_xyxy(image.boxes[index]).numpy() * np.tile(size, 2)).tolist()
    axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=1.8, edgecolor=_OBJECT_COLOUR))


# -------------------------------------------------------------------------------------------------------------- queries


def _query_panel(name: str, image: ImageCollaboration, pixels: np.ndarray) -> Panel:
    """Figure 7: the largest object, the original query that is matched with it, and the positives that heads have for
    it."""
    index = int(image.boxes[:, 2:].prod(-1).argmax())
    size = np.array([pixels.shape[1], pixels.shape[0]])

    def draw(axis: Axes) -> None:
        axis.imshow((pixels * _FADED + 255 * (1 - _FADED)).astype(np.uint8), extent=_extent(pixels))
        _outline(axis, image, index, pixels)
        for i, (head, positives) in enumerate(image.positives.items()):
            centers = positives.of_object(index).numpy() * size
            colour = _HEAD_COLOURS[i % len(_HEAD_COLOURS)]
            _scatter(axis, centers, colour, f"{head} ({len(centers)})", 26)
        if image.queries is not None:
            centers = image.queries.of_object(index).numpy() * size
            _scatter(axis, centers, _ORIGINAL_COLOUR, f"original ({len(centers)})", 60)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, fontsize=8, frameon=False)

    return Panel(name, draw)


def _scatter(axis: Axes, centers: np.ndarray, colour: str, label: str, size: float) -> None:
    axis.scatter(*centers.T, s=size, c=colour, label=label, edgecolors="white", linewidths=0.7, zorder=3)
