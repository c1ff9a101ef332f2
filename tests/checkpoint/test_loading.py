import logging
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from dinox.checkpoint import Checkpointer, CheckpointError, load_weights
from dinox.modeling import build_resnet


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.bottom_up = build_resnet(depth=18, width=8)
        self.convs = nn.Conv2d(64, 8, 1)


class Detector(nn.Module):
    """Named like a DetectionTransformer; the head's box branch is shared by two modules."""

    def __init__(self, num_classes=3, embed_dim=8):
        super().__init__()
        self.backbone = Wrapper()
        self.encoder = nn.Sequential(*(nn.Linear(embed_dim, embed_dim) for _ in range(60)))
        self.class_heads = nn.ModuleList([nn.Linear(embed_dim, num_classes)])
        self.label_embedding = nn.Embedding(num_classes + 1, embed_dim)
        self.box_heads = nn.ModuleList([nn.Linear(embed_dim, 4)] * 2)


WEIGHTS = ("weight", "bias")
NUM_TENSORS = len(Detector().state_dict()) - 2  # the second box head is the first


def save(model, path, **extra):
    torch.save({"model": model.state_dict(), **extra}, path)
    return str(path)


def differing(model, other):
    state = other.state_dict()
    return [
        name
        for name, tensor in model.state_dict().items()
        if tensor.shape != state[name].shape or not torch.equal(tensor, state[name])
    ]


@pytest.mark.parametrize("purpose", ["train", "evaluate"])
def test_a_checkpoint_of_the_model_fills_it(tmp_path, purpose):
    saved, model = Detector(), Detector()
    report = load_weights(model, save(saved, tmp_path / "a.pth"), purpose=purpose)
    assert report.is_complete and report.is_detector and not report.is_backbone
    assert len(report.loaded) == NUM_TENSORS
    assert differing(model, saved) == []


def test_files_go_both_ways_between_stock_and_own_checkpointer(tmp_path):
    saved, ours, stock = Detector(), Detector(), Detector()
    Checkpointer(saved, str(tmp_path)).save("ours", iteration=3)
    assert DetectionCheckpointer(stock).load(str(tmp_path / "ours.pth"))["iteration"] == 3
    DetectionCheckpointer(saved, str(tmp_path)).save("stock")
    load_weights(ours, str(tmp_path / "stock.pth"))
    assert differing(stock, saved) == differing(ours, saved) == []


def test_a_bare_state_dict_will_do(tmp_path):
    torch.save(Detector().state_dict(), tmp_path / "bare.pth")
    assert load_weights(Detector(), str(tmp_path / "bare.pth")).is_complete


def test_heads_for_other_classes_are_listed_and_left_alone(tmp_path, caplog):
    path, model = save(Detector(num_classes=80), tmp_path / "coco.pth"), Detector()
    with caplog.at_level(logging.INFO, logger="dinox"):
        report = load_weights(model, path)
    assert report.class_heads == ["class_heads.0.weight", "class_heads.0.bias", "label_embedding.weight"]
    table = [line.split() for line in caplog.text.splitlines()]
    assert ["class_heads.0.weight", "80", "3"] in table and ["label_embedding.weight", "81", "4"] in table
    with pytest.raises(CheckpointError, match=r"class_heads.0.weight: \(80, 8\) in the file, \(3, 8\) in the model"):
        load_weights(model, path, purpose="evaluate")


def test_a_few_missing_tensors_are_named(tmp_path, caplog):
    state = {name: tensor for name, tensor in Detector().state_dict().items() if "box_heads" not in name}
    torch.save({"model": state}, tmp_path / "a.pth")
    report = load_weights(Detector(), str(tmp_path / "a.pth"))
    assert list(report.missing) == ["box_heads.0.weight", "box_heads.0.bias"]
    assert "box_heads.0.{weight,bias}" in caplog.text


def test_another_architecture_is_one_error_with_file_numbers_and_cure(tmp_path):
    path = save(Detector(embed_dim=16), tmp_path / "wide.pth")
    with pytest.raises(CheckpointError) as error:
        load_weights(Detector(), path)
    message = str(error.value)
    assert "\n" not in message
    for text in (
        path,
        f"of the model's {NUM_TENSORS} tensors loaded",
        "of another shape",
        "90%",
        "dinox.checkpoint.convert",
    ):
        assert text in message


def test_a_detector_of_which_only_the_backbone_fits_is_no_backbone_file(tmp_path):
    state = {name.replace("encoder", "transformer"): tensor for name, tensor in Detector().state_dict().items()}
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="120 missing, 120 unexpected"):
        load_weights(Detector(), str(tmp_path / "a.pth"))


def imagenet_file(path, *, depth=18):
    """As detectron2 publishes them: numpy arrays, names without a prefix, a classifier on top."""
    weights = {name: tensor.numpy() for name, tensor in build_resnet(depth=depth, width=8).state_dict().items()}
    weights["stem.fc.weight"] = np.zeros((1000, 64), np.float32)
    data = {"model": weights, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(data, protocol=2))
    return str(path), weights


def test_a_backbone_file_fills_the_backbone_only(tmp_path, caplog):
    path, weights = imagenet_file(tmp_path / "R-18.pkl")
    model, before = Detector(), Detector()
    before.load_state_dict(model.state_dict())
    with caplog.at_level(logging.INFO, logger="dinox"):
        report = load_weights(model, path)
    assert report.is_backbone and not report.is_detector
    assert "(a backbone;" in caplog.text
    assert all(name.startswith("backbone.bottom_up.") for name in differing(model, before))
    np.testing.assert_array_equal(model.backbone.bottom_up.stem.conv1.weight.detach(), weights["stem.conv1.weight"])


def test_a_backbone_is_not_enough_to_evaluate(tmp_path):
    with pytest.raises(CheckpointError, match="to evaluate takes all of them"):
        load_weights(Detector(), imagenet_file(tmp_path / "R-18.pkl")[0], purpose="evaluate")


def test_another_backbone_is_an_error(tmp_path):
    path, _ = imagenet_file(tmp_path / "R-50.pkl", depth=50)
    with pytest.raises(CheckpointError, match=r"R-50.pkl is not of this model"):
        load_weights(Detector(), path)


def test_a_file_that_is_not_there_gets_a_did_you_mean(tmp_path):
    save(Detector(), tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match=r"model_finl.pth: no such file. Did you mean '.*model_final.pth'"):
        load_weights(Detector(), str(tmp_path / "model_finl.pth"))


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"truncated"])
@pytest.mark.parametrize("name", ["a.pth", "a.pkl"])
def test_what_is_no_checkpoint_is_named(tmp_path, content, name):
    path = tmp_path / name
    if content == b"truncated":
        content = path.read_bytes()[:1000] if save(Detector(), path) else b""
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: not a readable checkpoint"):
        load_weights(Detector(), str(path))


def test_a_list_is_no_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a dictionary of tensors, got list"):
        load_weights(Detector(), str(tmp_path / "list.pth"))


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl"])
def test_a_file_that_would_run_code_is_refused(tmp_path, name):
    data = {"model": OrderedDict(), "__author__": Canary(tmp_path / "canary")}
    if name.endswith(".pth"):
        torch.save(data, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(data))
    with pytest.raises(CheckpointError, match=rf"{name}: refused, for it holds (_io|io)\.open"):
        load_weights(Detector(), str(tmp_path / name))
    assert not (tmp_path / "canary").exists()


def test_nan_weights_are_refused_by_name(tmp_path):
    model = Detector()
    with torch.no_grad():
        model.encoder[3].bias[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"'encoder.3.bias' holds NaN"):
        load_weights(Detector(), save(model, tmp_path / "nan.pth"))


class TrainingPart(nn.Linear):
    training_only = True


def collaborating():
    """A detector with parts that only its training needs."""
    model = Detector()
    model.auxiliary_heads = nn.ModuleDict({"atss": TrainingPart(8, 8), "roi": TrainingPart(8, 8)})
    return model


def test_a_checkpoint_without_training_parts_detects_but_does_not_resume(tmp_path, caplog):
    path = save(Detector(), tmp_path / "stripped.pth")
    with caplog.at_level(logging.INFO):
        report = load_weights(collaborating(), path, purpose="evaluate")
    assert report.is_complete_for_detection and not report.is_complete
    assert report.training_only == [f"auxiliary_heads.{head}.{kind}" for head in ("atss", "roi") for kind in WEIGHTS]
    assert "4 missing (4 of them for training only)" in caplog.text
    assert "for training only, where they start anew: auxiliary_heads.*" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with pytest.raises(CheckpointError, match="to resume takes all of them"):
        load_weights(collaborating(), path, purpose="resume")


def test_training_parts_do_not_count_where_training_starts_from_a_detector(tmp_path):
    model = collaborating()
    for i in range(30):
        model.auxiliary_heads[f"more{i}"] = TrainingPart(8, 8)
    assert load_weights(model, save(Detector(), tmp_path / "base.pth")).is_detector


def test_other_missing_tensors_are_an_error_beside_training_parts(tmp_path):
    weights = Detector().state_dict()
    del weights["encoder.0.weight"]
    torch.save({"model": weights}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="5 missing"):
        load_weights(collaborating(), str(tmp_path / "a.pth"), purpose="evaluate")


def test_a_checkpoint_with_training_parts_fills_a_model_without_them(tmp_path, caplog):
    report = load_weights(Detector(), save(collaborating(), tmp_path / "whole.pth"), purpose="evaluate")
    assert report.is_complete and len(report.unexpected) == 4
