"""Which training images come how often, and as how manieth."""

import logging
from collections.abc import Iterator, Sequence

from detectron2.data.samplers import RepeatFactorTrainingSampler
from torch.utils.data import Sampler

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
    """An index into a dataset that knows its place in the stream of indices, ``number``."""

    number: int

    def __new__(cls, index: int, number: int) -> "Visit":
        visit = super().__new__(cls, index)
        visit.number = number
        return visit


class NumberedSampler(Sampler):
    """The indices of another sampler as ``Visit``. Every worker of a DataLoader goes through all of them, so that a
    number does not depend on how many there are."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[Visit]:
        for number, index in enumerate(self.sampler):
            yield Visit(index, number)
