"""The formulas: instability (DN-DETR, equation 2), anchor-target distance (its section 3.2), ATD(k) (DINO, section
3.3), unstable scores (Stable-DINO, section 2.4.3).

Legend: A decoder layers, N queries, M objects of an image, P matched pairs of anchor and object.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinox.evaluation.matching.matches import ImageMatches
from dinox.structures import BACKGROUND

SMALL_AREA = 32**2
"""Pixels; objects below are small (COCO's evaluation)."""

UNSTABLE = "matching/unstable_"
"""The name of an unstable score in metrics.json, before the number of the decoder layer from 0 on, as of losses."""


def instability(previous: Sequence[Tensor], current: Sequence[Tensor]) -> float:
    """IS of DN-DETR (equation 2): how many queries of an image have another match than before, averaged over images.

    Args:
        previous, current: for the same images in the same order the index vectors (N,), see :class:`ImageMatches`.

    An object that goes from one query to another counts twice, so that IS is at most twice the number of objects per
    image. Images without objects count, with 0.
    """
    if not current or len(previous) != len(current):
        raise ValueError(f"instability: expected matches of the same images, got {len(previous)} and {len(current)}")
    changed = 0
    for before, now in zip(previous, current, strict=True):
        if before.shape != now.shape:
            raise ValueError(
                f"instability: expected the same queries, got {len(before)} and {len(now)}: compare checkpoints of one "
                "model"
            )
        changed += int((before != now).sum())
    return changed / len(current)


def unstable_scores(images: Sequence[ImageMatches]) -> tuple[float | None, ...]:
    """Of each decoder layer, first to last, in percent: how many of all objects in all images have another query than
    in the layer before (Stable-DINO, section 2.4.3).

    The first layer is compared with the encoder's selected proposals, whose order is that of the queries; None where
    there are none of the kind. An object that no query is left for in both layers has not changed. All None without
    objects.
    """
    num_layers = len(images[0].target_index)
    changed, objects = torch.zeros(num_layers, dtype=torch.int64), 0
    for image in images:
        count = len(image.boxes)
        queries = matched_queries(image.target_index, count)
        before = queries[:1] if image.encoder_index is None else matched_queries(image.encoder_index[None], count)
        changed += (queries != torch.cat([before, queries[:-1]])).sum(1)
        objects += count
    known = [all(image.encoder_index is not None for image in images)] + [True] * (num_layers - 1)
    scores = [100 * count / max(objects, 1) for count in changed.tolist()]
    return tuple(score if objects and is_known else None for score, is_known in zip(scores, known, strict=True))


def matched_queries(target_index: Tensor, num_objects: int) -> Tensor:
    """The other way round: (A, N) the object of every query -> (A, M) int64 the query of every object, -1 = none."""
    layers, queries = (target_index != BACKGROUND).nonzero(as_tuple=True)
    found = torch.full((len(target_index), num_objects), BACKGROUND)
    found[layers, target_index[layers, queries].long()] = queries
    return found


def anchor_target_distances(anchors: Tensor, boxes: Tensor) -> Tensor:
    """L1 distances of matched pairs: (P, 4) or (P, 2) and (P, 4) -> (P,), all normalised cxcywh.

    Of anchor boxes over all four numbers, as DINO's equation; of anchor points over the two of the centres.
    """
    return (anchors - boxes[:, : anchors.shape[1]]).abs().sum(-1)


def matched_distances(image: ImageMatches) -> Tensor:
    """(P,) of the pairs of the last decoder layer, in their order. For images with anchors."""
    queries, objects = image.pairs()
    return anchor_target_distances(image.anchors[queries], image.boxes[objects])


def average_top_k_distance(distances: Tensor, k: int) -> float | None:
    """ATD(k) of DINO (section 3.3): the mean of the k largest distances (P,); of all where there are fewer, None of
    none."""
    if len(distances) == 0:
        return None
    return float(distances.double().topk(min(k, len(distances))).values.mean())


@dataclass(frozen=True)
class MatchingMetrics:
    """What one set of weights gives on some images; None for what cannot be told.

    images: how many; objects: in them; matched: those that a query is left for; small, matched_small: with a box of
    less than 32 x 32 pixels in the image file. instability: against the matches before. anchor_target_l1: the mean over
    all matched objects of all images. atd, atd_small: ATD(``top_k``) of all and of the small ones. anchors: "boxes",
    "points", or None where queries have none, and so no distances. unstable_scores: of each decoder layer, in percent.
    """

    images: int
    objects: int
    matched: int
    small: int
    matched_small: int
    top_k: int
    anchors: str | None
    instability: float | None
    anchor_target_l1: float | None
    atd: float | None
    atd_small: float | None
    unstable_scores: tuple[float | None, ...]

    def scalars(self) -> dict[str, float]:
        """By the names in metrics.json, without those that are None."""
        values = {
            "matching/instability": self.instability,
            "matching/anchor_target_l1": self.anchor_target_l1,
            f"matching/atd_{self.top_k}": self.atd,
            f"matching/atd_{self.top_k}_small": self.atd_small,
            **{f"{UNSTABLE}{layer}": score for layer, score in enumerate(self.unstable_scores)},
        }
        return {name: value for name, value in values.items() if value is not None}


def matching_metrics(
    images: Sequence[ImageMatches], *, previous: Sequence[Tensor] | None = None, top_k: int = 100
) -> MatchingMetrics:
    """All measures of one set of weights.

    Args:
        images: at least one.
        previous: the index vectors that the same images had before; None: instability is unknown.
        top_k: DINO's k.
    """
    is_small = torch.cat([image.areas[image.pairs()[1]] < SMALL_AREA for image in images])
    distances, kind = None, None
    if all(image.anchors is not None for image in images):
        kind = "points" if images[0].anchors.shape[-1] == 2 else "boxes"
        distances = torch.cat([matched_distances(image) for image in images])
    has_mean = distances is not None and len(distances) > 0
    return MatchingMetrics(
        images=len(images),
        objects=sum(len(image.boxes) for image in images),
        matched=len(is_small),
        small=sum(int((image.areas < SMALL_AREA).sum()) for image in images),
        matched_small=int(is_small.sum()),
        top_k=top_k,
        anchors=kind,
        instability=None if previous is None else instability(previous, [image.index_vector for image in images]),
        anchor_target_l1=float(distances.double().mean()) if has_mean else None,
        atd=None if distances is None else average_top_k_distance(distances, top_k),
        atd_small=None if distances is None else average_top_k_distance(distances[is_small], top_k),
        unstable_scores=unstable_scores(images),
    )
