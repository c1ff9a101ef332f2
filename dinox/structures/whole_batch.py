"""What a training step tells the model of each image beside the image: further keys of detectron2's input dicts.

Models that do not know them ignore them. With them, the gradients of parts of a batch add up to those of the whole
batch, and what is drawn at random for an image does not depend on the images beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NOISE_SEED = "noise_seed"
"""Key of a whole number: the seed of all that is drawn for this image in this step."""

WHOLE_BATCH = "whole_batch"
"""Key of a ``WholeBatch``; where it is missing, the images that the model is given are all of the step's."""


@dataclass(frozen=True)
class WholeBatch:
    """All images of one step of this rank, of which the model is given a few that follow each other.

    inputs: their dicts, with ground truth and noise seeds. start: the place in ``inputs`` of the first one given.
    max_objects: of the fullest image of all ranks in this step; None: the ranks have not told each other.
    """

    inputs: Sequence[dict[str, Any]]
    start: int
    max_objects: int | None = None

    @classmethod
    def of(cls, batched_inputs: Sequence[dict[str, Any]]) -> WholeBatch:
        """That of a model's inputs, which are the whole batch themselves unless they say otherwise."""
        return batched_inputs[0].get(WHOLE_BATCH) or cls(batched_inputs, 0)
