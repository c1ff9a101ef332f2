"""Measures of matching in training, for curves over epochs (DN-DETR and Stable-DINO, figure 3; DINO, figure 4)."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from dinox.evaluation.matching import GroundTruthImages, ImageMatches, match_images, matching_metrics, require_matcher
from dinox.utils.random_state import unchanged_random_state

logger = logging.getLogger(__name__)


class MatchingMetricsHook(HookBase):
    """Writes ``matching/instability``, ``matching/anchor_target_l1``, ``matching/atd_100``,
    ``matching/atd_100_small`` and ``matching/unstable_0`` to ``_5`` (of each decoder layer) into the event storage. A
    value that there is none for (the instability of the first time, distances of queries without anchors, the first
    layer's unstable score where queries do not start from proposals of the encoder) is left out.

    The matches that the next ones are compared with go through checkpoints, so register it before the hook that writes
    those: a resumed run then compares with what the run of the checkpoint had last. It does not touch the
    random numbers of training, which goes on as it would without.

    In distributed runs each rank matches its share of the images, and the first one writes. A rank that fails stops
    all of them.

    Args:
        model: not wrapped for distributed training: the ranks' shares may differ by an image.
        images: always the same.
        period: iterations from one measurement to the next; the last iteration is measured anyway. 0: only that.
        top_k: of ATD.
        whole: makes of the model one that runs without the other ranks.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        images: GroundTruthImages,
        period: int,
        top_k: int = 100,
        whole: Callable[[nn.Module], nn.Module] = lambda model: model,
    ):
        require_matcher(model, origin="train.matching_metrics.enabled=True")
        self._model, self._images, self._batches = model, images, images.batches()
        self._period, self._top_k, self._whole = period, top_k, whole
        self._previous: list[Tensor] | None = None

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self._measure()

    def _measure(self) -> None:
        start = time.perf_counter()
        with unchanged_random_state():
            found = _of_all_ranks(self._whole(self._model), self._batches)
        metrics = matching_metrics(found, previous=self._previous, top_k=self._top_k)
        self._previous = [image.index_vector for image in found]
        if comm.is_main_process():
            self.trainer.storage.put_scalars(**metrics.scalars(), smoothing_hint=False)
            values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.scalars().items())
            seconds = time.perf_counter() - start
            logger.info("Matching of %d test images (%.1f s): %s", metrics.images, seconds, values or "nothing to tell")

    def state_dict(self) -> dict[str, Any]:
        """Empty before the first measurement: then there is nothing to keep."""
        if self._previous is None:
            return {}
        return {"images": self._images.names, "index_vectors": torch.stack(self._previous)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["images"] == self._images.names:
            self._previous = list(state["index_vectors"])
        else:
            logger.warning(
                "Matching is measured on other images than before this run was resumed: no instability the first time"
            )


def _of_all_ranks(model: nn.Module, batches: Iterable[list[dict]]) -> Sequence[ImageMatches]:
    """Of the shares of all ranks, the same on all of them. An error of one of them is raised on all, which would wait
    for it in vain."""
    own: list[ImageMatches] = []
    error: Exception | None = None
    try:
        own = match_images(model, batches)
    except Exception as caught:
        error = caught
    shares = comm.all_gather((own, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    failed = next(((rank, text) for rank, (_, text) in enumerate(shares) if text is not None), None)
    if failed is not None:
        raise ValueError(f"matching cannot be measured on rank {failed[0]}: {failed[1]}")
    return [image for share, _ in shares for image in share]
