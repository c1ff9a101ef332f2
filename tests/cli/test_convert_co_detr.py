"""dinox convert, for files of Co-DETR's authors: with what only training needs, and without."""

import pytest
import torch
from detectron2.config import instantiate

from dinox.checkpoint import convert, load_weights, read_description
from dinox.checkpoint.reading import read_checkpoint
from dinox.config import load_config

from ..export.tiny import make_images
from ..small_models import SMALL, randomise_heads

CO_DINO, CO_DEFORMABLE = "co_detr/co_dino_r50_5scale_12ep", "co_detr/co_deformable_detr_r50_12ep"
NUM_CLASSES = 3
ARGUMENTS = [*SMALL, f"model.num_classes={NUM_CLASSES}"]


def build(config):
    torch.manual_seed(0)
    model = randomise_heads(instantiate(load_config(config, ARGUMENTS).model)).eval()
    for name, parameter in model.named_parameters():
        if "head_embedding" in name:
            torch.nn.init.ones_(parameter)  # one number, as in the authors' code
    return model


def write(model, path):
    """As mmdetection does."""
    weights = convert(model.state_dict(), "dinox", "co-detr")
    weights["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save({"meta": {"epoch": 12, "CLASSES": ("cat", "dog", "owl")}, "state_dict": weights}, path)


def logits(model):
    with torch.no_grad():
        return model.raw_predictions(make_images((64, 96), (96, 64))).logits


def load(path):
    description = read_description(str(path))
    model = instantiate(description.config.model).eval()
    load_weights(model, str(path), purpose="evaluate")
    return description, model


@pytest.mark.parametrize("config", [CO_DINO, CO_DEFORMABLE])
@pytest.mark.parametrize("choice", [[], ["--training-parts", "drop"]], ids=["keep", "drop"])
def test_a_file_detects_as_it_did(dinox, tmp_path, config, choice):
    model, output = build(config), tmp_path / "dinox.pth"
    write(model, tmp_path / "theirs.pth")
    code, out, err = dinox("convert", tmp_path / "theirs.pth", output, "--config-file", config, *ARGUMENTS, *choice)
    assert (code, err) == (0, "")
    assert "(its entry 'state_dict'): Co-DETR's Co-D" in out and "told by the names" in out
    assert "set, as there" not in out  # our configs have the authors' settings
    assert "not needed: 1 tensors (counters of frozen batch norms)" in out
    assert "note: convolutions of the neck have no bias there" in out
    description, again = load(output)
    assert list(description.class_names) == ["cat", "dog", "owl"]
    assert (again.auxiliary_heads is None) == bool(choice)
    assert torch.equal(logits(again), logits(model))
    names = read_checkpoint(str(output))["model"].keys()
    assert names == again.state_dict().keys()
    assert len(names) < len(model.state_dict()) if choice else names == model.state_dict().keys()


def test_a_smaller_file_serves_the_config_with_auxiliary_heads(dinox, tmp_path):
    model = build(CO_DINO)
    write(model, tmp_path / "theirs.pth")
    arguments = ["--config-file", CO_DINO, *ARGUMENTS, "--training-parts", "drop"]
    code, out, _ = dinox("convert", tmp_path / "theirs.pth", tmp_path / "dinox.pth", *arguments)
    assert code == 0 and "tensors (for training only)" in out
    whole = instantiate(load_config(CO_DINO, ARGUMENTS).model).eval()
    load_weights(whole, str(tmp_path / "dinox.pth"), purpose="evaluate")
    assert torch.equal(logits(whole), logits(model))


def test_a_detector_without_auxiliary_heads_says_how_to_leave_them_out(dinox, tmp_path):
    write(build(CO_DINO), tmp_path / "theirs.pth")
    arguments = [
        "convert",
        tmp_path / "theirs.pth",
        tmp_path / "dinox.pth",
        "--config-file",
        "dino/dino_r50_5scale_12ep",
    ]
    code, _, err = dinox(*arguments, *ARGUMENTS, "model.heads.shared=False")
    assert code == 2 and "for training only: leave them out with --training-parts drop" in err
    assert not (tmp_path / "dinox.pth").exists()
    assert dinox(*arguments, *ARGUMENTS, "--training-parts", "drop")[0] == 0


def test_there_and_back_again(dinox, tmp_path):
    write(build(CO_DEFORMABLE), tmp_path / "theirs.pth")
    arguments = ["--config-file", CO_DEFORMABLE, *ARGUMENTS]
    assert dinox("convert", tmp_path / "theirs.pth", tmp_path / "dinox.safetensors", *arguments)[0] == 0
    assert dinox("convert", tmp_path / "dinox.safetensors", tmp_path / "back.pth", "--to", "co-detr")[0] == 0
    theirs = torch.load(tmp_path / "theirs.pth", weights_only=True)["state_dict"]
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == theirs.keys() - {"backbone.bn1.num_batches_tracked"}
    assert all(torch.equal(theirs[name], tensor) for name, tensor in back.items())


def test_other_files_have_no_training_parts_to_drop(dinox, tmp_path):
    torch.save(build(CO_DINO).state_dict(), tmp_path / "dinox.pth")
    arguments = ["--config-file", CO_DINO, *ARGUMENTS, "--training-parts", "drop"]
    code, _, err = dinox("convert", tmp_path / "dinox.pth", tmp_path / "less.pth", *arguments)
    assert code == 2 and "those of co-detr can be dropped, and these weights are of dinox" in err
