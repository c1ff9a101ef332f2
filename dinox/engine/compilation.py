"""``train.compile``: the layers of encoder and decoder through torch.compile, in place.

Every layer is compiled on its own (``nn.Module.compile``): layers of a kind share what is compiled, so that six cost
the time of one, and what the host decides between layers, such as the groups of queries, stays out of the graphs.
Names of parameters stay, so that checkpoints load with the setting and without. Evaluation during training uses the
compiled layers, too; it makes graphs of its own, without gradients. Not so with ``train.parallel=fsdp`` on several
processes: there a copy of the model is evaluated, which is not compiled.

Images of new sizes compile nothing anew. On a CPU the demo's small model gains nothing by it; GPUs are not measured.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dinox.engine.segments import check_parts, find_part, find_segments
from dinox.utils.compat import allow_recompilations
from dinox.utils.suggest import did_you_mean

logger = logging.getLogger(__name__)

SETTING = "train.compile"
PARTS = ("encoder", "decoder")
_GRAPHS_PER_FUNCTION = 64
"""torch gives up on a function after 8. The function of a layer has several for good reasons: batches of one and more
images, with padding and without, training and evaluation, the first layer of a decoder and the others. Layers with
checkpointed activations share one function."""


@dataclass(frozen=True)
class CompileOptions:
    """parts: some of ``PARTS``. backend: one of ``torch.compiler.list_backends(())``. dynamic: True: graphs are for all
    sizes of images and numbers of queries; False: one for each; None: torch makes the first graph for one size."""

    parts: Sequence[str] = PARTS
    backend: str = "inductor"
    dynamic: bool | None = True

    def __post_init__(self):
        check_parts(self.parts, PARTS, setting=f"{SETTING}.parts")
        if not self.parts:
            raise ValueError(
                f"{SETTING}.parts: expected at least one of {', '.join(PARTS)}, got []: without any, give "
                f"{SETTING}.enabled=False"
            )
        if self.dynamic is not None and not isinstance(self.dynamic, bool):
            raise ValueError(f"{SETTING}.dynamic: expected true, false or null, got {self.dynamic!r}")
        known = [name for name in torch.compiler.list_backends(()) if not name.endswith("TESTING_ONLY")]
        if self.backend not in known:
            raise ValueError(
                f"{SETTING}.backend: expected one of {', '.join(known)}, got {self.backend!r}."
                f"{did_you_mean(str(self.backend), known)}"
            )


def compile_parts(model: nn.Module, options: CompileOptions) -> None:
    """In place, before the model is wrapped by DDP. A part without segments (see segments.py) is compiled whole.

    Raises ValueError for a part that the model does not have.
    """
    allow_recompilations(_GRAPHS_PER_FUNCTION)
    for name in options.parts:
        part = find_part(model, name, setting=f"{SETTING}.parts")
        for module in find_segments(part) or [part]:
            module.compile(backend=options.backend, dynamic=options.dynamic)
    logger.info(
        "%s are compiled by torch.compile (%s) when they first run, which takes a while",
        " and ".join(f"model.{name}" for name in options.parts),
        options.backend,
    )
