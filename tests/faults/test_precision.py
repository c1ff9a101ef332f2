"""Row 27 of the catalogue: fp16 that overflows."""

import json

import pytest

from tests.cli.conftest import TINY_CONFIG
from tests.engine.test_loss_scaling import make_fp16
from tests.engine.test_trainer import run


def test_row_27_skipped_steps_are_counted_and_too_many_in_a_row_are_an_error():
    trainer = make_fp16(range(3, 100), max_skips_in_a_row=4)
    before = []
    trainer.after_step = lambda: before.append([p.detach().clone() for p in trainer.model.parameters()])
    with pytest.raises(FloatingPointError) as error:
        run(trainer, 100)
    for text in (
        "gradients overflow in fp16 at iteration 7, as in each of the 4 iterations before",
        "a scale of 0.5 for the loss",
        "lr 0.01",
        "images/7_0.jpg, images/7_1.jpg",
        "saved checkpoints are intact",
        "train.amp.dtype=bf16",
        "train.amp.max_skips_in_a_row",
    ):
        assert text in str(error.value)
    assert trainer.grad_scaler.skipped_steps == 5
    # Nothing was learned from what overflowed.
    assert all(one.equal(other) for one, other in zip(before[2], before[-1], strict=True))


def test_row_27_from_the_command_line(dinox, output_dir, recwarn):
    """A loss of about 1e38 is finite, and its gradient too; times any scale of the scaler's it is infinite."""
    code, _, err = dinox(
        *("train", "--config-file", TINY_CONFIG, f"train.output_dir={output_dir}", "model.loss_weight=1e38"),
        *("train.amp.enabled=True", "train.amp.dtype=fp16", "train.amp.max_skips_in_a_row=2"),
    )
    assert code == 2
    (line,) = (line for line in err.splitlines() if line.startswith("dinox: error"))
    assert "gradients overflow in fp16 at iteration 2, as in each of the 2 iterations before" in line
    assert "train.amp.max_skips_in_a_row" in line
    written = [json.loads(line) for line in (output_dir / "metrics.json").read_text().splitlines()]
    assert [entry["skipped_steps"] for entry in written[:2]] == [1, 2]
    # torch takes a first step that is skipped for one that the code forgot.
    assert not [each for each in recwarn if "lr_scheduler.step" in str(each.message)]
