"""What metrics.json says about epochs and time."""

import json
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage

from dinox.engine import train
from dinox.engine.logs import RunLog
from dinox.engine.writers import ProgressPrinter


def entries(cfg):
    """iteration -> scalars, of what the last process wrote"""
    lines = (Path(cfg.train.output_dir) / "metrics.json").read_text().splitlines()
    return {entry["iteration"]: entry for entry in map(json.loads, lines)}


def resume_from(cfg, iteration):
    """Train on as if the run had been stopped after this iteration."""
    folder = Path(cfg.train.output_dir)
    (folder / "last_checkpoint").write_text(f"model_{iteration:07d}.pth")
    (folder / "metrics.json").unlink()
    train(cfg, resume=True, console="off")


def test_epochs_and_wall_time_are_written(tiny_cfg):
    train(tiny_cfg, console="off")
    written = entries(tiny_cfg)
    assert [written[i]["epoch"] for i in range(6)] == pytest.approx([0.5, 1, 1.5, 2, 2.5, 3])
    times = [written[i]["wall_time"] for i in range(7)]
    assert times == sorted(times) and times[0] > 0
    assert written[6]["epoch"] == pytest.approx(3) and "bbox/AP" in written[6]  # after the last step


def test_a_resumed_run_counts_on(tiny_cfg):
    tiny_cfg.train.checkpointer.period = 3
    train(tiny_cfg, console="off")
    before = entries(tiny_cfg)
    resume_from(tiny_cfg, 2)
    after = entries(tiny_cfg)
    assert after[3]["epoch"] == pytest.approx(2)
    # The checkpoint was written between the third step and its line.
    assert after[3]["wall_time"] > before[1]["wall_time"]


def test_a_run_that_goes_on_with_another_batch_size_keeps_its_epochs(tiny_cfg):
    tiny_cfg.train.checkpointer.period = 3
    train(tiny_cfg, console="off")
    tiny_cfg.dataloader.train.total_batch_size = 2
    tiny_cfg.train.max_iter = 9
    resume_from(tiny_cfg, 2)
    # Three iterations of four images count as six of two.
    assert [entries(tiny_cfg)[i]["epoch"] for i in (6, 7, 8)] == pytest.approx([1.75, 2, 2.25])


def test_without_epochs_in_the_config_only_time_is_written(tiny_cfg):
    tiny_cfg.train.max_iter = 1
    tiny_cfg.train.checkpointer.period = 1
    tiny_cfg.train.eval_period = 0
    tiny_cfg.lr_multiplier.update(epochs=3, drop_epochs=[2])
    del tiny_cfg.schedule
    train(tiny_cfg, console="off")
    assert "epoch" not in entries(tiny_cfg)[0] and "wall_time" in entries(tiny_cfg)[0]


def printed(capsys, printer, iteration, **scalars):
    """The line of an iteration, the one after 2 whose loss was 1.5."""
    with EventStorage(2) as storage:
        storage.put_scalars(total_loss=1.5, time=0.5, data_time=0.1)
        storage.iter = iteration
        storage.put_scalars(**scalars)
        with RunLog(console="progress"):
            printer.write()
    return capsys.readouterr().out


def test_a_line_has_the_loss_and_the_time_that_is_left(capsys):
    line = printed(capsys, ProgressPrinter(max_iter=7), 3, total_loss=2.5)
    assert "iteration 4/7  loss 2." in line and "0:00:02 left" in line


def test_a_skipped_step_is_not_printed_with_the_loss_of_another(capsys):
    line = printed(capsys, ProgressPrinter(max_iter=7), 3, lr=0.1)
    assert "iteration 4/7  skipped" in line and "loss 1.5" not in line and "lr 0.1" in line


def test_nothing_is_left_of_a_run_that_ends_early(capsys):
    line = printed(capsys, ProgressPrinter(max_iter=7, has_ended=lambda: True), 3, total_loss=2.5)
    assert "iteration 4/7" in line and "left" not in line
