"""dinox convert, for detectors other than DINO: what their settings are there, and what becomes of them."""

import pytest
import torch
from detectron2.config import instantiate

from dinox.checkpoint import convert, load_weights, read_description
from dinox.checkpoint.conversion import dn_detr
from dinox.checkpoint.conversion.dino import COCO_IDS
from dinox.checkpoint.conversion.rules import to_theirs
from dinox.config import load_config

from ..export.tiny import make_images
from ..small_models import SMALL, randomise_heads

POSITION = "model.memory_builder.position_embedding."
NOT_MASKED = "model.decoder.mask_memory=False"


def build(config, *overrides):
    torch.manual_seed(0)
    return randomise_heads(instantiate(load_config(config, [*SMALL, *overrides]).model)).eval()


def logits(model):
    """Of two images, one of which is padded."""
    with torch.no_grad():
        return model.raw_predictions(make_images((64, 96), (96, 64))).logits


@pytest.mark.parametrize(
    ("config", "there"),
    [
        ("detr/detr_r50_300ep", []),
        ("conditional_detr/conditional_detr_r50_50ep", [NOT_MASKED]),
        ("anchor_detr/anchor_detr_r50_50ep", []),
        ("dab_detr/dab_detr_r50_50ep", [NOT_MASKED]),
        ("dn_detr/dn_detr_r50_50ep", [NOT_MASKED]),
        ("deformable_detr/deformable_detr_r50_50ep", []),
        ("deformable_detr/deformable_detr_r50_50ep", ["model.heads.shared=False", "model.decoder.look_forward=once"]),
        ("deformable_detr/deformable_detr_r50_two_stage_50ep", []),
        ("dab_detr/dab_deformable_detr_r50_50ep", []),
        ("dn_detr/dn_deformable_detr_r50_50ep", []),
    ],
)
def test_a_file_of_detrex_gets_the_settings_that_it_was_made_with(dinox, tmp_path, config, there):
    model = build(config, *there)
    torch.save({"model": convert(model.state_dict(), "dinox", "detrex")}, tmp_path / "detrex.pth")
    output = tmp_path / "dinox.pth"
    code, out, err = dinox("convert", tmp_path / "detrex.pth", output, "--config-file", config, *SMALL)
    assert (code, err) == (0, "")
    assert {line.rpartition(": ")[2] for line in out.splitlines() if "set, as there" in line} == set(there)
    description = read_description(str(output))
    if NOT_MASKED in there:
        assert description.config.model.decoder.mask_memory is False  # a switch, not a text
    again = instantiate(description.config.model).eval()
    load_weights(again, str(output), purpose="evaluate")
    assert torch.equal(logits(again), logits(model))


def test_a_file_of_stable_dinos_authors_gets_detrexs_settings_and_goes_back(dinox, tmp_path):
    """Into a config that has those of DINO's paper; our config of Stable-DINO has detrex's."""
    config = "dino/dino_r50_4scale_12ep"
    there = {POSITION + "temperature=10000", POSITION + "offset=-0.5", "model.heads.shared=False"}
    model = build(config, *there)
    torch.save({"model": convert(model.state_dict(), "dinox", "stable-dino")}, tmp_path / "theirs.pth")
    output, again = tmp_path / "dinox.pth", tmp_path / "again.pth"
    arguments = ["convert", tmp_path / "theirs.pth", output, "--from", "stable-dino", "--config-file", config, *SMALL]
    code, out, err = dinox(*arguments)
    assert (code, err) == (0, "")
    assert "IDEA-Research's Stable-DINO" in out
    assert {line.rpartition(": ")[2] for line in out.splitlines() if "set, as there" in line} == there
    loaded = instantiate(read_description(str(output)).config.model).eval()
    load_weights(loaded, str(output), purpose="evaluate")
    assert torch.equal(logits(loaded), logits(model))
    assert dinox("convert", output, again, "--to", "stable-dino")[0] == 0
    theirs, back = (torch.load(file, weights_only=True)["model"] for file in (tmp_path / "theirs.pth", again))
    assert back.keys() == theirs.keys() and all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_what_nothing_sets_in_detrex_is_said(dinox, tmp_path):
    config = "dab_detr/dab_detr_r50_50ep"
    torch.save(build(config).state_dict(), tmp_path / "dinox.pth")
    arguments = ["convert", tmp_path / "dinox.pth", tmp_path / "detrex.pth", "--to", "detrex", "--config-file", config]
    code, out, _ = dinox(*arguments, *SMALL)
    assert code == 0
    assert "note: detrex computes with mask_memory=False, this model with True: nothing sets it there" in out
    assert "temperature" not in out  # that of detrex's DAB-DETR is the paper's


def test_no_object_is_not_counted_as_a_class(dinox, tmp_path):
    config = "detr/detr_r50_300ep"
    torch.save(convert(build(config).state_dict(), "dinox", "detrex"), tmp_path / "detrex.pth")
    arguments = ["convert", tmp_path / "detrex.pth", tmp_path / "dinox.pth", "--config-file", config, *SMALL]
    code, _, err = dinox(*arguments, "model.num_classes=7")
    assert code == 2 and "The file is for 80 classes: convert it with model.num_classes=80" in err


NECK = {f"input_proj.{level}.0.weight": torch.zeros(1, 1, size, size) for level, size in enumerate((1, 1, 1, 3))}
"""What of their weights says which convolution is which."""


@pytest.mark.parametrize(
    ("config", "table", "neck", "labels"),
    [
        ("dn_detr/dn_detr_r50_50ep", dn_detr.dense_decoder_table, {}, "query_groups"),
        ("dn_detr/dn_deformable_encoder_detr_r50_50ep", dn_detr.dense_decoder_table, NECK, "query_groups"),
        ("dn_detr/dn_deformable_detr_r50_50ep", dn_detr.deformable_decoder_table, NECK, "query_groups.denoising"),
    ],
    ids=["dense", "deformable encoder", "deformable"],
)
def test_files_of_dn_detrs_authors_lose_the_rows_of_no_class_and_keep_the_unknown_one(
    dinox, tmp_path, config, table, neck, labels
):
    model = build(config, "model.num_classes=91", POSITION + "temperature=20", POSITION + "offset=0.0")
    theirs = to_theirs(model.state_dict(), table(neck)).weights
    torch.save({"model": theirs}, tmp_path / "official.pth")
    output = tmp_path / "dinox.pth"
    code, out, err = dinox("convert", tmp_path / "official.pth", output, "--config-file", config, *SMALL)
    assert (code, err) == (0, "")
    assert "DETR, told by the names" in out and "class rows: heads.class_heads.0.bias: 91 -> 80" in out
    assert f"class rows: {labels}.label_embedding.table.weight: 92 -> 81" in out
    description = read_description(str(output))
    assert description.class_names[-1] == "toothbrush"
    again = instantiate(description.config.model).eval()
    load_weights(again, str(output), purpose="evaluate")
    torch.testing.assert_close(logits(again), logits(model)[..., list(COCO_IDS)])
