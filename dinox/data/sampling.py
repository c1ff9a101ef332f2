"""Which training images come how often, and as how manieth."""

import logging
import os
from collections.abc import Iterator, Sequence

from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import Sampler, get_worker_info

from dinox.data.position import Position

logger = logging.getLogger(__name__)

REPEAT_THRESHOLD = 1e-3
"""Of LVIS (Gupta et al. 2019, appendix B.2)."""


class RepeatFactorSampling:
    """Images with rare classes come more often (Gupta et al. 2019, appendix B.2): detectron2's sampler, for dicts.

    threshold: classes that are in a smaller share of the images are repeated. seed: detectron2's; None: a random one
    that all ranks share.
    """

    def __init__(self, *, threshold: float = REPEAT_THRESHOLD, seed: int | None = None) -> None:
        if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise ValueError(f"threshold: expected a share of the images from 0 to 1, got {threshold!r}")
        self.threshold, self.seed = threshold, seed

    def __call__(self, dicts: Sequence[dict]) -> Sampler:
        annotated = [{"annotations": record.get("annotations", ())} for record in dicts]
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(annotated, self.threshold)
        logger.info(
            "Repeat-factor sampling: %d images come as %.0f in an epoch (schedule.images_per_epoch)",
            len(dicts),
            factors.sum().item(),
        )
        return RepeatFactorTrainingSampler(factors, seed=self.seed)


class Visit(int):
    """An index into a dataset that knows its place in the stream of indices of all ranks, ``number``."""

    number: int

    def __new__(cls, index: int, number: int) -> "Visit":
        visit = super().__new__(cls, index)
        visit.number = number
        return visit


class NumberedSampler(Sampler):
    """The indices of another sampler as ``Visit``, from a position on.

    Every worker of a DataLoader goes through all of them, so that a number does not depend on how many there are. Those
    of the images that were trained on are passed over, which takes a second for some millions.

    ``start``: where iterating begins; may be set before.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.start = Position()
        self._rank, self._ranks = comm.get_rank(), comm.get_world_size()  # workers may not know them
        self._drawn_seed = comm.shared_random_seed() if _seed_of(sampler) is None else None

    @property
    def seed(self) -> int:
        """What the order of the images depends on, and their augmentations do.

        That of detectron2's samplers, which draw one unless they are given it. A sampler that has none has to repeat
        its order by other means; then only augmentations depend on this.
        """
        return self._drawn_seed if self._drawn_seed is not None else _seed_of(self.sampler)

    @seed.setter
    def seed(self, seed: int) -> None:
        if self._drawn_seed is not None:
            self._drawn_seed = seed
        else:
            self.sampler._seed = seed

    @property
    def repeats_its_order(self) -> bool:
        """Is it known to?"""
        return self._drawn_seed is None

    def __iter__(self) -> Iterator[Visit]:
        _leave_signals_to_the_main_process()
        for step, index in enumerate(self.sampler):
            number = step * self._ranks + self._rank
            if not self.start.is_done(number):
                yield Visit(index, number)


def _seed_of(sampler: Sampler) -> int | None:
    """Of the samplers whose order depends on nothing else."""
    # RandomSubsetTrainingSampler, which is a TrainingSampler too, has drawn its subset by another one.
    return sampler._seed if type(sampler) in (TrainingSampler, RepeatFactorTrainingSampler) else None


def _leave_signals_to_the_main_process() -> None:
    """In a worker. Ctrl-C and many schedulers signal a whole process group: training is to finish its step, which takes
    workers, and ends them itself afterwards."""
    if get_worker_info() is not None:
        # Not ignored: the main process ends workers by SIGTERM.
        os.setpgid(0, 0)
