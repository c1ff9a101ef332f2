import json
import shlex

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from dinox.cli import demo
from dinox.cli.demo import Place, choose_folder, run_demo
from dinox.data import register_shapes
from dinox.data.shapes.files import ShapesSpec
from tests.cli.conftest import TINY_CONFIG


def make_demo(folder, *, settings, finished):
    folder.mkdir()
    (folder / "demo.json").write_text(json.dumps({"settings": settings, "finished": finished}))
    (folder / "model_final.pth").write_text("perhaps only the half of one")


def test_a_new_or_empty_folder_is_taken(tmp_path):
    assert choose_folder(tmp_path / "new", settings="abc") == Place(tmp_path / "new", "abc")
    assert choose_folder(tmp_path, settings="abc") == Place(tmp_path, "abc")


def test_an_unfinished_demo_is_resumed_and_a_finished_one_kept(tmp_path):
    make_demo(tmp_path / "a", settings="abc", finished=False)
    make_demo(tmp_path / "b", settings="abc", finished=True)
    assert choose_folder(tmp_path / "a", settings="abc") == Place(tmp_path / "a", "abc", resume=True)
    assert choose_folder(tmp_path / "b", settings="abc") == Place(tmp_path / "b", "abc", finished=True)


def test_other_things_are_left_alone(tmp_path):
    make_demo(tmp_path / "demo", settings="abc", finished=True)
    (tmp_path / "demo-2").write_text("a file")
    assert choose_folder(tmp_path / "demo", settings="xyz") == Place(tmp_path / "demo-3", "xyz")


def test_the_demo_trains_evaluates_draws_and_says_what_next(tmp_path, capsys):
    folder = tmp_path / "demo"
    results = run_demo(output=folder, steps=2, config_file=TINY_CONFIG)
    out = capsys.readouterr().out
    for text in ("[1/4] dataset", "[2/4] training", "iteration 2/2", "[3/4]", "[4/4]", "AP ", "AP50 ", "Next:"):
        assert text in out
    assert out.count("\n  ") == 4 + out.count("\n      ")  # four commands, and indented progress
    assert "Average Precision" not in out
    assert "Average Precision" in (folder / "log.txt").read_text()
    assert (folder / "detections.png").read_bytes().startswith(b"\x89PNG")
    assert set(results["seconds"]) == {"dataset", "training", "evaluation", "pictures"}

    stamp = (folder / "model_final.pth").stat().st_mtime_ns
    again = run_demo(output=folder, steps=2, config_file=TINY_CONFIG)
    assert "not trained again" in capsys.readouterr().out
    assert again["results"] == pytest.approx(results["results"], nan_ok=True)
    assert (folder / "model_final.pth").stat().st_mtime_ns == stamp


def test_the_command_that_predicts_works_as_printed(tmp_path, capsys, dinox, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_demo(output="my demo", steps=1, config_file=TINY_CONFIG)
    line = next(line for line in capsys.readouterr().out.splitlines() if " predict " in line)
    arguments = shlex.split(line.partition(" predict ")[2])
    # The demo's own config calls nothing but dinox.
    code, out, err = dinox("predict", *arguments, "--allow-target", "tests.engine")
    assert code == 0, err
    assert "8 images" in out
    assert len(list((tmp_path / "output" / "predict").glob("*.jpg"))) == 8


def test_an_interrupted_demo_is_resumed(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "my demo"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(demo, "train", interrupt)
        run_demo(output=folder, steps=2, config_file=TINY_CONFIG)
    run_demo(output=folder, steps=2, config_file=TINY_CONFIG)
    out = capsys.readouterr().out
    assert "an interrupted demo is there" in out
    assert (folder / "model_final.pth").is_file()
    next_command = next(line for line in out.splitlines() if " eval --config-file" in line)
    assert f"train.init_checkpoint={folder / 'model_final.pth'}" in shlex.split(next_command)


def interrupt(*args, **options):
    raise KeyboardInterrupt


def test_a_demo_with_other_settings_goes_elsewhere(tmp_path, capsys):
    config = tmp_path / "configs" / "projects" / "x" / "configs" / "config.py"
    config.parent.mkdir(parents=True)
    config.write_text(
        f"from dinox.config import load_file\n_tiny = load_file({TINY_CONFIG!r})\n"
        "model, dataloader, train, optimizer = _tiny.model, _tiny.dataloader, _tiny.train, _tiny.optimizer\n"
        "lr_multiplier, schedule = _tiny.lr_multiplier, _tiny.schedule\n"
    )
    run_demo(output=tmp_path / "demo", steps=1, config_file=config)
    config.write_text(config.read_text() + "model.embed_dim = 16\n")
    run_demo(output=tmp_path / "demo", steps=1, config_file=config)
    assert f"other settings: going to {tmp_path / 'demo-2'}" in capsys.readouterr().out
    assert (tmp_path / "demo-2" / "model_final.pth").is_file()


@pytest.fixture
def unwritable_dataset(tmp_path, monkeypatch):
    """The demo's datasets, small, below a root where nobody can write; also not the superuser."""
    (tmp_path / "root").write_text("a file")
    spec = ShapesSpec(seed=7, num_images=2, size=96)
    register_shapes("dinox_unwritable", seed=7, num_images=2, size=96, root=tmp_path / "root")
    monkeypatch.setattr(demo, "DEFAULT_DATASETS", {"dinox_unwritable": spec})
    monkeypatch.chdir(tmp_path)
    yield "dinox_unwritable"
    DatasetCatalog.remove("dinox_unwritable")
    MetadataCatalog.remove("dinox_unwritable")


def test_datasets_go_to_another_folder_if_theirs_cannot_be_written(tmp_path, unwritable_dataset, capsys):
    cfg = demo.load_config(TINY_CONFIG)
    for loader in (cfg.dataloader.train, cfg.dataloader.test):
        loader.dataset.names = unwritable_dataset
    num_images, folder = demo._make_datasets(cfg, say=print)
    assert num_images == {"train": 2, "test": 2}
    assert folder == tmp_path / "datasets"
    assert f"writing it to {folder} instead" in capsys.readouterr().out
    assert f"DETECTRON2_DATASETS={folder} " in demo._next_commands(cfg, TINY_CONFIG, tmp_path / "a.pth", folder)


def test_a_demo_without_its_dataset_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "no space left", "datasets")

    monkeypatch.setattr(demo, "_count_images", fail)
    with pytest.raises(OSError, match="no space left"):
        run_demo(output=tmp_path / "demo", steps=1, config_file=TINY_CONFIG)
    assert not (tmp_path / "demo").exists()


def test_steps_have_to_be_positive(dinox):
    code, _, err = dinox("demo", "--steps", "0")
    assert code == 2
    assert "--steps: expected a number above 0, got 0" in err
