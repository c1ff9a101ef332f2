"""The exponential moving average of the weights (EMA), which is evaluated, while the weights themselves are trained."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import HookBase
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dinox.checkpoint.reading import CheckpointError
from dinox.engine.options import EmaOptions, read_options
from dinox.utils.sharded_tensors import sharded_like

logger = logging.getLogger(__name__)


class WeightAverage(HookBase):
    """average <- d * average + (1 - d) * weights, after each step of the optimizer.

    d = decay * (1 - exp(-t / warmup)) in the t-th step, t = 1, 2, ...: at first the average follows the weights, which
    are far from what they will be. This is the warm-up of YOLOX and RT-DETR, and of mmdetection's
    ``ExpMomentumEMAHook`` (its ``momentum`` is 1 - decay), with which Co-DETR's ViT-L was released: decay 0.9999,
    warmup 2000. DINO's code has decay 0.9997, detrex 0.999, neither of them a warm-up (``warmup=0``, d = decay).

    Averaged are all parameters and floating-point buffers, in float32 at least: a copy of the weights on their device,
    and another one during evaluation. A step that was skipped, by the scaler
    of fp16 or because of a gradient that is not finite, is none: neither does it count as t, nor is there anything to
    average. Of a gradient accumulated over several batches there is one step.

    The averages begin as the weights that training begins with. In a checkpoint they are a state dict of the model,
    "ema", beside the "model" that training goes on from; t is in the state of the hook. If a run is resumed from a
    checkpoint without averages, they begin with its weights, and a warning says so.

    To be registered on all ranks, before the hook that writes checkpoints; and as ``ema`` with the checkpointer.

    Args:
        model: not wrapped for distributed training.
        optimizer: whose steps count.
    """

    def __init__(self, *, model: nn.Module, optimizer: torch.optim.Optimizer, decay: float, warmup: int):
        self._model, self._decay, self._warmup = model, decay, warmup
        self._steps = 0
        self._loaded: Mapping[str, Tensor] | None = None
        self._weights: list[Tensor] = []  # of the model, each once
        self._averages: list[Tensor] = []  # of the same, in their order
        self._has_stepped = False
        self._is_applied = False
        self._handle = optimizer.register_step_post_hook(self._note_step)

    @classmethod
    def of(cls, cfg: DictConfig, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> "WeightAverage | None":
        """As ``train.ema`` of a LazyConfig wants it; None if it wants none."""
        options = read_options(cfg, EmaOptions)
        if options is None:
            return None
        return cls(model=model, optimizer=optimizer, decay=options.decay, warmup=options.warmup)

    def _note_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """May be called twice of one step, where a class of optimizers calls ``step`` of another."""
        skipped = getattr(optimizer, "found_inf", None)  # of fused kernels, which skip by themselves
        self._has_stepped = skipped is None or not bool(skipped)

    def before_train(self) -> None:
        self._weights = list(_averaged(self._model).values())
        self._averages = [_in_float32(weight).clone() for weight in self._weights]
        if self._loaded is not None:
            own = _averaged(self._model)
            _copy([sharded_like(self._loaded[name], weight) for name, weight in own.items()], self._averages)
            self._loaded = None
        elif self.trainer.start_iter > 0:
            logger.warning(
                "The checkpoint that is resumed holds no averaged weights: the average begins with the weights of "
                "iteration %d",
                self.trainer.start_iter,
            )

    def after_step(self) -> None:
        if not self._has_stepped:
            return
        self._has_stepped = False
        self._steps += 1
        update = get_ema_multi_avg_fn(self.decay_of(self._steps))
        for averages, weights in _by_type(self._averages, self._weights):
            update(averages, [_in_float32(weight) for weight in weights], None)

    def decay_of(self, step: int) -> float:
        """step: from 1."""
        return self._decay * (1 - math.exp(-step / self._warmup)) if self._warmup else self._decay

    def after_train(self) -> None:
        self._handle.remove()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights. Afterwards, and whatever happens, it has its own again."""
        with torch.no_grad():
            own = [weight.clone() for weight in self._weights]
        self._is_applied = True
        try:
            _copy(self._averages, self._weights)
            yield
        finally:
            _copy(own, self._weights)
            self._is_applied = False

    def averaged_state(self) -> dict[str, Tensor]:
        """A state dict of the model; what is not averaged, such as counters, is as it is."""
        assert not self._is_applied, "the model has the averaged weights just now: nothing may be saved"
        averages = {id(weight): average for weight, average in zip(self._weights, self._averages, strict=True)}
        own = self._model.state_dict(keep_vars=True)
        kept = {name: averages.get(id(value), value) for name, value in own.items()}
        return {name: value.detach() if isinstance(value, Tensor) else value for name, value in kept.items()}

    def load_averaged_state(self, state: Mapping[str, Tensor]) -> None:
        """To be called before training begins. Raises CheckpointError if these are not averages of this model."""
        for name, tensor in _averaged(self._model).items():
            if name not in state or state[name].shape != tensor.shape:
                found = tuple(state[name].shape) if name in state else "none"
                raise CheckpointError(
                    f"resuming: the averaged weights of the checkpoint ('ema') are not of this model: expected "
                    f"{name!r} of the shape {tuple(tensor.shape)}, got {found}. Resume with the config of the run, or "
                    "with train.ema.enabled=False"
                )
        self._loaded = state

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps = state["steps"]


class AveragedState:
    """The averages as the checkpointer takes its parts."""

    def __init__(self, average: WeightAverage):
        self._average = average

    def state_dict(self) -> dict[str, Tensor]:
        return self._average.averaged_state()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._average.load_averaged_state(state)


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the state dict that are averaged, each once, under its first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _by_type(averages: list[Tensor], weights: list[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Of a model whose weights are shared out among processes, parameters are DTensors and buffers are not; torch
    updates many tensors at once, but of one kind."""
    kinds: dict[type, tuple[list[Tensor], list[Tensor]]] = {}
    for average, weight in zip(averages, weights, strict=True):
        both = kinds.setdefault(type(average), ([], []))
        both[0].append(average)
        both[1].append(weight)
    return list(kinds.values())


def _in_float32(weight: Tensor) -> Tensor:
    """The tensor itself, without a copy, if it is float32 or float64."""
    weight = weight.detach()
    return weight.float() if weight.element_size() < 4 else weight


@torch.no_grad()
def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
