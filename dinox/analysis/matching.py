"""Everything ``dinox analyze matching`` tells about the checkpoints of a run."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from dinox.analysis.anchor_pictures import Panel, draw_anchors
from dinox.analysis.checkpoints import RunCheckpoint
from dinox.analysis.curves import draw_curves
from dinox.analysis.layer_scores import LayerScores, draw_layer_scores, first_known_layer
from dinox.analysis.runs import Run, Series
from dinox.checkpoint import load_weights
from dinox.checkpoint.building import build_model
from dinox.data.checks import check_data, dataset_names
from dinox.data.class_numbering import number_like_checkpoint
from dinox.evaluation.matching import (
    GroundTruthImages,
    ImageMatches,
    MatchingMetrics,
    match_images,
    matched_distances,
    matching_metrics,
    require_matcher,
)
from dinox.evaluation.matching.metrics import UNSTABLE

CURVES, BARS, ANCHORS = "matching_curves.png", "unstable_scores.png", "anchors"


@dataclass(frozen=True)
class MatchingReport:
    """checkpoints, metrics: in the same order; instability is against the checkpoint before. first, last: the matches
    of all images in the first and the last checkpoint. datasets: names, as far as the config has them. ranked_queries:
    they are proposals in the order of their scores, so that a query is another anchor when the order changes.
    """

    checkpoints: Sequence[RunCheckpoint]
    metrics: Sequence[MatchingMetrics]
    first: Sequence[ImageMatches]
    last: Sequence[ImageMatches]
    images: GroundTruthImages
    datasets: Sequence[str]
    ranked_queries: bool
    input_format: str
    device: str

    def layer_scores(self, beside: Sequence[LayerScores] = ()) -> list[LayerScores]:
        """Unstable scores of the checkpoints, and behind them those of other analyses, of other runs mostly: then the
        own names say of which run they are."""
        names = [checkpoint.name for checkpoint in self.checkpoints]
        if beside:
            paths = [Path(checkpoint.path).resolve() for checkpoint in self.checkpoints]
            names = [f"{path.parent.name}/{path.name}" for path in paths]
        own = [LayerScores(name, each.unstable_scores) for name, each in zip(names, self.metrics, strict=True)]
        return [*own, *beside]


def analyze_matching(
    checkpoints: Sequence[RunCheckpoint],
    cfg: DictConfig,
    *,
    origin: str,
    device: torch.device,
    num_images: int | None = None,
    top_k: int = 100,
    class_names: Sequence[str] | None = None,
    ema: bool = True,
) -> MatchingReport:
    """Run the checkpoints on the test images of a LazyConfig and measure their matching, with progress bars.

    Args:
        checkpoints: in order, at least one.
        cfg: with ``model`` and ``dataloader.test``; origin: what errors call it.
        num_images: so many images, evenly spread over the test set; None: all.
        top_k: of ATD.
        class_names: of the checkpoints, by class index: the data's classes are matched to them by name.
        ema: of checkpoints that hold both, take the averaged weights, not those of the last step.

    Raises ValueError (of various kinds) for a config, a dataset or a checkpoint that does not fit.
    """
    for name, value in (("--images", num_images), ("--top-k", top_k)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected a number of at least 1, got {value}")
    if "dataloader" not in cfg or cfg.dataloader.get("test") is None:
        raise ValueError(f"{origin} has no dataloader.test, whose images are measured on: give another --config-file")
    model = build_model(cfg, origin=origin)
    require_matcher(model, origin=origin)
    check_data(cfg, training=False)
    datasets = dataset_names(cfg.dataloader.test)
    if class_names is not None:
        for name in datasets:
            number_like_checkpoint(name, class_names, checkpoint=checkpoints[0].path)
    images = GroundTruthImages.of_test_set(cfg, num_images=num_images)
    batches = images.batches()
    metrics, previous, first, found = [], None, None, []
    for checkpoint in checkpoints:
        load_weights(model, checkpoint.path, purpose="evaluate", ema=ema)
        found = match_images(model.to(device), _with_progress(batches, checkpoint.name))
        metrics.append(matching_metrics(found, previous=previous, top_k=top_k))
        previous = [image.index_vector for image in found]
        first = first or found
    return MatchingReport(
        checkpoints=checkpoints,
        metrics=metrics,
        first=first,
        last=found,
        images=images,
        datasets=datasets,
        ranked_queries=getattr(model, "query_selection", None) is not None,
        input_format=cfg.model.get("input_format", "RGB"),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def _with_progress(batches: Iterable[list[dict]], name: str) -> Iterable[list[dict]]:
    return tqdm(batches, desc=name, unit="image", leave=False, disable=None)  # None: off where there is no terminal


# ------------------------------------------------------------------------------------------------------------- pictures


def check_output_folder(folder: str | os.PathLike | None) -> None:
    """Raises ValueError for an ``--output`` that no pictures can be written into. Makes nothing."""
    if folder is None:
        return
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder}: expected a folder for pictures, this is a file")
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"--output {folder}: expected a folder that can be written, got {above}")


def draw_matching(
    report: MatchingReport, folder: str | os.PathLike, *, pictures: int = 4, beside: Sequence[LayerScores] = ()
) -> list[str]:
    """Write curves over the checkpoints, bars of unstable scores, and pictures of anchors and objects; returns their
    paths.

    ``pictures``: how many images, evenly spread over those with matched objects; the first and the last checkpoint
    beside each other. ``beside``: more bars, of other analyses. No curves for one checkpoint, or for those that do not
    tell their iterations; no pictures without anchors.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    run = _as_run(report, folder)
    if run is not None:
        names = [name for name in report.metrics[-1].scalars() if name in run.metrics]
        metrics = [name for name in names if not name.startswith(UNSTABLE)]  # one for each layer: those are bars
        draw_curves([run], folder / CURVES, metrics=metrics, axes=["iterations" if run.epochs is None else "epochs"])
        written.append(str(folder / CURVES))
    groups = report.layer_scores(beside)
    if first_known_layer(groups) is not None:
        draw_layer_scores(groups, folder / BARS)
        written.append(str(folder / BARS))
    return written + _draw_pictures(report, folder, pictures)


def _as_run(report: MatchingReport, folder: Path) -> Run | None:
    """What the curves of training runs are drawn from."""
    iterations = [checkpoint.iterations for checkpoint in report.checkpoints]
    epochs = [checkpoint.epochs for checkpoint in report.checkpoints]
    if len(iterations) < 2 or None in iterations:
        return None
    values: dict[str, list[tuple[int, float]]] = {}
    for done, metrics in zip(iterations, report.metrics, strict=True):
        for name, value in metrics.scalars().items():
            values.setdefault(name, []).append((done, value))
    return Run(
        name=Path(report.checkpoints[0].path).resolve().parent.name,
        folder=folder,
        metrics={name: Series(*map(np.array, zip(*points, strict=True))) for name, points in values.items()},
        clock=None,
        epochs=None if None in epochs else Series(np.array(iterations), np.array(epochs)),
        notes=(),
    )


def _draw_pictures(report: MatchingReport, folder: Path, number: int) -> list[str]:
    with_pairs = [i for i, image in enumerate(report.last) if image.anchors is not None and len(image.pairs()[0])]
    number = min(number, len(with_pairs))
    chosen = [with_pairs[i * len(with_pairs) // number] for i in range(number)]
    ends = [(report.checkpoints[0], report.first), (report.checkpoints[-1], report.last)][-len(report.checkpoints) :]
    longest = max((float(matched_distances(found[i]).max()) for _, found in ends for i in chosen), default=0.0)
    written = []
    for place, i in enumerate(chosen, start=1):
        pixels = report.images.mapper(report.images.records[i])["image"].permute(1, 2, 0).numpy()
        path = folder / f"{ANCHORS}_{place}_{Path(report.images.names[i]).stem}.png"
        draw_anchors(
            pixels if report.input_format == "RGB" else pixels[:, :, ::-1],
            [Panel(_title(checkpoint), found[i]) for checkpoint, found in ends],
            path,
            longest=longest,
        )
        written.append(str(path))
    return written


def _title(checkpoint: RunCheckpoint) -> str:
    return checkpoint.name if checkpoint.epochs is None else f"{checkpoint.name} (epoch {checkpoint.epochs:.3g})"
