"""Does an exported file compute what the model computes?

Two runtimes round differently. Where the model ranks (the query selection, and post-processing inside of the file),
scores that differ by no more than rounding may change places, and everything behind a ranking changes with it: a query
gets another anchor box, and all others see it in self-attention. Comparing such outputs number by number would find
differences where there is no fault, and matching them up afterwards could hide faults. So the comparison has two parts,
and both have to hold:

1. each ranking that the file made is a ranking by torch's own scores: torch's score of what the file has put at a rank
   differs by at most the tolerance from the score that belongs there, at every rank, and nothing stands there twice;
2. on the file's rankings, torch's outputs are those of the file, number by number, at most the tolerance apart.

Scores, logits and boxes (as shares of the image) have one tolerance; classes have to be equal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dinox.export.description import FileDescription
from dinox.export.postprocess import pairs_of, ranking_of, ranking_part
from dinox.export.runners import Runner, count_outputs
from dinox.export.wrapper import Rankings, TensorDetector, count_moved, rank_by_rank
from dinox.structures.boxes import image_size_as_box

TOLERANCE = 1e-3
BATCHES = (1, 4)
SHARES = ((0.6, 0.8), (0.64, 0.4), (0.45, 0.51))
"""Height and width of the images, by the length of the short edge."""
ODD = (0, 0), (0, 0), (1, 2)
"""Pixels to add, so that strides leave remainders."""
_UNKNOWN_SHORT_EDGE = 800
_RECTANGLES = 8  # in an image


@dataclass(frozen=True)
class Case:
    """Images to compare on."""

    batch: int
    height: int
    width: int


@dataclass(frozen=True)
class Comparison:
    """One case. The differences are the largest ones; inf where there is more than numbers that differ.

    logits: of logits, or of scores where post-processing is inside. boxes: as shares of the image. ranking: of scores
    at equal ranks. moved: how many things stand at another rank than in torch. model_seconds, file_seconds: one run
    each.
    """

    case: Case
    logits: float
    boxes: float
    ranking: float
    moved: int
    model_seconds: float
    file_seconds: float

    @property
    def worst(self) -> float:
        return max(self.logits, self.boxes, self.ranking)


def default_cases(description: FileDescription) -> list[Case]:
    """Wide, high and odd images, alone and four together, as far as the file takes them."""
    edge = description.short_edge or _UNKNOWN_SHORT_EDGE
    sizes = [(round(edge * h) + y, round(edge * w) + x) for (h, w), (y, x) in zip(SHARES, ODD, strict=True)]
    sizes = sizes if description.size is None else [description.size]
    batches = [description.batch] if description.batch else BATCHES
    return [Case(batch, *_enlarged(size, description)) for size in sizes for batch in batches]


def _enlarged(size: Sequence[int], description: FileDescription) -> tuple[int, int]:
    """Up to what the file takes; an odd size stays odd."""
    height, width = size
    while True:
        try:
            description.check_size(height, width, path="")
        except ValueError:
            height, width = height + height // 2, width + width // 2
        else:
            return height, width


def check_cases(cases: Sequence[Case], description: FileDescription) -> None:
    """Raises ValueError for images that the file cannot run on."""
    for case in cases:
        description.check_size(case.height, case.width, path="images to compare on")
        if description.batch not in (None, case.batch):
            raise ValueError(f"images to compare on: expected {description.batch} at once, got {case.batch}")


def varied_images(case: Case, *, seed: int) -> Tensor:
    """Images (B, 3, H, W) of 0..255 with smooth, sharp and fine content, each another one."""
    generator = torch.Generator().manual_seed(seed)
    height, width = case.height, case.width
    colours = torch.rand(case.batch, 3, 4, 5, generator=generator) * 255
    images = F.interpolate(colours, size=(height, width), mode="bilinear")
    for image in images:
        for _ in range(_RECTANGLES):
            y, x, h, w, *colour = torch.rand(7, generator=generator).tolist()
            top, left = int(y * height), int(x * width)
            part = image[:, top : top + 1 + int(h * height / 2), left : left + 1 + int(w * width / 2)]
            part[:] = torch.tensor(colour)[:, None, None] * 255
    noise = torch.randn(images.shape, generator=generator) * 8
    return (images + noise).clamp(0, 255).round()


def compare_all(detector: TensorDetector, runner: Runner, cases: Sequence[Case]) -> Iterator[Comparison]:
    """Compare on each case. ``detector``: the model as it is, with its own operators; ``runner``: with rankings."""
    compare(detector, runner, cases[0], varied_images(cases[0], seed=0))  # the first run of either takes longer
    for seed, case in enumerate(cases):
        yield compare(detector, runner, case, varied_images(case, seed=seed))


@torch.no_grad()
def compare(detector: TensorDetector, runner: Runner, case: Case, images: Tensor) -> Comparison:
    """images: (B, 3, H, W), RGB of 0..255."""
    images = _as_input(images, detector, runner.description)
    start = time.perf_counter()
    outputs = runner(images)
    file_seconds = time.perf_counter() - start
    num_outputs = count_outputs(runner.description)
    outputs, rankings = outputs[:num_outputs], _name_rankings(detector, outputs[num_outputs:], outputs[num_outputs - 1])

    start = time.perf_counter()
    memory = detector.encode(images)
    expected = detector.detect(memory, images, rankings)
    model_seconds = time.perf_counter() - start
    ranked = list(_scores_and_rankings(detector, memory, rankings))
    logits, boxes = _differences(outputs, expected, images, runner.description)
    return Comparison(
        case=case,
        logits=logits,
        boxes=boxes,
        ranking=max([rank_by_rank(*pair) for pair in ranked], default=0.0),
        moved=sum(count_moved(*pair) for pair in ranked),
        model_seconds=model_seconds,
        file_seconds=file_seconds,
    )


def _as_input(images: Tensor, detector: TensorDetector, description: FileDescription) -> Tensor:
    if description.preprocessing == "inside":
        return images.to(getattr(torch, description.input_dtype))
    if description.input_format == "BGR":
        images = images.flip(1)
    return (images - detector.model.pixel_mean) / detector.model.pixel_std


def _name_rankings(detector: TensorDetector, found: Sequence[Tensor], last_output: Tensor) -> Rankings:
    """The file's rankings stand in the order in which they are made. last_output: classes where there are pairs."""
    names = ["tokens"] if detector.model.query_selection is not None else []
    names += ["pairs"] if detector.postprocessing == "inside" else []
    if len(found) != len(names):
        raise RuntimeError(f"the file makes {len(found)} rankings, but the model is known to make {names}")
    rankings = dict(zip(names, found))
    if "pairs" in rankings:
        ranked, model = rankings["pairs"], detector.model
        rankings["pairs"] = pairs_of(ranking_of(model), ranked, last_output, model.num_classes)
    return Rankings(**rankings)


def _scores_and_rankings(
    detector: TensorDetector, memory: object, rankings: Rankings
) -> Iterator[tuple[Tensor, Tensor]]:
    if rankings.tokens is not None:
        yield detector.model.query_selection.token_scores(memory), rankings.tokens
    if rankings.pairs is not None:
        logits, _ = detector.predict(memory, rankings)
        part = ranking_part(detector.model)
        yield from part.choices(part.scores(logits), rankings.pairs)


def _differences(
    outputs: Sequence[Tensor], expected: Sequence[Tensor], images: Tensor, description: FileDescription
) -> tuple[float, float]:
    """Of logits (or scores), and of boxes."""
    if description.postprocessing == "outside":
        (logits, boxes), (expected_logits, expected_boxes) = outputs, expected
        return _difference(logits, expected_logits), _difference(boxes, expected_boxes)
    (boxes, scores, classes), (expected_boxes, expected_scores, expected_classes) = outputs, expected
    pixels = image_size_as_box(images.shape[-2:], boxes)
    same = torch.equal(classes, expected_classes)
    return (
        _difference(scores, expected_scores) if same else float("inf"),
        _difference(boxes / pixels, expected_boxes / pixels),
    )


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    difference = (found.double() - expected.double()).abs().max()
    return float(difference.nan_to_num(nan=float("inf")))
