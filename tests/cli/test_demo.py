import json

import pytest

from dinox.cli.demo import Place, choose_folder, run_demo
from tests.cli.conftest import TINY_CONFIG


def make_demo(folder, *, steps, finished):
    folder.mkdir()
    (folder / "demo.json").write_text(json.dumps({"steps": steps}))
    if finished:
        (folder / "model_final.pth").write_text("")


def test_a_new_or_empty_folder_is_taken(tmp_path):
    assert choose_folder(tmp_path / "new", steps=10) == Place(tmp_path / "new")
    assert choose_folder(tmp_path, steps=10) == Place(tmp_path)


def test_an_unfinished_demo_is_resumed_and_a_finished_one_kept(tmp_path):
    make_demo(tmp_path / "a", steps=10, finished=False)
    make_demo(tmp_path / "b", steps=10, finished=True)
    assert choose_folder(tmp_path / "a", steps=10) == Place(tmp_path / "a", resume=True)
    assert choose_folder(tmp_path / "b", steps=10) == Place(tmp_path / "b", finished=True)


def test_other_things_are_left_alone(tmp_path):
    make_demo(tmp_path / "demo", steps=10, finished=True)
    (tmp_path / "demo-2").write_text("a file")
    assert choose_folder(tmp_path / "demo", steps=20) == Place(tmp_path / "demo-3")


def test_the_demo_trains_evaluates_draws_and_says_what_next(tmp_path, capsys):
    folder = tmp_path / "demo"
    results = run_demo(output=folder, steps=2, config_file=TINY_CONFIG)
    out = capsys.readouterr().out
    for text in ("[1/4] dataset", "[2/4] training", "iteration 2/2", "[3/4]", "[4/4]", "AP ", "AP50 ", "Next:"):
        assert text in out
    assert out.count("\n  ") == 3 + out.count("\n      ")  # three commands, and indented progress
    assert "Average Precision" not in out
    assert "Average Precision" in (folder / "log.txt").read_text()
    assert (folder / "detections.png").read_bytes().startswith(b"\x89PNG")
    assert set(results["seconds"]) == {"dataset", "training", "evaluation", "pictures"}

    stamp = (folder / "model_final.pth").stat().st_mtime_ns
    again = run_demo(output=folder, steps=2, config_file=TINY_CONFIG)
    assert "not trained again" in capsys.readouterr().out
    assert again["results"] == pytest.approx(results["results"], nan_ok=True)
    assert (folder / "model_final.pth").stat().st_mtime_ns == stamp


def test_an_interrupted_demo_is_resumed(tmp_path, capsys):
    folder = tmp_path / "demo"
    make_demo(folder, steps=2, finished=False)
    run_demo(output=folder, steps=2, config_file=TINY_CONFIG)
    assert "an interrupted demo is there" in capsys.readouterr().out
    assert (folder / "model_final.pth").is_file()


def test_steps_have_to_be_positive(dinox):
    code, _, err = dinox("demo", "--steps", "0")
    assert code == 2
    assert "--steps: expected a number above 0, got 0" in err
