"""How several processes share a model, ``train.parallel``: a copy on each (DDP), or a part of the weights (FSDP).

A model is in either case the same module with the same names. FSDP is torch's second one, ``fully_shard``: parameters,
gradients and the optimizer's state are DTensors, of which a process holds a part; the weights of a layer are gathered
when it runs. Checkpoints hold whole tensors, so that they load anywhere. Evaluation during training, and measures of
matching, build a whole copy on the device of every process: it has to fit there beside the parts, without gradients and
optimizer.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dinox.engine.mixed_precision import MixedPrecision
from dinox.engine.process_group import timeout_of
from dinox.engine.segments import find_segments
from dinox.structures import Memory
from dinox.utils.compat import fully_shard_api
from dinox.utils.random_state import unchanged_random_state
from dinox.utils.sharded_tensors import whole

logger = logging.getLogger(__name__)

Kind = Literal["ddp", "fsdp"]
SETTING = "train.parallel"
_PARTS = ("backbone", "encoder", "decoder")


def check_parallel(cfg: DictConfig) -> None:
    """Raises ValueError for a ``train.parallel`` or ``train.timeout`` that there is not, or that does not go with other
    settings."""
    timeout_of(cfg)
    kind = OmegaConf.select(cfg, SETTING, default=None)
    if kind is None or kind == "ddp":
        return
    if kind not in get_args(Kind):
        raise ValueError(f"{SETTING}: expected one of {', '.join(get_args(Kind))}, got {kind!r}")
    if fully_shard_api() is None:
        raise ValueError(f"{SETTING}=fsdp needs torch 2.6 or newer, this is {torch.__version__}: leave it out")
    if MixedPrecision.of(cfg).precision == "fp16":
        raise ValueError(f"{SETTING}=fsdp goes with fp32 and bf16, got train.amp.dtype=fp16: give bf16")


@dataclass(frozen=True)
class Replicated:
    """A whole copy in every process. options: detectron2's of ``create_ddp_model``."""

    options: dict[str, Any]

    def wrap(self, model: nn.Module) -> nn.Module:
        return create_ddp_model(model, **self.options)

    def whole(self, model: nn.Module) -> nn.Module:
        return model


@dataclass(frozen=True)
class Sharded:
    """Every process has a part of the weights. build: makes another model of the same kind, on the device."""

    build: Callable[[], nn.Module]
    device_type: str
    half: bool

    def wrap(self, model: nn.Module) -> nn.Module:
        """In place, with the weights that it has. The optimizer has to be made after that."""
        return shard(model, device_type=self.device_type, half=self.half)

    def whole(self, model: nn.Module) -> nn.Module:
        """A copy that runs without the other processes, whose numbers of images may differ."""
        with unchanged_random_state():
            copy = self.build()
        targets = copy.state_dict()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                targets[name].copy_(whole(tensor))
        return copy


Parallel = Replicated | Sharded


def make_parallel(cfg: DictConfig, *, device: torch.device, build: Callable[[], nn.Module]) -> Parallel:
    """As a config that passed ``check_parallel`` wants it. ``build``: see ``Sharded``."""
    if cfg.train.get("parallel") == "fsdp" and comm.get_world_size() > 1:
        return Sharded(build=build, device_type=device.type, half=MixedPrecision.of(cfg).enabled)
    options = dict(cfg.train.get("ddp") or {})
    if comm.get_world_size() > 1:
        # detectron2 gives each rank the GPU of its number, also where there are none, or where it sees no other.
        options["device_ids"] = None if device.type == "cpu" else [torch.cuda.current_device()]
    return Replicated(options)


def shard(model: nn.Module, *, device_type: str, half: bool = False) -> nn.Module:
    """Share out the weights of a model among all processes, in place.

    Layers of encoder and decoder and blocks of the backbone are gathered one by one, when they run; everything else
    (embeddings, heads, norms, what is used outside of a ``forward``) is gathered once a step. A part that is not made
    of segments (see segments.py) has a method ``shards()`` that lists its modules, or belongs to everything else.

    half: the backbone's blocks are gathered as bf16, for autocast; gradients are summed in float32. Everywhere else
    weights stay float32, since boxes are predicted in it.
    """
    from torch.distributed.device_mesh import init_device_mesh

    for tensor in [*model.parameters(), *model.buffers()]:  # as DDP does: ranks have other random numbers
        dist.broadcast(tensor.detach(), src=0)
    fully_shard, policy = fully_shard_api()
    _see_into_memories()
    mesh = init_device_mesh(device_type, (comm.get_world_size(),))
    in_half = policy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    number = 0
    for name in _PARTS:
        part = getattr(model, name, None)
        for segment in [] if part is None else _shards(part):
            options = {"mp_policy": in_half} if half and name == "backbone" else {}
            fully_shard(segment, mesh=mesh, **options)
            number += 1
    fully_shard(model, mesh=mesh)
    logger.info("Weights are shared out among %d processes, in %d layers and the rest", mesh.size(), number)
    return model


def _shards(part: nn.Module) -> list[nn.Module]:
    """Without those that have no parameters."""
    if hasattr(part, "shards"):
        found = part.shards()
    else:
        found = find_segments(part) or [each for child in part.children() for each in _shards(child)]
    return [each for each in dict.fromkeys(found) if any(True for _ in each.parameters())]


def _see_into_memories() -> None:
    """FSDP looks for the tensors that a layer returns, in whose backward pass it gathers the layer's weights again."""
    from torch.utils._pytree import SUPPORTED_NODES, register_dataclass

    if Memory not in SUPPORTED_NODES:
        register_dataclass(Memory)
