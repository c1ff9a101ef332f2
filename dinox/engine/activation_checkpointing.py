"""``train.activation_checkpointing``: activations are computed again in the backward pass instead of being kept.

Of every segment (see segments.py) only the inputs are kept, which costs about one more forward pass of it. Losses and
gradients stay what they are, with dropout too: random numbers are drawn again from the same states.

A network with a way of its own has ``set_grad_checkpointing(enable)``, as timm's do, and so have ``Swin``, ``PlainViT``
and ``TimmBackbone``; that takes precedence over segments.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from dinox.engine.segments import find_part, find_segments

logger = logging.getLogger(__name__)

SETTING = "train.activation_checkpointing"
PARTS = ("backbone", "encoder", "decoder")


def checkpoint_activations(model: nn.Module, parts: Sequence[str]) -> None:
    """In place, before the model is wrapped by DDP; names of parameters stay.

    parts: some of ``PARTS``. Segments without a trained parameter are left alone: a frozen stage keeps nothing anyway.
    Raises ValueError for a part that the model does not have, that cannot be cut into segments, or whose batch norms
    would count every batch twice.
    """
    for name in parts:
        part = find_part(model, name, setting=SETTING)
        networks, segments = _networks(part), find_segments(part)
        if not networks and not segments:
            raise ValueError(
                f"{SETTING}: {name!r}, a {type(part).__name__}, has neither layers with `is_segment = True` nor "
                f"set_grad_checkpointing(): give its layers the former, or leave {name!r} out"
            )
        trained = [each for each in segments if any(p.requires_grad for p in each.parameters())]
        _check_statistics(name, networks or trained)
        for network in networks:
            network.set_grad_checkpointing(True)
        if not networks:
            for segment in trained:
                recompute_in_backward(segment)
        what = ", ".join(type(each).__name__ for each in networks) or f"{len(trained)} layers"
        logger.info("Activations of model.%s are computed again in the backward pass: %s", name, what)


def recompute_in_backward(segment: nn.Module) -> None:
    """In place. Copies of the module by ``copy.deepcopy`` stay on their own, unlike with a closure around it."""
    segment.forward = partial(_forward, segment)


def _forward(segment: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return type(segment).forward(segment, *args, **kwargs)
    # torch keeps the random states of the devices that the tensors among the arguments are on, but it does not look
    # into structures such as Memory.
    on_device = next(segment.parameters())
    return checkpoint(_run, on_device, segment, *args, use_reentrant=False, **kwargs)


def _run(on_device: Tensor, segment: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(segment).forward(segment, *args, **kwargs)


def _networks(part: nn.Module) -> list[nn.Module]:
    """The outermost modules that have a way of their own."""
    if hasattr(part, "set_grad_checkpointing"):
        return [part]
    return [network for child in part.children() for network in _networks(child)]


def _check_statistics(name: str, modules: Sequence[nn.Module]) -> None:
    for module in modules:
        for inner in module.modules():
            if isinstance(inner, _BatchNorm) and inner.track_running_stats:
                raise ValueError(
                    f"{SETTING}: {name!r} has batch norms that learn statistics ({type(inner).__name__}), which would "
                    f"count every batch twice: take frozen ones (norm=FrozenBN, norms=frozen) or GN, or leave {name!r} "
                    "out"
                )
