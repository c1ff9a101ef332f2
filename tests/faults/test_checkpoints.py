"""Checkpoints that are dangerous, broken, not of this model, or not to be had."""

import hashlib
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dinox.checkpoint import CheckpointError, load_weights
from dinox.checkpoint.writing import write_checkpoint
from tests.cli.conftest import TINY_CONFIG
from tests.engine.tiny import TinyDetector
from tests.small_models import DINO, SMALL
from tests.utils.http_server import SHA256, http_server

USER_ERROR = 2


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def assert_one_line(err, *parts):
    """The bars of datasets that are written on first use may come before it."""
    line = err.rstrip("\n").rpartition("\n")[2]
    assert line.startswith("dinox: error: ") and err.count("dinox: error: ") == 1, err
    for part in map(str, parts):
        assert part in line, (part, err)


def evaluate(dinox, weights, *overrides):
    return dinox("eval", "--config-file", TINY_CONFIG, f"train.init_checkpoint={weights}", *overrides)


def train(dinox, weights, output_dir, *overrides):
    settings = [f"train.init_checkpoint={weights}", f"train.output_dir={output_dir}", "train.max_iter=1", *overrides]
    return dinox("train", "--config-file", TINY_CONFIG, *settings)


def start_from(command, dinox, weights, tmp_path):
    """Evaluate or train: code and message, and that no output folder was left."""
    code, _, err = command(dinox, weights, *([tmp_path / "run"] if command is train else []))
    assert not (tmp_path / "run").exists()
    return code, err


def save(path, **changes):
    """A checkpoint of the tiny detector; ``changes``: names with _ for . -> other tensors, None: left out."""
    state = TinyDetector(num_classes=6).state_dict()
    for name, tensor in changes.items():
        name = next(known for known in state if known.replace(".", "_") == name)
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    torch.save({"model": state}, path)
    return path


# ------------------------------------------------------------------------------------------ pickles that would run code


@pytest.mark.parametrize("command", ["eval", "train", "predict", "convert"])
@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl"])
def test_row_29_a_pickle_that_would_run_code_is_refused_by_every_command(dinox, tmp_path, command, name):
    path, canary = tmp_path / name, tmp_path / "canary"
    weight, note = torch.zeros(1), Canary(canary)
    if name.endswith(".pth"):
        torch.save({"model": OrderedDict(weight=weight), "note": note}, path)
    else:
        path.write_bytes(pickle.dumps({"model": OrderedDict(weight=weight.numpy()), "note": note}))
    (tmp_path / "photo.png").write_bytes(b"")
    code, _, err = {
        "eval": lambda: evaluate(dinox, path),
        "train": lambda: train(dinox, path, tmp_path / "run"),
        "predict": lambda: dinox("predict", tmp_path / "photo.png", "--weights", path, "--config-file", DINO),
        "convert": lambda: dinox("convert", path, tmp_path / "out.pth", "--config-file", DINO, *SMALL),
    }[command]()
    assert code == USER_ERROR
    assert_one_line(err, path, "refused, for it holds", "io.open", "could run code")
    assert not canary.exists()
    assert not (tmp_path / "run").exists() and not (tmp_path / "out.pth").exists()


def test_row_29_an_environment_that_switches_the_guard_off_does_not(dinox, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"model": {}, "note": Canary(tmp_path / "canary")}, tmp_path / "evil.pth")
    code, _, err = evaluate(dinox, tmp_path / "evil.pth")
    assert code == USER_ERROR
    assert_one_line(err, "evil.pth", "refused")
    assert not (tmp_path / "canary").exists()


def test_row_29_safetensors_hold_nothing_to_run(dinox, tmp_path):
    """A pickle under that name is not unpickled."""
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps({"model": {}, "note": Canary(tmp_path / "canary")}))
    code, _, err = evaluate(dinox, tmp_path / "evil.safetensors")
    assert code == USER_ERROR
    assert_one_line(err, "evil.safetensors: not a readable checkpoint")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["evil#sha256=.pth", f"evil#sha256={SHA256}.pth", f"evil.pth#sha256={SHA256}"])
def test_row_29_a_name_is_no_digest(dinox, tmp_path, monkeypatch, name):
    """With an old torch only a file whose content was checked against a digest is read."""
    monkeypatch.setattr("dinox.checkpoint.reading.weights_only_is_safe", lambda: False)
    path = str(save(tmp_path / name))
    code, _, err = evaluate(dinox, path)
    assert code == USER_ERROR
    assert_one_line(err, "refused, for torch", "CVE-2025-32434")
    with pytest.raises(CheckpointError, match="refused, for torch"):
        load_weights(TinyDetector(num_classes=6), path)


def test_row_29_a_whole_digest_that_fits_is_trusted_and_a_part_of_one_is_an_error(dinox, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("dinox.checkpoint.reading.weights_only_is_safe", lambda: False)
    content = save(tmp_path / "model.pth").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with http_server(content) as (url, _):
        assert evaluate(dinox, f"{url}/model.pth#sha256={digest}")[0] == 0
        code, _, err = evaluate(dinox, f"{url}/model.pth#sha256={digest[:8]}")
        assert code == USER_ERROR
        assert_one_line(err, "expected #sha256=HEX with all 64 digits")
        code, _, err = evaluate(dinox, f"{url}/model.pth")
    assert code == USER_ERROR
    assert_one_line(err, "refused, for torch")


# ----------------------------------------------------------------------------------------- broken, or not of this model


@pytest.mark.parametrize("command", [evaluate, train])
def test_row_30_a_missing_checkpoint(dinox, tmp_path, command):
    save(tmp_path / "model_final.pth")
    code, err = start_from(command, dinox, tmp_path / "model_fnal.pth", tmp_path)
    assert code == USER_ERROR
    assert_one_line(err, "model_fnal.pth: no such file", "Did you mean", "model_final.pth")


@pytest.mark.parametrize("command", [evaluate, train])
@pytest.mark.parametrize("name", ["cut.pth", "cut.pkl", "cut.safetensors"])
def test_row_30_a_truncated_checkpoint(dinox, tmp_path, name, command):
    path = tmp_path / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps({"model": {"weight": torch.zeros(999).numpy()}}))
    else:
        write_checkpoint(path.with_name("whole" + path.suffix), TinyDetector(num_classes=6).state_dict())
        path.write_bytes(path.with_name("whole" + path.suffix).read_bytes())
    os.truncate(path, path.stat().st_size // 2)
    code, err = start_from(command, dinox, path, tmp_path)
    assert code == USER_ERROR
    assert_one_line(err, f"{name}: not a readable checkpoint", "truncated")


@pytest.mark.parametrize("command", [evaluate, train])
@pytest.mark.parametrize("name", ["page.pth", "page.pkl", "page.safetensors"])
def test_row_30_a_web_page_instead_of_a_checkpoint(dinox, tmp_path, name, command):
    (tmp_path / name).write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    code, err = start_from(command, dinox, tmp_path / name, tmp_path)
    assert code == USER_ERROR
    assert_one_line(err, f"{name}: not a readable checkpoint")
    assert "weights_only" not in err  # torch's advice, to load the file without any safety


@pytest.mark.parametrize("command", [evaluate, train])
def test_row_30_another_architecture(dinox, tmp_path, command):
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "other.pth")
    code, err = start_from(command, dinox, tmp_path / "other.pth", tmp_path)
    assert code == USER_ERROR
    assert_one_line(err, "other.pth is not of this model", "0 of the model's 8 tensors loaded", "dinox convert")


@pytest.mark.parametrize("command", [evaluate, train])
def test_row_30_one_shape_that_differs(dinox, tmp_path, command):
    save(tmp_path / "a.pth", box_head_weight=torch.zeros(4, 9))
    code, err = start_from(command, dinox, tmp_path / "a.pth", tmp_path)
    assert code == USER_ERROR
    assert_one_line(err, "a.pth is not of this model", "box_head.weight: (4, 9) in the file, (4, 8) in the model")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.pth", {"model": {3: torch.zeros(1)}}, "expected texts as names of tensors, got 3 (int)"),
        ("a.pth", {3: torch.zeros(1)}, "expected texts as names of tensors, got 3 (int)"),
        ("a.pth", {"model": {"a": torch.eye(4).to_sparse()}}, "numbers as 'a', got one of the layout torch.sparse_coo"),
        ("a.pth", {"model": {"a": torch.zeros(2, device="meta")}}, "numbers as 'a', got one without values"),
        ("a.pth", {"model": {"a": "text"}}, "expected a dense tensor of numbers as 'a', got str"),
        ("a.pkl", {"a": np.array(["text"])}, "numbers as 'a', got an array of <U4"),
        ("a.pkl", {"a": np.array(["text", None], dtype=object)}, "numbers as 'a', got an array of object"),
        ("a.pkl", {3: np.zeros(1)}, "expected texts as names of tensors, got 3 (int)"),
        ("a.pkl", {"blobs": {3: np.zeros(1)}}, "expected texts as names of tensors, got 3 (int)"),
        ("a.pkl", {"blobs": [1]}, "a.pkl"),
    ],
)
@pytest.mark.parametrize("command", ["eval", "convert"])
def test_row_30_what_no_model_can_hold(dinox, tmp_path, command, name, content, message):
    path = tmp_path / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    if command == "eval":
        code, _, err = evaluate(dinox, path)
    else:
        code, _, err = dinox("convert", path, tmp_path / "out.pth", "--config-file", DINO, *SMALL)
    assert code == USER_ERROR
    assert_one_line(err, path, message)


LINEAR = "model:\n  _target_: torch.nn.Linear\n  in_features: 2\n  out_features: 2\n"
MAPPER = "dataloader:\n  test:\n    mapper:\n      augmentations: "
RESIZE = "{_target_: dinox.data.resize_augmentation, short_edge: 64, max_size: 64}"


@pytest.mark.parametrize(
    "config, message",
    [
        (f"model: x\n{MAPPER}{RESIZE}", "'model': expected a part with a _target_"),
        (f"model: [1]\n{MAPPER}{RESIZE}", "'model': expected a part with a _target_"),
        (f"{LINEAR.replace('  in_features: 2', '')}\n{MAPPER}{RESIZE}", "'model' cannot be built (TypeError: "),
        (f"{LINEAR.replace('2', '-6')}\n{MAPPER}{RESIZE}", "'model' cannot be built (RuntimeError: "),
        (f"{LINEAR}\n{MAPPER}3", "'dataloader.test.mapper.augmentations' cannot be built (TypeError: "),
        (f"{LINEAR}\n{MAPPER}x", "'dataloader.test.mapper.augmentations' cannot be built (AssertionError"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "convert"])
def test_row_30_a_config_inside_that_builds_nothing(dinox, tmp_path, command, config, message):
    path, photo = tmp_path / "a.pth", tmp_path / "photo.png"
    torch.save({"model": nn.Linear(2, 2).state_dict(), "dinox": {"config": config}}, path)
    Image.new("RGB", (64, 64)).save(photo)
    if command == "predict":
        code, _, err = dinox("predict", photo, "--weights", path, "--output", tmp_path / "out")
    elif "augmentations'" in message:
        return  # which only images need
    else:
        code, _, err = dinox("convert", path, tmp_path / "out.pth", "--from", "dinox")
    assert code == USER_ERROR
    assert_one_line(err, f"{path} (its config)", message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [evaluate, train])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_row_30_weights_that_are_not_numbers(dinox, tmp_path, value, command):
    save(tmp_path / "a.pth", box_head_bias=torch.tensor([0, value, 0, 0]))
    code, err = start_from(command, dinox, tmp_path / "a.pth", tmp_path)
    assert code == USER_ERROR
    assert_one_line(err, "a.pth", "'box_head.bias' holds NaN or infinity")


def test_row_30_less_than_90_percent_is_an_error_unless_allowed(dinox, tmp_path):
    save(tmp_path / "a.pth", box_head_bias=None, backbone_0_bias=None)
    code, _, err = train(dinox, tmp_path / "a.pth", tmp_path / "run")
    assert code == USER_ERROR
    assert_one_line(err, "6 of the model's 8 tensors loaded, 2 missing", "90%", "train.allow_partial=True")
    assert not (tmp_path / "run").exists()
    code, _, _ = train(dinox, tmp_path / "a.pth", tmp_path / "run", "train.allow_partial=True")
    assert code == 0 and (tmp_path / "run" / "model_final.pth").is_file()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "initialised anew: backbone.0.bias, box_head.bias" in log


def test_row_30_nothing_at_all_is_not_allowed_either(dinox, tmp_path):
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "other.pth")
    code, _, err = train(dinox, tmp_path / "other.pth", tmp_path / "run", "train.allow_partial=True")
    assert code == USER_ERROR
    assert_one_line(err, "other.pth is not of this model")


def test_row_30_class_heads_of_other_classes_are_a_table_in_the_log(dinox, tmp_path):
    save(tmp_path / "coco.pth", class_head_weight=torch.zeros(80, 8), class_head_bias=torch.zeros(80))
    code, _, _ = train(dinox, tmp_path / "coco.pth", tmp_path / "run")
    assert code == 0
    lines = [line.split() for line in (tmp_path / "run" / "log.txt").read_text().splitlines()]
    assert ["class_head.weight", "80", "6"] in lines and ["class_head.bias", "80", "6"] in lines


def test_row_30_classes_that_the_file_names_are_a_table_in_the_log(dinox, tmp_path):
    save(tmp_path / "a.pth", class_head_weight=torch.zeros(3, 8), class_head_bias=torch.zeros(3))
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    torch.save(content | {"dinox": {"class_names": ["star", "moon", "Disk"]}}, tmp_path / "a.pth")
    code, _, _ = train(dinox, tmp_path / "a.pth", tmp_path / "run")
    assert code == 0
    lines = [" ".join(line.split()) for line in (tmp_path / "run" / "log.txt").read_text().splitlines()]
    assert "taken over by name 2 disk, star" in lines and "of the file, not used 1 moon" in lines
    assert "new, as initialised 4 ring, square, triangle, cross" in lines


# -------------------------------------------------------------------------------------------------- downloads that fail


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def downloaded(cache):
    return [path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_row_31_a_checkpoint_of_another_digest(dinox, cache):
    with http_server() as (url, _):
        code, _, err = evaluate(dinox, f"{url}/model.pth#sha256={'0' * 64}")
    assert code == USER_ERROR
    assert_one_line(err, f"{url}/model.pth: expected the sha256 000", f"got {SHA256}", cache, "model.pth")
    assert downloaded(cache) == []


def test_row_31_a_download_that_breaks_off(dinox, cache):
    with http_server() as (url, _):
        code, _, err = evaluate(dinox, f"{url}/cut.pth")
    assert code == USER_ERROR
    assert_one_line(err, f"{url}/cut.pth: the download broke off after", cache, "Try again")
    assert downloaded(cache) == []


@pytest.mark.parametrize("scheme", ["https://dl.fbaipublicfiles.com/detectron2/", "detectron2://"])
def test_row_31_without_a_network(dinox, cache, monkeypatch, scheme):
    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("socket.create_connection", no_network)
    code, _, err = evaluate(dinox, f"{scheme}model.pth")
    assert code == USER_ERROR
    assert_one_line(err, "https://dl.fbaipublicfiles.com/detectron2/model.pth: cannot be fetched", "online", cache)
    assert downloaded(cache) == []


def test_row_31_addresses_without_encryption(dinox, cache):
    code, _, err = evaluate(dinox, "http://example.com/model.pth")
    assert code == USER_ERROR
    assert_one_line(err, "http://example.com/model.pth: refused, for only https://")


def test_row_31_what_is_whole_and_right_is_loaded(dinox, cache, tmp_path):
    content = save(tmp_path / "model.pth").read_bytes()
    with http_server(content) as (url, requests):
        code, _, _ = evaluate(dinox, f"{url}/model.pth")
        assert code == 0
        code, _, _ = evaluate(dinox, f"{url}/model.pth")
    assert code == 0 and requests == ["/model.pth"]
    assert downloaded(cache) == ["model.pth"]


def test_row_31_a_cached_file_that_is_broken_is_named(dinox, cache):
    with http_server(b"no checkpoint") as (url, _):
        code, _, err = evaluate(dinox, f"{url}/model.pth")
    assert code == USER_ERROR
    assert_one_line(err, cache, "not a readable checkpoint", f"the cached copy of {url}/model.pth: remove it")
