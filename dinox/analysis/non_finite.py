"""Running a batch again that had a loss, a cost or a gradient that was not finite, from what training wrote."""

import os
from functools import partial
from pathlib import Path

import torch
from torch import nn

from dinox.analysis.modes import in_mode
from dinox.engine.batch_dump import restored
from dinox.engine.non_finite import GRADIENT
from dinox.engine.rerun import ForwardPass, Rerun, run_again
from dinox.engine.trainer import AUTOCAST_DTYPES
from dinox.utils.random_state import own_generators, random_state, set_random_state


def rerun_non_finite(model: nn.Module, file: str | os.PathLike) -> list[Rerun]:
    """Run what ``non_finite_<iteration>_rank<rank>.pth`` holds, with the weights that lie beside it::

        from detectron2.config import instantiate
        from dinox.analysis import rerun_non_finite
        from dinox.config import load_config

        model = instantiate(load_config("output/config.yaml").model)
        print(rerun_non_finite(model, "output/non_finite_0000012_rank0.pth"))

    Losses, and what is the first number that is not finite, are those of training: bit for bit on the CPU in one
    process. In training on several ranks, what a rank learns from the others (numbers of objects) is missing here, and
    random numbers of a GPU are the same on a GPU only.

    Args:
        model: of the run's config. Where there are weights beside the file, it gets them. Its gradients are gone
            afterwards.

    Returns a ``Rerun`` for every forward pass of the step, which are several where gradients are accumulated.
    """
    file = Path(file)
    dump = torch.load(file, map_location="cpu", weights_only=True)
    weights = file.parent / dump["weights"]
    if weights.is_file():
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["model"])
    dtype = AUTOCAST_DTYPES[dump["precision"]]
    device = next(model.parameters()).device.type
    autocast = partial(torch.autocast, device, dtype=dtype, enabled=dtype is not None)
    loss_scale = dump["loss_scale"] if dump["terms"] == [GRADIENT] else None
    generators = own_generators(model)
    drawn = random_state(generators)
    try:
        with in_mode(model, training=True):
            return [
                run_again(model, ForwardPass(restored(each["inputs"]), each["random"], {}), autocast, loss_scale)
                for each in dump["passes"]
            ]
    finally:
        model.zero_grad(set_to_none=True)
        set_random_state(drawn, generators)
