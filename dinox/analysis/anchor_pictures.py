"""Anchors and the objects they are matched with, on the image (DN-DETR, figure 4)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.patheffects import withStroke

from dinox.evaluation.matching import ImageMatches, matched_distances
from dinox.structures.boxes import cxcywh_to_xyxy
from dinox.utils.whole_files import written_whole

# Blue, green, yellow, red: short ones are cool. The ends of turbo are too dark to be seen on a picture.
_COLOURS = LinearSegmentedColormap.from_list("lengths", colormaps["turbo"](np.linspace(0.12, 0.9, 64)))
_RIM = (0, 0, 0, 0.75)
_FADED = 0.6  # how much of the image is left, for arrows to stand out
_PANEL_WIDTH = 5.2  # inches
_TITLE = 0.5  # inches
_COLOUR_BAR = 0.9  # inches
_DOTS_PER_INCH = 130


@dataclass(frozen=True)
class Panel:
    title: str
    matches: ImageMatches


def draw_anchors(
    pixels: np.ndarray, panels: Sequence[Panel], path: str | os.PathLike, *, longest: float | None = None
) -> None:
    """Write a PNG with one picture per panel: an arrow from each matched anchor's centre to its object's centre.

    Colours are the L1 distances of the metrics, cool ones short: over centre and size for anchor boxes, so that an
    arrow between near centres can be warm; over the centre for anchor points. A dot marks where an arrow starts.
    Objects are outlined, with dashes those that no query is left for.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        panels: matches of the same image, with anchors.
        longest: the distance at the warm end of the colours; by default the longest of these panels.
    """
    if longest is None:
        longest = max(max(matched_distances(panel.matches).tolist(), default=0.0) for panel in panels)
    height, width = pixels.shape[:2]
    size = (_PANEL_WIDTH * len(panels) + _COLOUR_BAR, _PANEL_WIDTH * height / width + _TITLE)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    colours = ScalarMappable(Normalize(0, max(longest, 1e-6)), _COLOURS)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        axis.imshow((pixels * _FADED + 255 * (1 - _FADED)).astype(np.uint8))
        axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        axis.set_title(panel.title, fontsize=9)
        _draw_matches(axis, panel.matches, (width, height), colours)
    figure.colorbar(colours, ax=list(axes), label="L1 distance", fraction=0.04, pad=0.01)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)


def _draw_matches(axis: Axes, matches: ImageMatches, size: tuple[int, int], colours: ScalarMappable) -> None:
    queries, objects = matches.pairs()
    matched = set(objects.tolist())
    for index, (x0, y0, x1, y1) in enumerate((cxcywh_to_xyxy(matches.boxes).numpy() * np.tile(size, 2)).tolist()):
        style = "-" if index in matched else "--"
        axis.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linestyle=style, linewidth=0.9, edgecolor="0.25")
        )
    starts = matches.anchors[queries, :2].numpy() * size
    ends = matches.boxes[objects, :2].numpy() * size
    lengths = matched_distances(matches).numpy()
    for i in np.argsort(lengths):  # long ones on top
        colour = colours.to_rgba(lengths[i])
        arrow = FancyArrowPatch(
            starts[i],
            ends[i],
            arrowstyle="-|>",
            mutation_scale=9,
            linewidth=1.6,
            shrinkA=0,
            shrinkB=0,
            color=colour,
            path_effects=[withStroke(linewidth=2.8, foreground=_RIM)],
        )
        axis.add_patch(arrow)
        axis.plot(*starts[i], "o", markersize=3.2, markerfacecolor=colour, markeredgecolor=_RIM, markeredgewidth=0.6)
