"""What a checkpoint holds beside weights and optimizer so that a resumed run is the one that was not interrupted.

Of each rank the states of its random number generators and its position in the data; of the run its seed, its batch
size and its config. Resumed on as many ranks with the same batch, the run goes on as if nothing had happened: bit for
bit on the CPU. Otherwise it goes on after as many images:

* another number of ranks: the images that were not trained on are shared out anew, none is lost or comes twice; random
  numbers are seeded anew from (seed, iteration, rank);
* another batch size: the iteration to continue with is that at which the new batches have seen as many images, so that
  schedules, which are in epochs, go on where they were; the learning rate stays, unless ``train.lr_scaling`` has a
  rule, which is then applied to the new batch (see ``dinox.engine.lr_scaling``);
* another ``train.accumulation_steps``: nothing to be done, since checkpoints are written between steps;
* a checkpoint without this state (of detectron2's own script, or of an earlier version): as with another number of
  ranks, by the iterations done. The order of the images is the same only if train.seed is.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dinox.data.skipping import SkippingLoader
from dinox.utils.random_state import own_generators, random_state, set_random_state
from dinox.utils.tables import format_table

logger = logging.getLogger(__name__)

_SHOWN = 60  # characters of a value

_AS_WITHOUT = {"train.accumulation_steps": 1, "train.parallel": "ddp", "train.use_ema_weights": True}
"""Values of settings that do the same as none."""
_NOT_OF_TRAINING = ("train.best_checkpoint", "train.timeout")
"""Settings, or sections of them, that weights do not depend on."""


class RunState:
    """
    Args:
        model: whose own generators, if it has any, belong to the state.
        loader: of training. One of another kind than SkippingLoader has no position.
        seed: of the run; that of a checkpoint takes its place.
        settings: of the config, see ``plain_settings``.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        loader: Iterable[list[dict]],
        seed: int,
        total_batch_size: int | None,
        settings: Mapping[str, Any],
    ):
        self._model, self._loader = model, loader
        self._seed, self._batch, self._settings = seed, total_batch_size, dict(settings)
        self._resumed: dict[str, Any] | None = None
        self._reseed = False
        self.images_before = 0
        """Images that the checkpoint was trained on: what it counts, whatever batches are now."""

    @property
    def seed(self) -> int:
        return self._seed

    def of_rank(self) -> dict[str, Any]:
        """What only this rank knows."""
        data = self._loader.state_dict() if isinstance(self._loader, SkippingLoader) else None
        return {"random": random_state(own_generators(self._model)), "data": data}

    def of_run(self, ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """``ranks``: ``of_rank`` of all of them."""
        shared = {"seed": self._seed, "total_batch_size": self._batch, "settings": self._settings}
        return {"ranks": list(ranks), **shared}

    @property
    def resumed(self) -> list[dict[str, Any]] | None:
        """The states of the ranks that the run was resumed with; None if there were none."""
        return None if self._resumed is None else self._resumed["ranks"]

    def images(self, iterations: int) -> int:
        """That so many iterations stand for, with the batches of this run. Of an unknown batch: one for each."""
        return iterations * (self._batch or 1)

    @property
    def lost_workers(self) -> bool:
        """Did training end because the next batch did not come?"""
        return getattr(self._loader, "lost_workers", False)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from ``of_run``'s: the data from its next iterator on, random numbers by ``set_random_numbers``."""
        self._resumed, self._seed = dict(state), state["seed"]
        rows = list(changed_settings(state["settings"], self._settings))
        processes = (len(state["ranks"]), comm.get_world_size())
        if processes[0] != processes[1]:
            rows.append(("number of processes", *map(str, processes)))
        if rows:
            logger.warning(
                "The run is resumed with other settings:\n%s", format_table(["setting", "checkpoint", "now"], rows)
            )
        self._load_position([rank["data"] for rank in state["ranks"]])

    def _load_position(self, ranks: Sequence[dict[str, Any] | None]) -> None:
        if isinstance(self._loader, SkippingLoader) and None not in ranks:
            problems = self._loader.load_state_dict(ranks)
        else:
            problems = ["the loader is not one of dinox's: its images begin anew"]
        for problem in problems:
            logger.warning("Resuming not exactly: %s", problem)

    def start(self, done: int) -> int:
        """The iteration to continue with. ``done``: the checkpoint's. Comes after ``load``, if that is called."""
        self.images_before = self.images(done)
        if self._resumed is None:
            self._reseed = done > 0
            if self._reseed:
                self._start_without_state(done)
            return done
        before = self._resumed["total_batch_size"]
        self._reseed = len(self._resumed["ranks"]) != comm.get_world_size()
        if self._reseed:
            logger.warning("Random numbers are seeded anew from (seed %d, iteration, rank)", self._seed)
        if None in (before, self._batch) or before == self._batch:
            return done
        self.images_before = done * before
        converted = round(self.images_before / self._batch)
        logger.warning(
            "Batches are of %d images instead of %d: %d iterations count as %d, which is as many images",
            self._batch,
            before,
            done,
            converted,
        )
        return converted

    def _start_without_state(self, done: int) -> None:
        logger.warning(
            "Resuming not exactly: the checkpoint holds neither a position in the data nor states of random numbers. "
            "The data goes on after as many images (in the same order only if train.seed is that of the run), random "
            "numbers are seeded anew"
        )
        if isinstance(self._loader, SkippingLoader) and self._batch is not None:
            self._loader.pass_over(done * self._batch)

    def set_random_numbers(self, iteration: int) -> None:
        """The last thing before training goes on, since whatever is built may draw some."""
        generators = own_generators(self._model)
        if self._reseed:
            seeds = np.random.SeedSequence([self._seed, iteration, comm.get_rank()]).generate_state(2)
            seed_all_rng(int(seeds[0] >> 1))
            for generator in generators.values():
                generator.manual_seed(int(seeds[1]))
        elif self._resumed is not None:
            absent = set_random_state(self._resumed["ranks"][comm.get_rank()]["random"], generators)
            if absent:
                logger.warning("Resuming not exactly: no place for the random numbers of %s", ", ".join(absent))


def plain_settings(cfg: DictConfig) -> dict[str, Any]:
    """``{"optimizer.lr": 1e-4, ...}``: numbers, texts, None; of all else its text. Where a checkpoint is written does
    not count."""
    return dict(_flat(OmegaConf.to_container(cfg, resolve=True), ""))


def _flat(value: Any, key: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, member in value.items():
            yield from _flat(member, f"{key}.{name}" if key else str(name))
    elif value is None or type(value) in (bool, int, float, str):
        yield key, value
    else:
        yield key, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_text(member) for member in value)}]"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"  # without the address that repr has
    return str(value) if value is None or isinstance(value, (str, int, float, dict)) else type(value).__qualname__


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """(name, before, now) of ``plain_settings``. A setting that one side lacks counts only where it is in use."""
    for key in sorted({*before, *now} - {"train.output_dir"}):
        values = [settings.get(key, "-") for settings in (before, now)]
        is_new = (key in before) != (key in now)
        if values[0] != values[1] and not (is_new and _is_off(key, {**before, **now})):
            yield key, *(str(value)[:_SHOWN] for value in values)


def _is_off(key: str, settings: Mapping[str, Any]) -> bool:
    """Is training the same without this setting? Those of ``train`` may be missing, which then switches them off."""
    if not key.startswith("train."):
        return False
    value, section = settings[key], key.rpartition(".")[0]
    if value in (None, False, 0, "[]") or (key, value) in _AS_WITHOUT.items():
        return True
    if key in _NOT_OF_TRAINING or section in _NOT_OF_TRAINING:
        return True
    return settings.get(f"{section}.enabled") is False or settings.get(f"{section}.rule", "-") is None
