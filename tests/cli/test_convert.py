"""dinox convert, on small models whose files are in the formats of others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import instantiate

from dinox.checkpoint import convert, load_weights, read_description
from dinox.checkpoint.certificate import compute_dump, make_images, write_dump
from dinox.checkpoint.conversion.parts import share_equal_heads
from dinox.checkpoint.reading import read_checkpoint
from dinox.config import load_config

from ..parity.official_dino import is_duplicate, official_name, with_duplicates
from ..small_models import DINO, SMALL, randomise_heads

CONFIG = ["--config-file", DINO, *SMALL]
DETREX = [
    "model.heads.shared=False",
    "model.memory_builder.position_embedding.temperature=10000",
    "model.memory_builder.position_embedding.offset=-0.5",
]


def build(*overrides, seed=0):
    torch.manual_seed(seed)
    return randomise_heads(instantiate(load_config(DINO, [*SMALL, *overrides]).model)).eval()


@pytest.fixture
def detrex(tmp_path):
    """A file of detrex, and our model with the same weights."""
    model, path = build(*DETREX), tmp_path / "detrex.pth"
    torch.save({"model": convert(model.state_dict(), "dinox", "detrex"), "iteration": 89999}, path)
    return path, model


def official(num_rows=91, **extra):
    """A file's content in the format of DINO's authors, with heads that layers share; class row r holds r."""
    weights = {}
    for name, tensor in convert(build().state_dict(), "dinox", "detrex").items():
        if is_duplicate(name):
            continue
        if "class_embed" in name or name == "label_enc.weight":
            rows = torch.arange(float(num_rows + (name == "label_enc.weight")))
            tensor = rows.view(-1, *[1] * (tensor.dim() - 1)).expand(-1, *tensor.shape[1:])
        weights[official_name(name)] = tensor
    return {"model": with_duplicates(weights), **extra}


def outputs(model):
    with torch.no_grad():
        return model.raw_predictions([{"image": make_images(1, (96, 128))[0]}]).logits


@pytest.mark.parametrize("name", ["dinox.pth", "dinox.safetensors"])
def test_a_detrex_file_becomes_one_that_knows_its_model(dinox, detrex, tmp_path, name):
    path, model = detrex
    code, out, err = dinox("convert", path, tmp_path / name, *CONFIG)
    assert (code, err) == (0, "")
    assert "detrex's DINO, told by the names of its tensors" in out
    assert all(f"set, as there: {setting}" in out for setting in DETREX)
    assert f"dinox predict IMAGES --weights {tmp_path / name}" in out
    description = read_description(str(tmp_path / name))
    assert description.class_names[0] == "person" and len(description.class_names) == 80
    again = instantiate(description.config.model).eval()
    load_weights(again, str(tmp_path / name), purpose="evaluate")
    assert torch.equal(outputs(again), outputs(model))


def test_what_the_user_sets_stays(dinox, detrex, tmp_path):
    setting = "model.memory_builder.position_embedding.temperature=20"
    code, out, _ = dinox("convert", detrex[0], tmp_path / "dinox.pth", *CONFIG, setting)
    assert code == 0 and "temperature=10000" not in out
    config = read_description(str(tmp_path / "dinox.pth")).config
    assert config.model.memory_builder.position_embedding.temperature == 20


def test_the_table_counts_the_tensors_of_every_part(dinox, detrex, tmp_path):
    code, out, _ = dinox("convert", detrex[0], tmp_path / "dinox.pth", *CONFIG, "--json", tmp_path / "report.json")
    assert code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    total = len(detrex[1].state_dict())
    assert len(report["used"]) == total and report["missing"] == report["unused"] == []
    assert report["source"] == "detrex" and report["source_guessed"] and report["entry"] == "model"
    lines = [line.split() for line in out.splitlines()]
    assert ["heads", "24", "24", "0", "0", "0"] in lines
    assert ["total", str(total), str(total), "0", "0", "0"] in lines


def test_there_and_back_again(dinox, detrex, tmp_path):
    assert dinox("convert", detrex[0], tmp_path / "dinox.safetensors", *CONFIG)[0] == 0
    code, _, _ = dinox("convert", tmp_path / "dinox.safetensors", tmp_path / "back.pth", "--to", "detrex")
    assert code == 0
    theirs, back = (torch.load(path)["model"] for path in (detrex[0], tmp_path / "back.pth"))
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.items())


def test_to_detrex_says_which_settings_differ_there(dinox, tmp_path):
    torch.save(build().state_dict(), tmp_path / "dinox.pth")
    code, out, _ = dinox("convert", tmp_path / "dinox.pth", tmp_path / "detrex.pth", "--to", "detrex", *CONFIG)
    assert code == 0
    assert "note: detrex computes with temperature=10000, this model with 20: set it there" in out


def test_official_files_lose_the_rows_of_no_class(dinox, tmp_path):
    torch.save(official(), tmp_path / "official.pth")
    code, out, err = dinox("convert", tmp_path / "official.pth", tmp_path / "dinox.pth", *CONFIG)
    assert (code, err) == (0, "")
    assert "IDEA-Research's DINO, told by the names" in out
    assert "class rows: heads.class_heads.0.bias: 91 -> 80" in out
    assert "class rows: query_groups.denoising.label_embedding.table.weight: 92 -> 80" in out
    bias = read_checkpoint(str(tmp_path / "dinox.pth"))["model"]["heads.class_heads.0.bias"]
    assert bias[[0, 11, 79]].tolist() == [1, 13, 90]
    assert read_description(str(tmp_path / "dinox.pth")).class_names[-1] == "toothbrush"


def test_classes_of_an_official_file_are_known_by_name_when_it_is_fine_tuned(dinox, tmp_path):
    """Row r holds r, the id of the category: 18 is a dog, 1 a person, and COCO has no owl."""
    torch.save(official(), tmp_path / "official.pth")
    assert dinox("convert", tmp_path / "official.pth", tmp_path / "dinox.pth", *CONFIG)[0] == 0
    model = build("model.num_classes=3")
    new_row = model.heads.class_heads[0].bias[1].item()
    names = ["dog", "owl", "Person"]
    report = load_weights(model, str(tmp_path / "dinox.pth"), class_names=names)
    assert model.heads.class_heads[0].bias.tolist() == [18, new_row, 1]
    assert report.classes.new == ("owl",) and len(report.classes.unused) == 78


def test_official_files_of_own_data_need_their_ids(dinox, tmp_path):
    torch.save(official(num_rows=12), tmp_path / "official.pth")
    arguments = ["convert", tmp_path / "official.pth", tmp_path / "dinox.pth", *CONFIG, "model.num_classes=4"]
    code, _, err = dinox(*arguments)
    assert code == 2 and "The file is for 12 classes: convert it with model.num_classes=12" in err
    assert dinox(*arguments, "--category-ids", "2-4,10")[0] == 0
    bias = read_checkpoint(str(tmp_path / "dinox.pth"))["model"]["heads.class_heads.0.bias"]
    assert bias.tolist() == [2, 3, 4, 10]


def test_averaged_weights(dinox, tmp_path):
    ema = {f"module.{name}": 2 * tensor for name, tensor in official()["model"].items()}
    torch.save(official(ema_model=ema), tmp_path / "official.pth")
    code, out, _ = dinox("convert", tmp_path / "official.pth", tmp_path / "dinox.pth", *CONFIG, "--ema")
    assert code == 0 and "its entry 'ema_model'" in out
    assert read_checkpoint(str(tmp_path / "dinox.pth"))["model"]["heads.class_heads.0.bias"][0] == 2


def test_averaged_weights_of_our_own_files_are_taken_unless_asked_otherwise(dinox, tmp_path):
    weights = build().state_dict()
    averages = {name: tensor + 1 for name, tensor in weights.items()}
    torch.save({"model": weights, "ema": averages}, tmp_path / "run.pth")
    for option, entry, added in ((), "ema", 1), (("--no-ema",), "model", 0), (("--ema",), "ema", 1):
        output = tmp_path / f"{len(option)}{entry}.pth"
        code, out, _ = dinox("convert", tmp_path / "run.pth", output, "--from", "dinox", *CONFIG, *option)
        assert code == 0 and f"its entry '{entry}'" in out
        bias = read_checkpoint(str(output))["model"]["heads.class_heads.0.bias"]
        assert torch.equal(bias, weights["heads.class_heads.0.bias"] + added)


# ------------------------------------------------------------------------------------------------------- certificates


def test_a_dump_of_the_original_certifies_the_converted(dinox, detrex, tmp_path):
    path, model = detrex
    write_dump(tmp_path / "dump.npz", compute_dump(model, make_images(2, (96, 128))))
    code, out, _ = dinox("convert", path, tmp_path / "dinox.pth", *CONFIG, "--certificate", tmp_path / "dump.npz")
    assert code == 0
    assert "certificate: over 2 images and 3 layers logits differ by at most 0 and boxes by 0, tolerance 0.001" in out


def test_other_outputs_are_an_error_and_nothing_is_written(dinox, detrex, tmp_path):
    write_dump(tmp_path / "dump.npz", compute_dump(build(*DETREX, seed=1), make_images(1, (96, 128))))
    arguments = ["convert", detrex[0], tmp_path / "dinox.pth", *CONFIG, "--certificate", tmp_path / "dump.npz"]
    code, _, err = dinox(*arguments)
    assert code == 2 and "dump.npz: the outputs differ by up to" in err
    assert not (tmp_path / "dinox.pth").exists()
    assert dinox(*arguments, "--tolerance", "1000")[0] == 0


def test_a_dump_is_written_and_certifies(dinox, detrex, tmp_path):
    code, out, _ = dinox("convert", detrex[0], tmp_path / "a.pth", *CONFIG, "--dump", tmp_path / "dump.npz")
    assert code == 0 and f"wrote {tmp_path / 'dump.npz'}" in out
    converted = ["convert", tmp_path / "a.pth", tmp_path / "b.safetensors", "--certificate", tmp_path / "dump.npz"]
    assert dinox(*converted)[0] == 0


# ------------------------------------------------------------------------------------------------- what does not fit


def test_less_than_all_tensors_is_refused_unless_told(dinox, detrex, tmp_path):
    data = torch.load(detrex[0])
    data["model"] = {name: tensor for name, tensor in data["model"].items() if "enc_output" not in name}
    torch.save(data, tmp_path / "less.pth")
    code, _, err = dinox("convert", tmp_path / "less.pth", tmp_path / "dinox.pth", *CONFIG)
    assert code == 2
    assert "4 are missing" in err and "query_selection.projection.weight" in err and "--partial" in err
    assert not (tmp_path / "dinox.pth").exists()
    code, out, _ = dinox("convert", tmp_path / "less.pth", tmp_path / "dinox.pth", *CONFIG, "--partial")
    assert code == 0 and "missing, as initialised when loaded: query_selection.projection.weight" in out
    assert "query_selection.norm.bias" not in read_checkpoint(str(tmp_path / "dinox.pth"))["model"]


def test_tensors_that_the_model_has_not_are_refused_as_well(dinox, detrex, tmp_path):
    code, _, err = dinox("convert", detrex[0], tmp_path / "dinox.pth", *CONFIG, "model.encoder.num_layers=1")
    assert code == 2 and "16 of the file's are not in the model" in err and "encoder.layers.1." in err
    assert not (tmp_path / "dinox.pth").exists()


def test_another_width_is_an_error_with_both_shapes(dinox, detrex, tmp_path):
    code, _, err = dinox("convert", detrex[0], tmp_path / "dinox.pth", *CONFIG, "model.embed_dim=64")
    assert code == 2 and "(32, 16, 1, 1)" not in err
    assert " in the file, " in err and "give the config that fits the file" in err.lower()


def test_a_wrong_source_is_an_error_with_the_nearest_name(dinox, detrex, tmp_path):
    code, _, err = dinox("convert", detrex[0], tmp_path / "dinox.pth", *CONFIG, "--from", "dino")
    assert code == 2
    assert "names are not those of IDEA-Research's DINO" in err
    assert "Did you mean" in err and "All are names of detrex's DINO: the source is 'detrex'" in err


def test_the_weights_of_another_project_are_not_guessed_at(dinox, tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "other.pth")
    code, _, err = dinox("convert", tmp_path / "other.pth", tmp_path / "dinox.pth", *CONFIG)
    assert code == 2 and "cannot tell whose weights these are" in err


def test_what_is_there_is_replaced_only_when_told(dinox, detrex, tmp_path):
    (tmp_path / "dinox.pth").write_text("precious")
    code, _, err = dinox("convert", detrex[0], tmp_path / "dinox.pth", *CONFIG)
    assert code == 2 and "dinox.pth (the converted file) is there already" in err and "--overwrite" in err
    assert (tmp_path / "dinox.pth").read_text() == "precious"
    assert dinox("convert", detrex[0], tmp_path / "dinox.pth", *CONFIG, "--overwrite")[0] == 0
    code, _, err = dinox("convert", detrex[0], detrex[0], *CONFIG, "--overwrite")
    assert code == 2 and "(the file to convert): give another place" in err


@pytest.mark.parametrize(
    "output, options",
    [
        ("out.pth", ["--json", "in.pth"]),
        ("out.pth", ["--dump", "in.npz", "--certificate", "in.npz"]),
        ("in.pth", []),
        ("out.pth", ["--json", "out.pth"]),
        ("out.pth", ["--json", "in.npz", "--dump", "in.npz"]),
        ("out.pth", ["--json", "in.py", "--config-file", "in.py"]),
        ("out.pth", ["--json", "in.pth", "no overwriting"]),
        ("out.pth", ["--json", "in.npz", "no overwriting"]),
        ("out.pth", ["--dump", "in.npz", "no overwriting"]),
    ],
)
def test_nothing_that_is_read_written_or_precious_is_overwritten(dinox, tmp_path, monkeypatch, output, options):
    monkeypatch.chdir(tmp_path)
    files = {name: tmp_path / name for name in ("in.pth", "in.npz", "in.py")}
    for path in files.values():
        path.write_text("precious")
    overwrite = [] if "no overwriting" in options else ["--overwrite"]
    options = [option for option in options if option != "no overwriting"]
    code, _, err = dinox("convert", "in.pth", output, *options, *overwrite)
    assert code == 2 and err.count("\n") == 1
    assert "would overwrite" in err or "would both be written to" in err or "is there already" in err
    assert {path.read_text() for path in files.values()} == {"precious"}
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("arguments", [["out.pth"], ["out.safetensors"], ["out.pth", "--dump", "dump.npz"]])
def test_a_disk_that_is_full_is_one_line_and_what_was_there_is_kept(detrex, tmp_path, arguments):
    """In a process whose files may have 40 kB."""
    target = arguments[-1]
    (tmp_path / target).write_text("precious")
    program = (
        "import resource, sys; from dinox.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "convert", str(detrex[0]), *arguments, *CONFIG, "--overwrite"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert line.startswith(f"dinox: error: {target}: cannot be written") and "Is the disk full?" in line
    assert "Traceback" not in done.stderr
    assert (tmp_path / target).read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["detrex.pth", target])


def test_settings_that_the_config_does_not_spell_are_set_as_well(dinox, detrex, tmp_path):
    path, model = detrex
    config = tmp_path / "config.py"
    config.write_text(
        "from dinox.model_zoo import get_config\n"
        f"model = get_config({DINO!r}).model\n"
        "for part, name in ((model.heads, 'shared'), (model.memory_builder.position_embedding, 'temperature'),\n"
        "                   (model.memory_builder.position_embedding, 'offset')):\n"
        "    del part[name]\n"
    )
    code, out, err = dinox("convert", path, tmp_path / "dinox.pth", "--config-file", config, *SMALL)
    assert (code, err) == (0, "")
    assert all(f"set, as there: {setting}" in out for setting in DETREX)
    again = instantiate(read_description(str(tmp_path / "dinox.pth")).config.model).eval()
    load_weights(again, str(tmp_path / "dinox.pth"), purpose="evaluate")
    assert torch.equal(outputs(again), outputs(model))


def test_a_mapping_fixes_the_keys_in_it_and_no_others(dinox, detrex, tmp_path):
    setting = "model.memory_builder.position_embedding={temperature: 20}"
    code, out, _ = dinox("convert", detrex[0], tmp_path / "dinox.pth", *CONFIG, setting)
    assert code == 0 and "temperature=10000" not in out and "offset=-0.5" in out
    config = read_description(str(tmp_path / "dinox.pth")).config
    assert config.model.memory_builder.position_embedding.temperature == 20


@pytest.mark.parametrize(
    "ids, message",
    [
        ("5-3", "5-3 runs backwards: write 3-5"),
        ("1,2,1", "1 is there twice"),
        ("1-4,3", "3 is there twice"),
        ("-3", "expected numbers and ranges"),
        ("", "expected numbers and ranges"),
        ("1,,2", "expected numbers and ranges"),
    ],
)
def test_category_ids_that_cannot_be_meant(dinox, tmp_path, ids, message):
    code, _, err = dinox("convert", tmp_path / "in.pth", tmp_path / "out.pth", f"--category-ids={ids}")
    assert code == 2 and message in err


@pytest.mark.parametrize("ids, message", [([], "got none"), ([-1, 2], "got -1"), ([1, 1], "1 is there twice")])
def test_category_ids_that_cannot_be_meant_in_python(ids, message):
    with pytest.raises(ValueError, match=message):
        convert(official()["model"], "dino", category_ids=ids)


def test_names_are_in_the_order_of_the_file():
    weights = official()["model"]
    names = list(convert(weights, "dino"))
    assert [name for name in names if name.startswith("backbone.")] == names[: sum("backbone" in x for x in names)]
    assert list(share_equal_heads({f"a{i}": torch.zeros(1) for i in range(50)})) == [f"a{i}" for i in range(50)]


def test_a_file_of_others_needs_a_config(dinox, detrex, tmp_path):
    code, _, err = dinox("convert", detrex[0], tmp_path / "dinox.pth")
    assert code == 2 and "--config-file is missing, and" in err


# ---------------------------------------------------------------------------------------------------------- backbones


def test_a_backbone_file_becomes_one_to_start_training_from(dinox, tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    arguments = ["--config-file", DINO, *(setting for setting in SMALL if "width" not in setting)]
    code, out, err = dinox("convert", tmp_path / "resnet18.pth", tmp_path / "R-18.pth", *arguments)
    assert (code, err) == (0, "")
    assert "torchvision's ResNet" in out and "not needed: 2 tensors (the classifier)" in out
    assert "note: the config's model.pixel_mean" in out and "dinox train --config-file" in out
    model = instantiate(load_config(DINO, arguments[2:]).model)
    report = load_weights(model, str(tmp_path / "R-18.pth"))
    assert report.is_backbone and not report.unexpected
    assert torch.equal(model.backbone.bottom_up.res3[0].shortcut.weight, network.layer2[0].downsample[0].weight)


def test_a_deeper_network_is_not_taken_for_a_part(dinox, tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    arguments = ["--config-file", DINO, *(setting for setting in SMALL if "width" not in setting)]
    code, _, err = dinox("convert", tmp_path / "resnet34.pth", tmp_path / "R-18.pth", *arguments)
    assert code == 2 and "of the file's are not in the model" in err
