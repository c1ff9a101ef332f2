"""A kill while the best checkpoint is written: row 32."""

import os
import signal

import pytest
import torch

from dinox.checkpoint import Checkpointer, run_files
from tests.faults.test_kills import Killer, Numbers, forked

POINTS = 12


def save_best(folder, value):
    checkpointer = Checkpointer(Numbers(), str(folder))
    checkpointer.model.fill(value)
    checkpointer.save_weights(run_files.BEST, iteration=value, best={"value": float(value)})


def test_row_32_a_kill_while_the_best_checkpoint_is_written_leaves_the_former_or_the_new_one(tmp_path):
    save_best(tmp_path, 0)
    counter = Killer()
    with pytest.MonkeyPatch.context() as patch:
        counter.install(patch)
        save_best(tmp_path, 1)
    last = range(counter.passed - 4, counter.passed)  # around the rename
    whole = 1
    for point in sorted({*last, *(round(i * (counter.passed - 1) / (POINTS - 1)) for i in range(POINTS))}):

        def be_killed(point=point, value=whole + 1):
            with pytest.MonkeyPatch.context() as patch:
                Killer(point).install(patch)
                save_best(tmp_path, value)

        _, status = os.waitpid(forked(be_killed), 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, point
        run_files.verify(tmp_path / "model_best.pth")
        content = torch.load(tmp_path / "model_best.pth", weights_only=True)
        assert content["iteration"] in (whole, whole + 1), point
        whole = content["iteration"]
        assert {float(value) for part in content["model"].values() for value in part.unique()} == {float(whole)}
    assert whole > 1  # some points are behind the rename
    run_files.remove_leftovers_of_killed(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model_best.pth"]  # and no tag
