"""Running the forward passes of a step again, to see where a number comes from that is not finite."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from dinox.engine.first_non_finite import (
    FirstNonFinite,
    first_non_finite_weight,
    watching_gradients,
    watching_modules,
)
from dinox.utils.compat import run_eagerly
from dinox.utils.random_state import own_generators, random_state, set_random_state

Autocast = Callable[[], AbstractContextManager]
"""Makes the context that a model runs in."""


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass that can be run again: the batch, the random numbers, and the running statistics, which are
    all that it changes in a model."""

    batch: list[dict]
    random: Mapping[str, Any]
    statistics: Mapping[Tensor, Tensor]

    @classmethod
    def now(
        cls, batch: list[dict], generators: Mapping[str, torch.Generator], statistics: Sequence[Tensor]
    ) -> "ForwardPass":
        """Before it is run. A batch is not copied. generators, statistics: of the model."""
        return cls(batch, random_state(generators), {buffer: buffer.clone() for buffer in statistics})

    @torch.no_grad()
    def restore_statistics(self) -> None:
        for buffer, before in self.statistics.items():
            buffer.copy_(before)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass changes."""
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


@dataclass(frozen=True)
class Origin:
    """Where the first number comes from that is not finite, in words, None if nowhere; and the images of that pass.
    costs: what the matcher said of costs that were not finite, in the first pass that has such."""

    where: str | None
    batch: list[dict]
    costs: str | None = None


def find_origin(
    model: nn.Module, passes: Sequence[ForwardPass], autocast: Autocast, loss_scale: float | None
) -> Origin:
    """Run the passes of a step again; arguments as for ``run_again``.

    An error of that, such as memory that ran out, is what is said of the pass. Not so with several processes, where it
    is raised: the others may wait in a pass for this one, which has to end so that they do.
    """
    passes[0].restore_statistics()
    everything = [item for each in passes for item in each.batch]
    found = [Origin(first_non_finite_weight(model), everything)]
    for each in passes:  # none is left out, whatever is found: other ranks may wait in it
        try:
            again = run_again(model, each, autocast, loss_scale)
            found.append(Origin(again.first, each.batch, costs_of(model)))
        except Exception as error:
            if comm.get_world_size() > 1:
                raise
            found.append(Origin(f"not to be found ({type(error).__name__}: {error})", each.batch))
    origin = next((each for each in found if each.where is not None), Origin(None, everything))
    return dataclasses.replace(origin, costs=next((each.costs for each in found if each.costs is not None), None))


def costs_of(model: nn.Module) -> str | None:
    """What a criterion of dinox remembers of costs that were not finite in its last pass."""
    return getattr(getattr(model, "criterion", None), "non_finite_costs", None)


@dataclass(frozen=True)
class Rerun:
    """losses: by name. first: where the first number comes from that is not finite, in words."""

    losses: dict[str, float]
    first: str | None


def run_again(
    model: nn.Module,
    forward_pass: ForwardPass,
    autocast: Autocast,
    loss_scale: float | None = None,
) -> Rerun:
    """``loss_scale``: with the backward pass, of losses that are scaled so. None: without."""
    set_random_state(forward_pass.random, own_generators(model))
    forward_pass.restore_statistics()
    found = [_first_in_batch(forward_pass.batch)]
    with run_eagerly(), EventStorage():  # which shall keep out of the run's what models record there
        with watching_modules(model) as modules, autocast(), torch.set_grad_enabled(loss_scale is not None):
            losses = model(forward_pass.batch)
        found.append(modules.where)
        if loss_scale is not None:
            with watching_gradients(model) as gradients:
                (sum(losses.values()) * loss_scale).backward()
            found.append(gradients.where)
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    return Rerun(values, next((where for where in found if where is not None), None))


def _first_in_batch(batch: list[dict]) -> str | None:
    first = FirstNonFinite()
    for name, item in zip(file_names(batch), batch):
        first.look(f"the input {name}", item)
    return first.where


def file_names(batch: list[dict]) -> list[str]:
    return [str(item.get("file_name", f"image {i} of the batch")) for i, item in enumerate(batch)]
