import pytest
import torch

from dinox.analysis import find_checkpoints
from dinox.checkpoint import CheckpointError


def save(path, iteration=None, epoch=None):
    content = {"model": {"weight": torch.zeros(1)}}
    if iteration is not None:
        content["iteration"] = iteration
    if epoch is not None:
        content["trainer"] = {"hooks": {"RunClock": {"epoch": epoch, "seconds": None}}}
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path)
    return path


def test_a_folders_checkpoints_come_by_iteration_and_the_final_one_once(tmp_path):
    run = tmp_path / "run"
    save(run / "model_final.pth", 9, 2.5)
    save(run / "model_0000009.pth", 9, 2.5)
    save(run / "model_0000004.pth", 4, 1.25)
    (run / "last_checkpoint").write_text("model_final.pth")
    found = find_checkpoints([run])
    assert [(each.name, each.iterations, each.epochs) for each in found] == [
        ("model_0000004.pth", 5, 1.25),
        ("model_final.pth", 10, 2.5),
    ]


def test_files_are_sorted_when_all_say_their_iteration_and_keep_their_order_otherwise(tmp_path):
    late, early = save(tmp_path / "a.pth", 7), save(tmp_path / "b.pth", 3)
    assert [each.name for each in find_checkpoints([late, early])] == ["b.pth", "a.pth"]
    silent = save(tmp_path / "c.pth")
    assert [each.name for each in find_checkpoints([late, silent, early])] == ["a.pth", "c.pth", "b.pth"]


def test_files_of_one_name_are_told_apart(tmp_path):
    first, second = save(tmp_path / "x" / "m.pth", 1), save(tmp_path / "y" / "m.pth", 2)
    assert [each.name for each in find_checkpoints([first, second])] == [str(first), str(second)]


def test_two_runs_an_empty_folder_and_a_missing_file_are_errors(tmp_path):
    first, second = save(tmp_path / "x" / "m.pth", 1), save(tmp_path / "y" / "m.pth", 1)
    with pytest.raises(
        ValueError, match=r"expected checkpoints of one run, got two of iteration 2: .*x/m\.pth and .*y/m"
    ):
        find_checkpoints([first, second])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no model_\*\.pth in it"):
        find_checkpoints([tmp_path / "empty"])
    with pytest.raises(CheckpointError, match="no such file"):
        find_checkpoints([tmp_path / "x" / "n.pth"])
