"""Federated loss for data with many classes (Zhou et al. 2021, "Probabilistic two-stage detection", CenterNet2).

Legend: A prediction sets of one group (decoder layers), B images, W images of the whole batch, N queries, K classes,
F classes drawn.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from dinox.losses.softmax import SoftmaxLoss
from dinox.structures import MatchedPredictions
from dinox.utils.image_random import image_generator
from dinox.utils.ranges import check_range, check_whole, is_number

NUM_CLASSES_DRAWN = 50
FREQUENCY_POWER = 0.5
MAX_POWER = 10
"""Counts to a greater power would soon be infinite."""

DrawClasses = Callable[[Tensor, Tensor, int, torch.Generator | None], Tensor]


def draw_classes(present: Tensor, weights: Tensor, number: int, generator: torch.Generator | None = None) -> Tensor:
    """All classes that are present, and others up to ``number`` in all, drawn by weight without replacement.

    present: (K,) bool. weights: (K,) float, >= 0; classes of weight 0 come last. All on the CPU. Returns (F,) int64,
    ascending; F = min(K, max(number, classes present)).
    """
    # The classes with the greatest weight / Exp(1) are a draw without replacement (an exponential race).
    race = weights.double() / torch.empty(len(weights), dtype=torch.float64).exponential_(generator=generator)
    race[present] = float("inf")
    total = min(len(weights), max(number, int(present.sum())))
    return race.topk(total).indices.sort().values


class FederatedLoss:
    """Another classification loss on some of the classes only: those that are present, and a random draw of others.

    Other classes give neither loss nor gradient: LVIS says for few classes of an image that they are not in it, and a
    rare class would drown in the background of all other images.

    "Present" are the classes of all objects that a query group sees in the batch. Every call draws anew: all decoder
    layers of a group share their classes, every group and the encoder have their own (CenterNet2 draws for every
    stage). Every rank draws for itself, from its own images; the parts of its batch have the same classes, if images
    have seeds. Of the ``num_classes_drawn`` none is the background, which takes one of them in CenterNet2's code.

    Args:
        loss: of sigmoid logits, such as ``FocalLoss``; it is called with the drawn classes only.
        image_counts: in how many images every class is, by class index, or a function that says it, which is called
            when the loss is first needed. None: all classes are drawn alike.
        num_classes_drawn: with those that are present, which are taken even if they are more.
        power: classes are drawn in proportion to ``image_counts ** power``; from 0 to 10.
        draw: see ``draw_classes``.
        generator: on the CPU; None: that of the batch's first image, or torch's own if images have none.
    """

    def __init__(
        self,
        *,
        loss: Callable[[MatchedPredictions], Tensor],
        image_counts: Sequence[int] | Callable[[], Sequence[int]] | None,
        num_classes_drawn: int = NUM_CLASSES_DRAWN,
        power: float = FREQUENCY_POWER,
        draw: DrawClasses = draw_classes,
        generator: torch.Generator | None = None,
    ):
        check_whole("num_classes_drawn", num_classes_drawn, 1)
        check_range("power", power, 0, MAX_POWER)
        if image_counts is not None and not callable(image_counts):
            check_counts(image_counts)
        self.loss, self.image_counts = loss, image_counts
        self.num_classes_drawn, self.power = num_classes_drawn, power
        self.draw, self.generator = draw, generator
        if isinstance(loss, SoftmaxLoss):
            raise ValueError("loss: expected one of sigmoid logits, such as FocalLoss, got a SoftmaxLoss")
        for name in ("normaliser", "groups"):  # what the criterion looks for
            if hasattr(loss, name):
                setattr(self, name, getattr(loss, name))
        self._weights: Tensor | None = None

    def __call__(self, matched: MatchedPredictions) -> Tensor:
        """Returns (A,): what the loss gives for the classes drawn."""
        num_classes, targets = matched.logits.shape[-1], matched.targets.batch
        labels = torch.where(targets.valid, targets.labels, num_classes)  # (W, M)
        present = torch.zeros(num_classes + 1, dtype=torch.bool, device=labels.device)
        present = present.index_fill(0, labels.flatten(), True)[:-1].cpu()
        drawn = self.draw(present, self._weights_of(num_classes), self.num_classes_drawn, self._generator(matched))
        return self.loss(of_classes(matched, drawn.to(matched.labels.device)))

    def _generator(self, matched: MatchedPredictions) -> torch.Generator | None:
        seeds = matched.targets.batch.seeds
        if self.generator is not None or seeds is None:
            return self.generator
        return image_generator(seeds[0], f"classes of {matched.group}")

    def _weights_of(self, num_classes: int) -> Tensor:
        """(K,) float64 on the CPU."""
        if self._weights is None:
            counts = self.image_counts() if callable(self.image_counts) else self.image_counts
            counts = [1] * num_classes if counts is None else list(counts)
            check_counts(counts)
            self._weights = torch.tensor(counts, dtype=torch.float64) ** self.power
        if len(self._weights) != num_classes:
            raise ValueError(
                f"image_counts: expected one number for each of the {num_classes} classes that have a logit, got "
                f"{len(self._weights)}. Give the counts of the dataset that is trained on, and a loss of sigmoids."
            )
        return self._weights


def check_counts(counts: Sequence[int]) -> None:
    """Raises ValueError unless all are finite numbers of at least 0, and one of them is more."""
    if isinstance(counts, str) or not isinstance(counts, Iterable):
        raise ValueError(f"image_counts: expected a number for each class, got {counts!r}")
    for index, count in enumerate(counts):
        if not is_number(count) or not 0 <= count < math.inf:
            raise ValueError(f"image_counts: expected numbers of images, 0 or more, got {count!r} for class {index}")
    if not any(counts):
        raise ValueError(
            f"image_counts: expected an image for at least one of {len(counts)} classes, got none. Count the classes "
            "of the dataset that is trained on, or set image_counts=null to draw all alike."
        )


def of_classes(matched: MatchedPredictions, classes: Tensor) -> MatchedPredictions:
    """The same predictions as if there were only these classes, (F,) int64, in this order; all objects' are there."""
    num_classes = matched.logits.shape[-1]
    new_labels = torch.full((num_classes + 1,), len(classes), device=classes.device)  # what is none of them: background
    new_labels = new_labels.scatter(0, classes, torch.arange(len(classes), device=classes.device))
    return dataclasses.replace(
        matched,
        logits=matched.logits.index_select(-1, classes),
        labels=new_labels[matched.labels],
        targets=dataclasses.replace(matched.targets, labels=new_labels[matched.targets.labels]),
    )
