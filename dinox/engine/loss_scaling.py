"""torch's scaler of the loss for fp16, which counts the steps that it skips."""

from typing import Any

import torch
from torch import Tensor

MAX_SKIPS_IN_A_ROW = 20
"""Every skipped step halves the scale: after 20 it has gone from its start, 65536, to 1/16. A scale below 1 lifts no
small gradient above fp16's smallest number any more, which is all that scaling is for: what still overflows is no
matter of the scale. (At the start of training some 3 to 6 steps are skipped, later about one in thousands.)"""

OVERFLOW, GRAD_SCALE, SKIPPED_STEPS = "overflow", "grad_scale", "skipped_steps"

EXACT = (GRAD_SCALE, SKIPPED_STEPS)
"""Metrics that writers write as they are: the median of the last counts is no count."""


class LossScaler(torch.amp.GradScaler):
    """GradScaler, for CPU and CUDA, with the number of skipped steps in its state.

    skipped_steps: of the whole run. skipped_in_a_row: the last ones.
    """

    def __init__(self, device_type: str, *, enabled: bool, max_skips_in_a_row: int = MAX_SKIPS_IN_A_ROW):
        super().__init__(device_type, enabled=enabled)
        self.max_skips_in_a_row = max_skips_in_a_row
        self.skipped_steps = self.skipped_in_a_row = 0

    def scalars(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Of this step, whose gradients were unscaled, on the device: OVERFLOW, above 0 where the step will be skipped,
        and GRAD_SCALE. Empty if there is no scaling."""
        if not self.is_enabled():
            return {}
        found = list(self._found_inf_per_device(optimizer).values())
        scale = self._get_scale_async()
        return {OVERFLOW: sum(each.to(scale.device, non_blocking=True) for each in found), GRAD_SCALE: scale}

    def count(self, skipped: bool) -> None:
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        self.skipped_steps += int(skipped)

    @property
    def gave_up(self) -> bool:
        """Were more steps skipped in a row than allowed?"""
        return self.skipped_in_a_row > self.max_skips_in_a_row

    def explanation(self, iteration: int, scale: float, lr: float, where: str) -> str:
        """The error's text. scale: with which the last step was skipped. where: its images."""
        return (
            f"gradients overflow in fp16 at iteration {iteration}, as in each of the {self.skipped_in_a_row - 1} "
            f"iterations before, with a scale of {scale:g} for the loss (lr {lr:g}; {where}). These steps were skipped "
            "and saved checkpoints are intact. Train in bf16 (train.amp.dtype=bf16) or fp32 (train.amp.enabled=false), "
            "lower optimizer.lr, or allow more with train.amp.max_skips_in_a_row"
        )

    def state_dict(self) -> dict[str, Any]:
        counts = {"skipped_steps": self.skipped_steps, "skipped_in_a_row": self.skipped_in_a_row}
        return super().state_dict() | (counts if self.is_enabled() else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Not in checkpoints of earlier versions.
        self.skipped_steps = state_dict.get("skipped_steps", 0)
        self.skipped_in_a_row = state_dict.get("skipped_in_a_row", 0)
