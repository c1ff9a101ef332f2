"""Row 27 of the catalogue: fp16 that overflows."""

import pytest

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
