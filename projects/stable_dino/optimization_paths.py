#!/usr/bin/env python3
"""Table 1 of Stable-DINO, from the criteria of our configs: which predictions a matching encourages.

    python projects/stable_dino/optimization_paths.py

Two predictions compete for one object: A has the better box, B the better score. The one that is matched is a positive,
the other one background. Shown is the push on the logit of the object's class: minus the gradient of the class loss of
the last decoder layer, weight included.

DINO encourages whichever is matched, and so has two optimisation paths; with stable matching B is not encouraged even
if it is matched, and there is one. That takes a second object in the image, here one that prediction C has found:
targets are scaled up until the best of the image is its largest IoU, so that the target of an object that is alone
there does not tell A from B. The last row shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import instantiate
from torch import Tensor

from dinox.config import load_config
from dinox.structures import BACKGROUND, MATCHING, PredictionSet, Targets
from dinox.utils.tables import format_table

DEFAULT, STABLE = "dino/dino_r50_4scale_12ep", "stable_dino/stable_dino_r50_4scale_12ep"
SLIGHT = 0.1  # of the largest push in a row

WIDTH = HEIGHT = 0.2  # of the objects; a box of the same place and height, and a share of the width, has that IoU
PLACES = (0.25, 0.75)  # of the objects' centres, from left to right


@dataclass(frozen=True)
class Prediction:
    """iou: with its object. score: of the object's class. place: of the object that it lies on, an index."""

    iou: float
    score: float
    place: int = 0


A = Prediction(iou=0.85, score=0.3)
B = Prediction(iou=0.4, score=0.6)
C = Prediction(iou=0.9, score=0.7, place=1)


def class_pushes(criterion: Callable, predictions: Sequence[Prediction], objects: Sequence[int]) -> Tensor:
    """(N,): minus the gradient of the last layer's class loss on the logits of N predictions.

    objects: the object that each prediction is matched with, an index into PLACES, or BACKGROUND.
    """
    places = PLACES[: max(p.place for p in predictions) + 1]
    wanted = torch.tensor([[x, 0.5, WIDTH, HEIGHT] for x in places])
    targets = Targets.from_lists([torch.zeros(len(places), dtype=torch.long)], [wanted])
    boxes = torch.tensor([[PLACES[p.place], 0.5, WIDTH * p.iou, HEIGHT] for p in predictions])
    logits = torch.tensor([p.score for p in predictions]).logit().requires_grad_()
    index = torch.tensor([list(objects)])
    losses = criterion([PredictionSet(MATCHING, logits.view(1, 1, -1, 1), boxes[None, None], index)], targets)
    (gradient,) = torch.autograd.grad(losses["loss_class"], logits)
    return -gradient


def pushes_on_a_and_b(criterion: Callable, *, with_another_object: bool = True) -> list[float]:
    """On A and on B where A is matched, then on A and on B where B is."""
    others, their_objects = ([C], [C.place]) if with_another_object else ([], [])
    pushes = []
    for matched in (A, B):
        objects = [0 if prediction is matched else BACKGROUND for prediction in (A, B)]
        pushes += class_pushes(criterion, [A, B, *others], objects + their_objects)[:2].tolist()
    return pushes


def in_words(push: float, largest: float) -> str:
    if push == 0:
        return "no push"
    verb = "encourage" if push > 0 else "restrain"
    return verb + (" slightly" if abs(push) < SLIGHT * largest else "")


def make_table() -> str:
    default, stable = (instantiate(load_config(name).model.criterion) for name in (DEFAULT, STABLE))
    rows = {
        "default (DINO)": pushes_on_a_and_b(default),
        "stable (Stable-DINO)": pushes_on_a_and_b(stable),
        "stable, no other object": pushes_on_a_and_b(stable, with_another_object=False),
    }
    header = ["", "A matched:\npush on A", "\npush on B", "B matched:\npush on A", "\npush on B"]
    lines = []
    for name, pushes in rows.items():
        largest = max(map(abs, pushes))
        lines.append([name, *(f"{push:+.4f}" for push in pushes)])
        lines.append(["", *(in_words(push, largest) for push in pushes)])
    return format_table(header, lines)


def main() -> None:
    for name, prediction in (("A", A), ("B", B), ("C", C)):
        print(f"{name}: IoU {prediction.iou:.2f}, score {prediction.score:.2f}")
    print(f"\n{make_table()}")


if __name__ == "__main__":
    main()
