"""Files with weights, in and out."""

import argparse
import json
import os

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from dinox.checkpoint import Checkpointer, CheckpointError, load_weights, read_description
from dinox.checkpoint.reading import pick_weights, read_checkpoint
from dinox.checkpoint.writing import check_target, write_checkpoint

DESCRIPTION = {"version": "0.1.0", "class_names": ["cat", "dög"]}


class Shared(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Linear(3, 2)
        self.other = nn.Linear(2, 2)


@pytest.fixture(params=["model.pth", "model.safetensors"])
def written(request, tmp_path):
    """A file of each kind, and the model in it."""
    model, path = Shared(), str(tmp_path / request.param)
    write_checkpoint(path, model.state_dict(), description=DESCRIPTION)
    return path, model


def test_both_kinds_fill_a_model(written):
    path, saved = written
    model = Shared()
    report = load_weights(model, path, purpose="evaluate")
    assert report.is_complete and not report.unexpected
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.state_dict().items())


def test_both_kinds_carry_the_description(written):
    assert read_description(written[0]).class_names == ("cat", "dög")


def test_the_stock_checkpointer_and_torch_read_our_pth_files(tmp_path):
    saved, model, path = Shared(), Shared(), str(tmp_path / "model.pth")
    write_checkpoint(path, saved.state_dict(), description=DESCRIPTION)
    DetectionCheckpointer(model).load(path)
    assert torch.equal(model.first.weight, saved.first.weight)
    assert torch.load(path, weights_only=True)["dinox"] == DESCRIPTION


def test_a_tensor_of_two_names_is_stored_once_and_is_one_when_read(tmp_path):
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, Shared().state_dict())
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"first.weight", "first.bias", "other.weight", "other.bias"}
    weights = read_checkpoint(str(path))["model"]
    assert weights["second.weight"] is weights["first.weight"]


def test_parts_of_one_memory_are_stored_as_what_they_are(tmp_path):
    table = torch.arange(12.0).view(4, 3)
    weights = {"whole": table, "row": table[1], "column": table[:, 1], "empty": table[:0], "none": table[:0]}
    write_checkpoint(tmp_path / "parts.safetensors", weights)
    read = read_checkpoint(str(tmp_path / "parts.safetensors"))["model"]
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())


def test_files_of_others_with_metadata_of_their_own_are_read(tmp_path):
    save_file(dict(nn.Linear(2, 2).state_dict()), tmp_path / "a.safetensors", metadata={"format": "pt", "who": "them"})
    assert load_weights(nn.Linear(2, 2), str(tmp_path / "a.safetensors")).is_complete


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, name):
    path = tmp_path / name
    write_checkpoint(path, {"weight": torch.zeros(2)})
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be written .*no space"):
        write_checkpoint(path, {"weight": torch.ones(2)})
    assert os.listdir(tmp_path) == [name]
    assert read_checkpoint(str(path))["model"]["weight"].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["model.bin", "model", "nowhere/model.pth"])
def test_a_target_that_cannot_be_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"expected a (name that ends in \.pth or|file in an existing folder)"):
        check_target(tmp_path / name)


def test_training_arguments_in_a_checkpoint_are_read_and_harmless(tmp_path):
    """Official checkpoints hold the script's argparse.Namespace."""
    data = {"model": {"weight": torch.zeros(1)}, "args": argparse.Namespace(lr=1e-4, lr_drop=[11])}
    torch.save(data, tmp_path / "a.pth")
    assert read_checkpoint(str(tmp_path / "a.pth"))["args"].lr_drop == [11]
    with pytest.raises(Exception, match="Namespace"):
        torch.load(tmp_path / "a.pth", weights_only=True)  # nothing was allowed for good


@pytest.mark.parametrize("entry", ["model", "state_dict", None])
def test_weights_are_found_under_usual_names(entry):
    weights = {"a.weight": torch.zeros(1)}
    name, found = pick_weights(weights if entry is None else {entry: weights, "epoch": 3}, path="x.pth")
    assert name == (entry or "") and found.keys() == weights.keys()


def test_averaged_weights_are_taken_when_asked_for():
    data = {"model": {"weight": torch.zeros(1)}, "ema_model": {"module.weight": torch.ones(1)}}
    assert pick_weights(data, path="x.pth")[1]["weight"].item() == 0
    assert pick_weights(data, path="x.pth", ema=True)[1]["weight"].item() == 1
    with pytest.raises(CheckpointError, match=r"holds no averaged weights .* only model"):
        pick_weights({"model": {}}, path="x.pth", ema=True)


def test_an_old_torch_reads_pth_files_only_from_those_one_trusts(tmp_path, monkeypatch):
    model, path = Shared(), tmp_path / "model.pth"
    Checkpointer(model, str(tmp_path)).save("model")
    write_checkpoint(tmp_path / "model.safetensors", model.state_dict())
    monkeypatch.setattr("dinox.checkpoint.reading.weights_only_is_safe", lambda: False)
    with pytest.raises(CheckpointError, match=r"CVE-2025-32434.*2\.6 or newer.*DINOX_TRUST_CHECKPOINTS=1"):
        load_weights(Shared(), str(path))
    load_weights(Shared(), str(path), purpose="resume")  # of an own run
    load_weights(Shared(), str(tmp_path / "model.safetensors"))
    monkeypatch.setenv("DINOX_TRUST_CHECKPOINTS", "1")
    load_weights(Shared(), str(path))


def test_metadata_that_is_no_description_is_an_error(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"dinox": json.dumps([1])})
    with pytest.raises(CheckpointError, match="expected a dictionary as 'dinox', got list"):
        read_description(str(tmp_path / "a.safetensors"))
