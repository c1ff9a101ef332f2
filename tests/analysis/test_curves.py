from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from dinox.analysis import choose_metrics, draw_curves
from dinox.analysis.curves import running_mean
from dinox.analysis.runs import Run, Series


def make_run(name, *, metrics=("total_loss", "bbox/AP"), points=50):
    iterations = np.arange(1, points + 1) * 10
    series = Series(iterations, np.linspace(9, 1, points))
    whole = Series(np.array([0, 10 * points]), np.array([0.0, 12.0]))
    return Run(name=name, folder=name, metrics=dict.fromkeys(metrics, series), clock=whole, epochs=whole)


def colours(path):
    return {pixel for _, pixel in Image.open(path).convert("RGB").getcolors(maxcolors=1 << 20)}


def test_a_picture_has_a_row_per_metric_and_a_column_per_axis(tmp_path):
    runs = [make_run("a"), make_run("b")]
    draw_curves(runs, tmp_path / "four.png")
    draw_curves(runs, tmp_path / "one.png", metrics=["bbox/AP"], axes=["epochs"])
    four, one = (Image.open(tmp_path / f"{name}.png").size for name in ("four", "one"))
    assert four[0] == 2 * one[0] and one[1] < four[1]


def test_each_run_has_a_colour_of_its_own(tmp_path):
    draw_curves([make_run("a"), make_run("b", points=30)], tmp_path / "two.png", axes=["iterations"])
    draw_curves([make_run("a")], tmp_path / "one.png", axes=["iterations"])
    first, second = (0, 114, 178), (213, 94, 0)  # of Okabe and Ito
    assert {first, second} <= colours(tmp_path / "two.png")
    assert second not in colours(tmp_path / "one.png")


def test_many_runs_differ_in_more_than_colour(tmp_path):
    draw_curves([make_run(f"run number {i}", points=5) for i in range(16)], tmp_path / "curves.svg", axes=["epochs"])
    assert "stroke-dasharray" in (tmp_path / "curves.svg").read_text()


def test_a_run_that_was_not_evaluated_is_only_missing_there(tmp_path):
    runs = [make_run("a"), make_run("b", metrics=["total_loss"])]
    draw_curves(runs, tmp_path / "curves.png")
    assert (213, 94, 0) in colours(tmp_path / "curves.png")


def test_default_metrics_that_no_run_has_are_left_out():
    assert choose_metrics([make_run("a", metrics=["total_loss"])], None) == ["total_loss"]
    with pytest.raises(ValueError, match="none of the runs has a metric 'bbox/AP'"):
        choose_metrics([make_run("a", metrics=["loss"])], None)
    with pytest.raises(ValueError, match="none of the runs has a metric 'bbox/AP'"):
        choose_metrics([make_run("a", metrics=["total_loss"])], ["bbox/AP"])


@pytest.mark.parametrize("points", [1, 2])
def test_short_runs_can_be_drawn(tmp_path, points):
    draw_curves([make_run("a", points=points)], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()


def drawn(tmp_path, monkeypatch, *runs, **options):
    """The axes of the picture."""
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *args, **kwargs: figures.append(self))
    monkeypatch.setattr("dinox.analysis.curves.written_whole", lambda path: nullcontext(path))
    draw_curves(list(runs), tmp_path / "curves.png", axes=["iterations"], **options)
    return figures[0].axes


def test_a_single_value_is_a_point(tmp_path, monkeypatch):
    (panel,) = drawn(tmp_path, monkeypatch, make_run("a", points=1), make_run("b"), metrics=["total_loss"])
    markers = {len(line.get_xdata()): line.get_marker() for line in panel.lines if line.get_linewidth() > 1}
    assert markers[1] == "o" and markers[50] in (None, "None")


def test_average_precision_begins_at_zero(tmp_path, monkeypatch):
    (panel,) = drawn(tmp_path, monkeypatch, make_run("a"), metrics=["bbox/AP"])
    assert panel.get_ylim()[0] == 0 and panel.get_ylim()[1] > 9


def test_a_picture_that_is_not_finished_replaces_nothing(tmp_path, monkeypatch):
    target = tmp_path / "curves.png"
    target.write_text("earlier")

    def fail(self, path, **options):
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_curves([make_run("a")], target)
    assert target.read_text() == "earlier" and list(tmp_path.iterdir()) == [target]


def test_unknown_files_folders_and_axes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere/curves\.png: expected .* in a folder that exists"):
        draw_curves([make_run("a")], tmp_path / "nowhere" / "curves.png")
    with pytest.raises(ValueError, match=r"curves\.docx: expected a picture's name, which ends in \.png"):
        draw_curves([make_run("a")], tmp_path / "curves.docx")
    with pytest.raises(ValueError, match=r"got 'epoch'\. Did you mean 'epochs'"):
        draw_curves([make_run("a")], tmp_path / "curves.png", axes=["epoch"])


def test_the_running_mean_is_of_a_length_not_of_a_number_of_values():
    x = np.array([0.0, 1, 2, 3, 10])
    values = np.array([0.0, 3, 6, 9, 5])
    assert running_mean(x, values, width=2).tolist() == [1.5, 3, 6, 7.5, 5]
    assert running_mean(x, values, width=0).tolist() == values.tolist()
    fine = np.linspace(0, 10, 1001)
    assert running_mean(fine, np.sin(fine * 100), width=2)[100:-100] == pytest.approx(0, abs=0.02)
