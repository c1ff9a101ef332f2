"""Where a training step waits for its device: for the costs of matching, and for the scalars that are logged.

On the CPU nothing waits, so that two modes list what would on a GPU: values that the host reads, and blocking copies.
What the host does with tensors of its own, before they are moved, is named below (``EXCEPT_IN``).
"""

import traceback
import warnings
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dinox.engine.micro_batches import MicroBatches
from dinox.engine.optimizer import ClippedAdamW
from dinox.engine.trainer import Trainer
from dinox.matching import HungarianMatcher
from tests.small_models import DINO, build_small, make_input

CONFIGS = [DINO, "stable_dino/stable_dino_r50_4scale_12ep", "dn_detr/dn_detr_r50_50ep"]
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "repeat_interleave"}
METHODS = {torch.Tensor.tolist: "tolist", torch.Tensor.cpu: "cpu", torch.Tensor.new_tensor: "new_tensor"}
EXCEPT_IN = {
    "_check_ground_truth",  # looks at the ground truth as the data loader gives it
    "from_instances",  # and computes with it, before it is moved
    "padded_pyramid",  # has the images' sizes from their shapes
    "_get_total_norm",  # moves gradients' norms to the device that they are on, as does the next
    "_clip_grads_with_norm_",
}


class Values(TorchDispatchMode):
    """Operators whose results the host has to know."""

    def __init__(self, waits: list[str]):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name in READS or by_mask:
            note(name, self.waits)
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Calls that move tensors between host and device and wait until it is done."""

    def __init__(self, waits: list[str]):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        places = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device | str)]
        made_there = func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None
        if func in METHODS or made_there or (func is torch.Tensor.to and places and not kwargs.get("non_blocking")):
            note(METHODS.get(func, func.__name__), self.waits)
            with self._without_values():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _without_values(self):
        return torch.utils._python_dispatch._disable_current_modes()


def note(name: str, waits: list[str]) -> None:
    frames = traceback.extract_stack()
    if not EXCEPT_IN & {frame.name for frame in frames}:
        ours = [frame for frame in frames if "/dinox/" in frame.filename and "/tests/" not in frame.filename]
        waits.append(f"{Path(ours[-1].filename).name} {ours[-1].name}: {name}" if ours else name)


def make_trainer(config: str, device: str = "cpu", parts: int = 1, precision: str = "fp32") -> Trainer:
    model = build_small(config).to(device)
    inputs = [make_input(64, 96, 3), make_input(64, 96, 0, seed=1)]
    optimizer = ClippedAdamW(model.parameters(), lr=1e-4)
    micro_batches = MicroBatches(accumulation_steps=parts, seed=lambda: 0)
    trainer = Trainer(
        model=model,
        data_loader=[inputs] * 3,
        optimizer=optimizer,
        device=device,
        precision=precision,
        micro_batches=micro_batches,
    )
    trainer.iter, trainer.storage = 0, EventStorage()
    return trainer


@pytest.mark.parametrize(("config", "parts"), [*((config, 1) for config in CONFIGS), (DINO, 2)])
def test_a_training_step_waits_for_each_matching_and_once_for_its_scalars(config, parts, monkeypatch):
    monkeypatch.setattr(HungarianMatcher, "costs_on_host", HungarianMatcher._costs_in_one_copy)  # as on a GPU
    trainer, waits = make_trainer(config, parts=parts), []
    with trainer.storage:
        trainer.run_step()  # optimizers make their state in the first step
        with Copies(waits), Values(waits):
            trainer.run_step()
    assert waits == ["hungarian.py _costs_in_one_copy: cpu"] * parts + ["trainer.py _gather: tolist"]


def test_fp16_waits_once_more_in_the_scaler(monkeypatch):
    """For whether it skips the step. That the trainer counts it comes with the other scalars."""
    monkeypatch.setattr(HungarianMatcher, "costs_on_host", HungarianMatcher._costs_in_one_copy)
    trainer, waits = make_trainer(DINO, precision="fp16"), []
    with trainer.storage:
        trainer.run_step()
        with Copies(waits), Values(waits):
            trainer.run_step()
    assert waits[:2] == ["hungarian.py _costs_in_one_copy: cpu", "trainer.py _gather: tolist"]
    assert waits[2:] == ["trainer.py run_step: _local_scalar_dense"]


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).all()), "_local_scalar_dense"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.to("cpu"), "to"),
        (lambda x: x.new_tensor([1.0]), "new_tensor"),
        (lambda x: torch.tensor([1.0], device=x.device), "tensor"),
    ],
)
def test_the_modes_see_waits_of_every_kind(wait, name):
    waits = []
    with Copies(waits), Values(waits):
        wait(torch.ones(3))
    assert len(waits) == 1 and waits[0].endswith(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch reports the waits of a GPU")
@pytest.mark.parametrize("config", CONFIGS)
def test_a_training_step_waits_twice_on_a_gpu(config):
    trainer = make_trainer(config, "cuda")
    with trainer.storage, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.run_step()
        caught.clear()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.run_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
    assert len(waits) == 2, waits
