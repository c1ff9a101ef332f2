"""Fine-tuning on other classes: what ``train.init_checkpoint`` and ``MODEL.WEIGHTS`` start from."""

from pathlib import Path

import pytest
import torch

from dinox.engine import train
from tests.engine.tiny import TinyDetector

CLASSES = ["disk", "ring", "square", "triangle", "star", "cross"]  # of the tiny config's data


def save(path, names):
    """A tiny detector whose class rows hold 1, 2, 3, ..."""
    model = TinyDetector(num_classes=len(names))
    with torch.no_grad():
        model.class_head.bias.copy_(torch.arange(1, len(names) + 1))
    torch.save({"model": model.state_dict(), "dinox": {"class_names": list(names)}}, path)
    return model


def trained(cfg, path):
    """One step that changes nothing -> the biases of the class head, and the log."""
    cfg.train.init_checkpoint, cfg.train.max_iter, cfg.optimizer.lr = str(path), 1, 0.0
    del cfg.dataloader["evaluator"]
    train(cfg, console="off")
    folder = Path(cfg.train.output_dir)
    weights = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    return weights["class_head.bias"].tolist(), (folder / "log.txt").read_text()


def test_shared_classes_keep_their_weights_and_the_log_says_which(tmp_path, tiny_cfg):
    save(tmp_path / "a.pth", ["Ring", "moon", "disk"])
    bias, log = trained(tiny_cfg, tmp_path / "a.pth")
    assert bias[:2] == [3, 1] and not {1, 2, 3} & set(bias[2:])
    lines = [" ".join(line.split()) for line in log.splitlines()]
    start = lines.index("classes number names")
    assert lines[start + 1 : start + 5] == [
        "taken over by name 2 disk, ring",
        "new, as initialised 4 square, triangle, star, cross",
        "of the file, not used 1 moon",
        "In 2 tensors: class_head.{weight,bias}",
    ]
    assert "class_head 2 2" in lines and "all 8 6 2" in lines


def test_without_a_class_in_common_there_is_a_warning_and_no_list_of_tensors(tmp_path, tiny_cfg):
    save(tmp_path / "a.pth", ["moon", "sun"])
    _, log = trained(tiny_cfg, tmp_path / "a.pth")
    table = [" ".join(line.split()) for line in log.splitlines()]
    assert "taken over by name 0" in table and "None of the names is the same: the class heads start anew." in table
    assert not any(line.startswith("In 2 tensors") for line in table)
    assert next("WARNING" in line for line in table if "Classes of" in line)


def test_the_same_classes_in_another_order_are_put_right(tmp_path, tiny_cfg):
    saved = save(tmp_path / "a.pth", CLASSES[::-1])
    bias, log = trained(tiny_cfg, tmp_path / "a.pth")
    assert bias == saved.class_head.bias.tolist()[::-1] == [6, 5, 4, 3, 2, 1]
    assert "taken over by name" in log


@pytest.mark.parametrize("allow_partial", [False, True])
def test_weights_in_part_are_by_class_too(tmp_path, tiny_cfg, allow_partial):
    save(tmp_path / "a.pth", CLASSES[::-1])
    tiny_cfg.train.allow_partial = allow_partial
    assert trained(tiny_cfg, tmp_path / "a.pth")[0] == [6, 5, 4, 3, 2, 1]
