"""Datasets that users register in their configs, and everything that can be wrong with them."""

import json
import shutil

import pytest

from tests.cli.conftest import TINY_CONFIG
from tests.cli.readme import README, readme_commands
from tests.data.coco_files import small_coco, write_coco

CONFIG = """
from dinox.config import load_file
from dinox.data import register_coco

register_coco("own_train", "{folder}/annotations.json", "{folder}/images")
register_coco("own_val", "{folder}/annotations.json", "{folder}/images")

_tiny = load_file({tiny!r})
model, dataloader, train, optimizer = _tiny.model, _tiny.dataloader, _tiny.train, _tiny.optimizer
lr_multiplier, schedule = _tiny.lr_multiplier, _tiny.schedule

dataloader.train.dataset.names = "own_train"
dataloader.test.dataset.names = "own_val"
model.num_classes = 2
train.max_iter = 2
"""


@pytest.fixture
def own_config(tmp_path, forget_datasets):
    """A config that registers a json and images which the test writes to tmp_path."""
    file = tmp_path / "own.py"
    file.write_text(CONFIG.format(folder=tmp_path, tiny=TINY_CONFIG))
    return file


def test_a_config_may_register_its_datasets(dinox, own_config, output_dir, tmp_path):
    write_coco(tmp_path, small_coco())
    code, out, err = dinox("train", "--config-file", own_config, f"train.output_dir={output_dir}")
    assert code == 0, err
    assert "iteration 2/2" in out
    assert (output_dir / "inference" / "coco_instances_results.json").is_file()


SMALL = [
    "train.init_checkpoint=''",
    "model.backbone.bottom_up.depth=18",
    "model.backbone.bottom_up.width=8",
    "model.backbone.bottom_up.norm=BN",
    "model.embed_dim=16",
    "model.num_queries=10",
    "model.encoder.num_layers=1",
    "model.encoder.feed_forward_dim=16",
    "model.decoder.num_layers=1",
    "dataloader.train.mapper.augmentations.short_edges=[64]",
    "dataloader.train.mapper.augmentations.crop_probability=0.0",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.mapper.augmentations.short_edge=64",
    "dataloader.test.num_workers=0",
    "train.max_iter=1",
    "train.device=cpu",
]


def test_the_readme_leads_from_own_data_to_detections(dinox, tmp_path, monkeypatch, forget_datasets):
    """Its commands as they stand there, but for a small model."""
    readme = README.read_text()
    example = next(part for part in readme.split("```") if part.startswith("python\n# pets.py"))
    (tmp_path / "pets.py").write_text(example.removeprefix("python\n"))
    json_file = write_coco(tmp_path / "pets", small_coco())
    for name in ("train", "val"):
        (tmp_path / "pets" / f"{name}.json").write_bytes(json_file.read_bytes())
    monkeypatch.chdir(tmp_path)
    commands = readme_commands("Your own data in five minutes")
    assert [words[1] for words in commands] == ["check-data", "train", "eval", "predict", "train"]
    for words in commands:
        config, rest = words[1:4], words[4:]  # the settings of the command come last, and win
        small = SMALL if words[1] in ("train", "eval") else []
        code, out, err = dinox(*config, *small, *rest)
        assert code == 0, (words, out, err)
        if words[1] == "train":
            shutil.copy("output/pets/model_final.pth", "coco_detector.pth")
    results = json.loads((tmp_path / "detections.json").read_text())
    assert {result["category_id"] for result in results} <= {c["id"] for c in small_coco()["categories"]}
    assert len(list((tmp_path / "output" / "predict").glob("*"))) >= len(small_coco()["images"])


def no_json(folder):
    (folder / "annotations.json").unlink()


def no_images(folder):
    (folder / "images").rename(folder / "pictures")


def broken_images(folder):
    for file in (folder / "images").iterdir():
        file.write_bytes(file.read_bytes()[:200])


def in_json(change):
    """A change of the json's content."""

    def apply(folder):
        coco = json.loads((folder / "annotations.json").read_text())
        change(coco)
        (folder / "annotations.json").write_text(json.dumps(coco))

    return apply


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize(
    "spoil, messages",
    [
        (no_json, ["annotations.json not found", "DETECTRON2_DATASETS"]),
        (in_json(lambda coco: coco.pop("categories")), ["annotations.json: no key 'categories'"]),
        (
            in_json(lambda coco: coco["annotations"][1].update(category_id=8)),
            ["'category_id': expected the id of a category (3, 7), got 8", "id 12"],
        ),
        (
            in_json(lambda coco: coco["annotations"][0].update(bbox=[4, 6, -20, 10])),
            ["'bbox': expected a width and a height that are not negative, got [4, 6, -20, 10]", "id 11"],
        ),
        (no_images, ["images of ", "not found"]),
        (broken_images, [".jpg cannot be read", "Replace it"]),
    ],
    ids=["no json", "no categories", "class out of range", "negative box", "no images", "unreadable images"],
)
def test_a_fault_of_the_data_is_one_line_and_leaves_nothing(
    dinox, own_config, output_dir, tmp_path, command, spoil, messages
):
    write_coco(tmp_path, small_coco())
    spoil(tmp_path)
    weights = tmp_path / "weights.pth"
    weights.write_text("never read")
    overrides = [f"train.output_dir={output_dir}", *([f"train.init_checkpoint={weights}"] if command == "eval" else [])]
    code, _, err = dinox(command, "--config-file", own_config, *overrides)
    assert code == 2
    assert err.startswith("dinox: error: ") and err.count("\n") == 1
    assert all(message in err for message in messages), err
    assert "--debug" not in err
    assert not output_dir.exists()


def test_an_unreadable_image_met_by_a_worker_is_one_line(dinox, own_config, output_dir, tmp_path):
    write_coco(tmp_path, small_coco())
    (tmp_path / "images" / "b.jpg").write_text("no image")  # the second: evaluation tries the first beforehand
    overrides = [f"train.output_dir={output_dir}", "dataloader.train.num_workers=1", "dataloader.train.max_bad=0"]
    code, _, err = dinox("train", "--config-file", own_config, *overrides)
    assert code == 2
    assert err.startswith("dinox: error: ") and err.count("\n") == 1
    assert "1 of 2 training images cannot be read (1 no image; max_bad=0 allows 0)" in err
    assert "--debug" not in err
    # Nothing is written before the checks have passed, but for the list of what is wrong.
    assert [file.name for file in output_dir.iterdir()] == ["skipped.csv"]
    assert "b.jpg" in (output_dir / "skipped.csv").read_text()
