"""`dinox analyze collaboration` on models as they are initialised, with two images."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from dinox.checkpoint.writing import write_checkpoint
from dinox.config import load_config
from tests.engine.conftest import TINY_CONFIG, TINY_DINO_CONFIG

TINY_CO_CONFIG = str(Path(TINY_DINO_CONFIG).with_name("tiny_co_config.py"))
HEADS = ["DETR", "roi", "atss"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of a tiny Co-Deformable-DETR, of the same for detection only, and of a tiny DINO."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {name: folder / f"{name}.pth" for name in ("co", "detection", "dino")}
    for name, config in (("co", TINY_CO_CONFIG), ("dino", TINY_DINO_CONFIG)):
        torch.manual_seed(0)
        model = instantiate(load_config(config).model)
        write_checkpoint(paths[name], model.state_dict())
        if name == "co":
            model.drop_training_parts()
            write_checkpoint(paths["detection"], model.state_dict())
    return paths


def test_two_models_are_compared_in_numbers_and_pictures(dinox, checkpoints, tmp_path):
    target, pictures = tmp_path / "out.json", tmp_path / "new" / "pictures"
    configs = ["--config-file", TINY_CO_CONFIG, "--config-file", TINY_DINO_CONFIG]
    options = [*configs, "--images", 2, "--pictures", 1, "--output", pictures, "--json", target]
    code, out, err = dinox("analyze", "collaboration", checkpoints["co"], checkpoints["dino"], *options)
    assert code == 0, err
    assert "2 images of dinox_tiny_val with" in out
    assert "No auxiliary heads: no distances between heads" in out
    written = json.loads(target.read_text())
    assert written["command"] == "analyze collaboration" and written["datasets"] == ["dinox_tiny_val"]
    co, dino = written["models"]
    assert (co["name"], dino["name"]) == ("co", "dino") and co["images"] == dino["images"] == 2
    for model in (co, dino):
        for curve in model["iof_iob"].values():
            assert len(curve["iof"]) == len(curve["iob"]) == len(curve["thresholds"])
            assert curve["iof"] == sorted(curve["iof"], reverse=True) and 0 <= curve["area"] <= 1
        assert model["positives_per_object"]["DETR"] == 1 and model["foreground"] == "boxes"
    assert co["conflicts"]["heads"] == HEADS == list(co["positives_per_object"])
    assert all((co["conflicts"]["kl"][i][j] == 0) == (i == j) for i in range(3) for j in range(3))
    assert co["conflicts"]["images"] == [[2] * 3] * 3
    assert min(co["positives_per_object"].values()) >= 1
    assert list(co["query_distances"]) == ["roi", "atss"]
    assert dino["conflicts"] is None and dino["query_distances"] == {} and co["notes"] == []
    names = sorted(path.name.split("_")[0] for path in pictures.iterdir())
    assert names == ["cams", "conflicts", "iof", "maps", "queries"]
    assert sorted(map(str, pictures.iterdir())) == sorted(written["pictures"])
    assert all(Image.open(path).width > 300 for path in written["pictures"])


def test_heads_whose_weights_are_not_in_the_file_say_nothing(dinox, checkpoints, tmp_path):
    target = tmp_path / "out.json"
    options = ["--config-file", TINY_CO_CONFIG, "--images", 1, "--names", "published", "--json", target]
    code, out, err = dinox("analyze", "collaboration", checkpoints["detection"], *options)
    assert code == 0, err
    assert "no weights of its auxiliary heads" in out and "published" in out
    (model,) = json.loads(target.read_text())["models"]
    assert list(model["positives_per_object"]) == ["DETR"] and model["conflicts"] is None


def test_the_foreground_is_masks_where_the_mapper_gives_them(dinox, checkpoints, tmp_path):
    target = tmp_path / "out.json"
    options = ["--config-file", TINY_CO_CONFIG, "--images", 1, "--json", target]
    masks = "dataloader.test.mapper.masks=bitmask"
    code, out, err = dinox("analyze", "collaboration", checkpoints["co"], masks, *options)
    assert code == 0, err
    assert "the objects' masks" in out
    assert json.loads(target.read_text())["models"][0]["foreground"] == "masks"


def test_a_run_says_by_itself_what_it_is(dinox, tmp_path):
    run = tmp_path / "tiny_co"
    overrides = [f"train.output_dir={run}", "schedule.epochs=1", "schedule.drop_epochs=[]", "train.eval_period=0"]
    assert dinox("train", "--config-file", TINY_CO_CONFIG, *overrides)[0] == 0
    code, out, err = dinox("analyze", "collaboration", run, "--images", 1)
    assert code == 0, err
    assert f"tiny_co: {run / 'model_final.pth'}" in out and "atss" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--images", "0"], "--images: expected a number of at least 1, got 0"),
        (["--pictures", "-1"], "--pictures: expected a number of at least 0, got -1"),
        (["--names", "a", "b"], "--names: expected one for each of 1 checkpoints, got 2"),
        (["--config-file", TINY_CO_CONFIG], "--config-file: expected one, or one for each of 1 checkpoints: 2"),
        (["--output", __file__], "expected a folder for pictures, this is a file"),
        (["--json", "nowhere/at/all.json"], "expected a file in an existing folder"),
        (["model.num_querys=3"], "Did you mean 'model.num_queries'"),
        (["model.criterion=null"], "expected a detection transformer with a matcher"),
        (["model.embed_dim=64"], "co.pth is not of this model"),
        (["dataloader.test.dataset.names=dinox_tiny_vall"], "Did you mean 'dinox_tiny_val'"),
    ],
)
def test_a_mistake_is_one_line(dinox, checkpoints, arguments, message):
    code, _, err = dinox("analyze", "collaboration", checkpoints["co"], "--config-file", TINY_CO_CONFIG, *arguments)
    assert code == 2
    assert err.startswith("dinox: error: ") and err.count("\n") == 1 and message in err, err


def test_a_model_of_another_kind_is_an_error(dinox, checkpoints):
    code, _, err = dinox("analyze", "collaboration", checkpoints["co"], "--config-file", TINY_CONFIG)
    assert code == 2
    assert "expected a detection transformer with a matcher" in err and "TinyDetector" in err, err


def test_images_without_annotations_are_an_error(dinox, checkpoints, tmp_path, forget_datasets):
    from detectron2.data import DatasetCatalog

    load_config(TINY_CO_CONFIG)  # registers the tiny datasets
    records = [{**record, "annotations": []} for record in DatasetCatalog.get("dinox_tiny_val")]
    DatasetCatalog.register("dinox_bare", lambda: records)
    options = ["--config-file", TINY_CO_CONFIG, "dataloader.test.dataset.names=dinox_bare"]
    code, _, err = dinox("analyze", "collaboration", checkpoints["co"], *options)
    assert code == 2
    assert "images without any object" in err, err


def test_models_are_compared_on_the_same_images_only(dinox, checkpoints, tmp_path):
    config = tmp_path / "other.py"
    config.write_text(
        "from dinox.config import load_config\n"
        f"cfg = load_config({TINY_CO_CONFIG!r}, ['dataloader.test.dataset.names=dinox_tiny_train'])\n"
        "model, dataloader = cfg.model, cfg.dataloader\n"
    )
    configs = ["--config-file", TINY_CO_CONFIG, "--config-file", config]
    code, _, err = dinox("analyze", "collaboration", checkpoints["co"], checkpoints["co"], *configs, "--images", 1)
    assert code == 2
    assert "models are compared on the same images" in err, err
