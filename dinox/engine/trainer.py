"""One training step on detectron2's SimpleTrainer: autocast, packed scalars, and errors that explain NaN losses."""

import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn

from dinox.engine.loss_scaling import EXACT, GRAD_SCALE, MAX_SKIPS_IN_A_ROW, OVERFLOW, SKIPPED_STEPS, LossScaler
from dinox.engine.lr_scaling import unscaled_lr
from dinox.engine.micro_batches import MicroBatches, added, gradients_stay_apart, losses_add_up
from dinox.engine.non_finite import BadStep, NonFiniteSteps, describe_images, is_finite_number
from dinox.engine.optimizer import gradient_norm
from dinox.engine.peers import FloatingPointErrorOnAllRanks
from dinox.utils.compat import silence_schedule_before_optimizer
from dinox.utils.sharded_tensors import sharded_like

AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_OPTIMIZER_SETTINGS = ("lr", "weight_decay", "momentum", "betas", "eps")


class Trainer(SimpleTrainer):
    """SimpleTrainer in fp32, bf16 or fp16, on CPU and CUDA, for a model that returns a dict of scalar losses.

    Per step it moves the losses to the host once, for logging and for the check that they are finite. The check comes
    before the optimizer's step, so a bad batch never reaches the weights. All ranks see the same and stop together, or
    skip the step together (see ``NonFiniteSteps``). A step may compute its gradients in parts (see
    ``dinox.engine.micro_batches``).

    In fp16, a step whose scaled gradients overflow is skipped, by the optimizer alone: iterations, schedules of
    learning rates (detectron2's hook) and data go on, as in detectron2. It counts in ``skipped_steps``.

    ``updated`` is False after a step that left the weights as they were because a loss or a gradient was not finite.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        device: torch.device | str,
        precision: str = "fp32",
        micro_batches: MicroBatches | None = None,
        non_finite: NonFiniteSteps | None = None,
        max_skips_in_a_row: int = MAX_SKIPS_IN_A_ROW,
    ):
        """``precision``: "fp32", "bf16" or "fp16". ``device``: the model's. ``micro_batches``: None: batches as the
        loader gives them, without noise seeds. ``non_finite``: what is done about losses that are not finite; None:
        they are an error, and no file is written. ``max_skips_in_a_row``: that many steps may overflow in fp16 after
        each other; more are a FloatingPointError."""
        if precision not in AUTOCAST_DTYPES:
            raise ValueError(f"train.amp.dtype: expected one of {', '.join(AUTOCAST_DTYPES)}, got {precision!r}")
        super().__init__(model=model, data_loader=data_loader, optimizer=optimizer)
        self.non_finite = NonFiniteSteps() if non_finite is None else non_finite
        self.updated = True
        self.precision = precision
        self.device_type = torch.device(device).type
        self.autocast_dtype = AUTOCAST_DTYPES[precision]
        # bf16 has the range of fp32 and needs no scaling; a disabled scaler passes everything through.
        self.grad_scaler = LossScaler(
            self.device_type, enabled=precision == "fp16", max_skips_in_a_row=max_skips_in_a_row
        )
        self.micro_batches = micro_batches or MicroBatches()

    def run_step(self) -> None:
        assert self.model.training, "the model was left in eval mode; whoever did that has to call model.train()"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.non_finite.begin_step()
        self.optimizer.zero_grad()
        losses = self._compute_gradients(batch)
        self.after_backward()
        grad_norm = self._clip_gradients()

        bad = self._record(losses, grad_norm=grad_norm, data_time=data_time)
        self.updated = bad is None and not self.grad_scaler.skipped_in_a_row
        if not self.updated:
            silence_schedule_before_optimizer()
        if bad is None:
            self.grad_scaler.step(self.optimizer)
        else:
            self.non_finite.handle(bad, self.model, self._autocast)
        self.grad_scaler.update()

    def _compute_gradients(self, batch: list[dict]) -> dict[str, Tensor]:
        """Leave the gradients of this rank's batch in the parameters. Returns its losses, without gradient."""
        total: dict[str, Tensor] = {}
        for part in self.micro_batches.split(batch, self.iter):
            with nullcontext() if part.is_last else gradients_stay_apart(self.model):
                losses = self._forward(part.inputs)
                share = 1.0 if losses_add_up(self.model) else part.share
                self.grad_scaler.scale(sum(losses.values()) * share).backward()
            total = added(total, losses, share)
        return total

    def after_backward(self) -> None:
        """detectron2's newer hooks have a place here."""
        for hook in self._hooks:
            getattr(hook, "after_backward", lambda: None)()

    def _forward(self, batch: list[dict]) -> Mapping[str, Tensor]:
        self.non_finite.before_forward(self.model, batch)
        try:
            with self._autocast():
                return self.model(batch)
        except (ValueError, FloatingPointError) as error:
            # Parts refuse numbers before there is a loss, but they do not know which files these are of.
            message = f"{error} (iteration {self.iter}, {describe_images(batch)})"
            raise (FloatingPointError if isinstance(error, FloatingPointError) else ValueError)(message) from error

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device_type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def _clip_gradients(self) -> Tensor:
        """The gradient's norm, before it was clipped, if the optimizer is one that clips (see ClippedAdamW)."""
        self.grad_scaler.unscale_(self.optimizer)
        clip = getattr(self.optimizer, "clip_gradients", partial(gradient_norm, self.optimizer))
        return clip()

    def _record(self, losses: Mapping[str, Tensor], *, grad_norm: Tensor, data_time: float) -> BadStep | None:
        """Store the step's scalars, averaged over ranks; or say which of them are not finite."""
        scalars = {**losses, "grad_norm": grad_norm, **self.grad_scaler.scalars(self.optimizer)}
        values = _gather(scalars, data_time)  # rank -> name -> value
        mean = {name: sum(rank[name] for rank in values) / len(values) for name in scalars}
        bad = [name for name in losses if not is_finite_number(mean[name])]
        # In fp16 an infinite gradient is the scaler's signal to skip the step and to scale less.
        if not bad and not self.grad_scaler.is_enabled() and not is_finite_number(mean["grad_norm"]):
            bad = ["grad_norm"]
        if bad:
            return BadStep(self.iter, values, bad, self._lr(), self.grad_scaler.get_scale(), self.precision)
        self._count_skipped(mean, values)
        if comm.is_main_process():
            self.storage.put_scalar("data_time", max(rank["data_time"] for rank in values))
            self.storage.put_scalar("total_loss", sum(mean[name] for name in losses))
            for name, value in mean.items():
                if is_finite_number(value):
                    self.storage.put_scalar(name, value, smoothing_hint=name not in EXACT)
        return None

    def _count_skipped(self, mean: dict[str, float], values: list[dict[str, float]]) -> None:
        """Turn OVERFLOW of a step's scalars into their count. Raises FloatingPointError if there were too many."""
        if OVERFLOW not in mean:
            return
        scaler = self.grad_scaler
        scaler.count(mean.pop(OVERFLOW) > 0)
        mean[SKIPPED_STEPS] = float(scaler.skipped_steps)
        if scaler.gave_up:
            images = comm.all_gather(self.non_finite.images())
            bad = [rank for rank, own in enumerate(values) if own[OVERFLOW] > 0]
            where = "; ".join(f"rank {rank}: {images[rank]}" if len(images) > 1 else images[rank] for rank in bad)
            raise FloatingPointErrorOnAllRanks(scaler.explanation(self.iter, mean[GRAD_SCALE], self._lr(), where))

    def _lr(self) -> float:
        return max(group["lr"] for group in self.optimizer.param_groups)

    def state_dict(self) -> dict:
        own = {"grad_scaler": self.grad_scaler.state_dict(), "non_finite": self.non_finite.state_dict()}
        return super().state_dict() | own

    def load_state_dict(self, state_dict: dict) -> None:
        """Raises ValueError if the optimizer's settings are not those of the checkpoint, which torch would take."""
        _check_same_settings(self.optimizer.param_groups, state_dict["optimizer"]["param_groups"])
        super().load_state_dict(state_dict | {"optimizer": _in_shards(state_dict["optimizer"], self.optimizer)})
        # Empty in the checkpoint of a run that needed no scaler.
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.non_finite.load_state_dict(state_dict.get("non_finite", {}), iteration=self.iter)


def _in_shards(state: dict, optimizer: torch.optim.Optimizer) -> dict:
    """An optimizer's state with whole tensors -> the same with this process's parts, where parameters are sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = {
        number: {
            name: sharded_like(value, parameters[number]) if _is_shaped_like(value, parameters[number]) else value
            for name, value in entries.items()
        }
        for number, entries in state["state"].items()
    }
    return state | {"state": parts}


def _is_shaped_like(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _check_same_settings(configured: list[dict], saved: list[dict]) -> None:
    """``configured``, ``saved``: parameter groups of the config's and of the checkpoint's optimizer."""
    cure = (
        "Resume with the settings of the run, or start another one from its weights, with train.init_checkpoint and "
        "another train.output_dir"
    )
    sizes, saved_sizes = ([len(group["params"]) for group in groups] for groups in (configured, saved))
    if sizes != saved_sizes:
        raise ValueError(
            f"resuming: the config's optimizer has parameter groups of {sizes} tensors, the checkpoint's of "
            f"{saved_sizes}. {cure}"
        )
    changes = []
    for ours, theirs in zip(configured, saved):
        ours, theirs = (group | {"lr": unscaled_lr(group)} for group in (ours, theirs))  # before the schedule
        for key in _OPTIMIZER_SETTINGS:
            if key in ours and key in theirs and ours[key] != theirs[key]:
                here, there = _shown(ours[key], theirs[key])
                changes.append(f"{key} is {here} in the config and {there} in the checkpoint")
    if changes:
        raise ValueError(f"resuming: {'; '.join(dict.fromkeys(changes))}. {cure}")


def _shown(*values: object) -> list[str]:
    """A rate that was scaled is 0.3 to whoever wrote it, not 0.30000000000000004, unless another one is 0.3 too."""
    short = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return short if len(set(short)) == len(short) else [str(value) for value in values]


def _gather(scalars: Mapping[str, Tensor], data_time: float) -> list[dict[str, float]]:
    """The values of all ranks, on all ranks: one small tensor, one collective, one copy to the host."""
    packed = torch.stack([value.float().reshape(()) for value in scalars.values()])
    packed = torch.cat([packed, packed.new_full((1,), data_time)])  # a copy from the host would wait for the device
    gathered = [packed]
    if comm.get_world_size() > 1:
        gathered = [torch.empty_like(packed) for _ in range(comm.get_world_size())]
        dist.all_gather(gathered, packed)
    names = [*scalars, "data_time"]
    return [dict(zip(names, rank, strict=True)) for rank in torch.stack(gathered).tolist()]
