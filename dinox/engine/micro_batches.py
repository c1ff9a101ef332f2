"""A step's batch in parts, for batches that do not fit into memory at once: gradients of the parts are added up.

A model whose class has ``losses_add_up = True`` divides its losses by what the whole batch holds, all ranks together
(see ``dinox.structures.whole_batch``): the parts' losses and gradients add up to those of the whole batch, exactly so
for images of one size. Of any other model the losses of a part count by its share of the images, as if they were means
over images.

What has statistics of a batch (a BatchNorm that learns) or draws for all of it at once (dropout) is not the same in
parts; a log line warns of the former.

A step ends when all of its parts are done: checkpoints, schedules and positions in the data know nothing of parts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dinox.structures.whole_batch import NOISE_SEED, WHOLE_BATCH, WholeBatch
from dinox.utils.distributed import max_across_ranks, unwrapped
from dinox.utils.random_state import hashed_seed
from dinox.utils.sharded_tensors import has_shards

logger = logging.getLogger(__name__)

SETTING = "train.accumulation_steps"


@dataclass(frozen=True)
class MicroBatch:
    """Images whose gradients are computed at once. share: of the whole batch's images. is_last: of the step."""

    inputs: list[dict[str, Any]]
    share: float
    is_last: bool


class MicroBatches:
    """
    Args:
        accumulation_steps: parts of every batch, as equal as possible; no more than a rank's batch has images.
        seed: says the run's. With it every image gets a noise seed, which depends on the run, on the iteration and on
            ``image_id`` alone; the same image twice in a step has the same noise. An image without an id is told by
            its place in the batch of all ranks. None: the model draws from torch's own generators.
    """

    def __init__(self, *, accumulation_steps: int = 1, seed: Callable[[], int] | None = None):
        if isinstance(accumulation_steps, bool) or not isinstance(accumulation_steps, int) or accumulation_steps < 1:
            raise ValueError(f"{SETTING}: expected a whole number of at least 1, got {accumulation_steps!r}")
        self.accumulation_steps, self._seed = accumulation_steps, seed

    def split(self, batch: list[dict[str, Any]], iteration: int) -> Iterator[MicroBatch]:
        """The parts of this rank's batch of an iteration, in its order."""
        check_accumulation(self.accumulation_steps, len(batch))
        if self._seed is not None:
            batch = [x | {NOISE_SEED: self._noise_seed(x, place, iteration)} for place, x in enumerate(batch)]
        if self.accumulation_steps == 1:
            yield MicroBatch(batch, share=1.0, is_last=True)
            return
        most = max_across_ranks(max(len(x.get("instances", ())) for x in batch))  # once for all parts
        for start, end in pairwise(self._bounds(len(batch))):
            whole = WholeBatch(batch, start, max_objects=most)
            inputs = [x | {WHOLE_BATCH: whole} for x in batch[start:end]]
            yield MicroBatch(inputs, share=len(inputs) / len(batch), is_last=end == len(batch))

    def _bounds(self, size: int) -> list[int]:
        fewest, more = divmod(size, self.accumulation_steps)
        return list(accumulate((fewest + (part < more) for part in range(self.accumulation_steps)), initial=0))

    def _noise_seed(self, x: Mapping[str, Any], place: int, iteration: int) -> int:
        # Rank r of W has every W-th image of the stream, from the r-th one on (see dinox.data.position).
        name = x.get("image_id", f"place {place * comm.get_world_size() + comm.get_rank()}")
        return hashed_seed(self._seed(), iteration, name)


def check_accumulation(accumulation_steps: int, images: int) -> None:
    """Raises ValueError unless ``images``, a rank's batch, are enough for one in each part."""
    if images < accumulation_steps:
        raise ValueError(
            f"{SETTING}={accumulation_steps}: expected at most the {images} images of a process's batch, one in each "
            f"step. Lower it, or raise dataloader.train.total_batch_size"
        )


def warn_of_batch_norms(model: nn.Module, accumulation_steps: int) -> None:
    """Where there are parts, and layers that normalise each of them by itself."""
    found = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if accumulation_steps > 1 and found:
        logger.warning(
            "%s=%d: %d BatchNorm layers (the first one is %s) have statistics of a part of the batch, so that results "
            "are others than with the whole batch at once. FrozenBN or GN are the same for any batch",
            SETTING,
            accumulation_steps,
            len(found),
            found[0],
        )


def losses_add_up(model: nn.Module) -> bool:
    """Are a part's losses shares of those of the whole batch already?"""
    return getattr(unwrapped(model), "losses_add_up", False)


def gradients_stay_apart(model: nn.Module) -> AbstractContextManager:
    """Ranks do not exchange gradients of what is computed inside: they do so with those of the last part."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return _sharded_gradients_stay_apart(model) if has_shards(model) else nullcontext()


@contextmanager
def _sharded_gradients_stay_apart(model: nn.Module) -> Iterator[None]:
    """FSDP then keeps whole gradients until the last part."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def added(total: Mapping[str, Tensor], losses: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """``total`` and so much of ``losses``, which go no further back."""
    sums = dict(total)
    for name, loss in losses.items():
        loss = loss.detach() if share == 1 else loss.detach() * share
        sums[name] = sums[name] + loss if name in sums else loss
    return sums
