"""Reading runs: resumed, killed, not evaluated yet, and of other trainers."""

import json

import pytest

from dinox.analysis import read_run, read_runs
from dinox.analysis.runs import require_metric


def step(iteration, loss=1.0, **others):
    return {"iteration": iteration, "total_loss": loss, "lr": 1e-4, **others}


@pytest.fixture
def write(tmp_path):
    """Write the lines of a run -> its folder."""

    def write(*lines, name="run", config=None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (folder / "metrics.json").write_text("\n".join(texts) + "\n")
        if config is not None:
            (folder / "config.yaml").write_text(config)
        return folder

    return write


def points(run, metric):
    series = run.metrics[metric]
    return list(zip(series.iterations.tolist(), series.values.tolist()))


def test_a_line_is_about_the_iteration_that_was_done(write):
    run = read_run(write(step(19, 3.0), step(39, 2.0)))
    assert points(run, "total_loss") == [(20, 3.0), (40, 2.0)]
    assert run.name == "run"


def test_the_evaluation_after_the_last_step_is_of_the_last_step(write):
    run = read_run(write(step(19), step(39), {"iteration": 40, "bbox/AP": 7.0}))
    assert points(run, "bbox/AP") == [(40, 7.0)]


def test_evaluations_may_be_written_after_later_steps(write):
    run = read_run(write(step(19), step(39, 2.0), {"iteration": 29, "bbox/AP": 5.0}, step(59)))
    assert points(run, "bbox/AP") == [(30, 5.0)]
    assert points(run, "total_loss") == [(20, 1.0), (40, 2.0), (60, 1.0)]


def test_a_resumed_run_replaces_what_it_did_again(write):
    first = [step(19, 3.0), step(39, 9.0), {"iteration": 39, "bbox/AP": 1.0}, step(59, 9.0)]
    run = read_run(write(*first, step(39, 2.0), {"iteration": 39, "bbox/AP": 5.0}))
    assert points(run, "total_loss") == [(20, 3.0), (40, 2.0)]
    assert points(run, "bbox/AP") == [(40, 5.0)]


def test_lines_that_are_cut_off_are_left_out_and_noted(write):
    run = read_run(write(step(19), '{"iteration": 39, "total_l' + json.dumps(step(39)), step(59), '{"iter'))
    assert points(run, "total_loss") == [(20, 1.0), (60, 1.0)]
    assert "2 lines of metrics.json cannot be read" in run.notes


def test_values_that_are_no_numbers_are_left_out(write):
    run = read_run(write(step(19), '{"iteration": 19, "bbox/AP-cat": NaN, "bbox/AP": 3.0}'))
    assert "bbox/AP-cat" not in run.metrics and points(run, "bbox/AP") == [(20, 3.0)]


@pytest.mark.parametrize("line", [{"iteration": 19}, {"iteration": 19, "epoch": 1, "wall_time": 5.0}])
def test_a_run_without_any_metric_is_an_error_with_its_folder(write, line):
    folder = write(line)
    with pytest.raises(ValueError, match=f"{folder}: no metric in its metrics.json"):
        read_run(folder)


def test_epochs_and_hours_are_those_that_were_written(write):
    run = read_run(write(step(9, epoch=0.5, wall_time=1800), step(19, epoch=1.0, wall_time=7200)))
    iterations = run.metrics["total_loss"].iterations
    assert run.along("epochs", iterations).tolist() == [0.5, 1.0]
    assert run.along("hours", iterations).tolist() == [0.5, 2.0]
    assert run.along("epochs", iterations / 2).tolist() == [0.25, 0.5]
    assert run.notes == ()


def test_evaluations_between_lines_get_the_time_between_them(write):
    lines = step(9, wall_time=3600), step(19, wall_time=7200), {"iteration": 14, "bbox/AP": 1.0}
    run = read_run(write(*lines))
    assert run.along("hours", run.metrics["bbox/AP"].iterations) == pytest.approx([1.5])


def test_a_run_without_epochs_has_those_of_its_schedule(write):
    config = """
dataloader: {train: {total_batch_size: 4, names: [a, b]}}
schedule: {images_per_epoch: 40, epochs: 2, iterations: '${dinox.iterations:2,40,4}'}
"""
    run = read_run(write(step(4), step(19), config=config))
    assert run.along("epochs", run.metrics["lr"].iterations).tolist() == [0.5, 2.0]


@pytest.mark.parametrize("config", [None, "", "a: !!python/name:os.system", "SOLVER: {IMS_PER_BATCH: 2}", "[", "text"])
def test_without_a_schedule_epochs_are_unknown(write, config):
    run = read_run(write(step(19), config=config))
    with pytest.raises(ValueError, match=r"run: how many epochs.*config\.yaml.*--x iterations"):
        run.along("epochs", run.metrics["lr"].iterations)
    assert run.along("iterations", run.metrics["lr"].iterations).tolist() == [20]


def test_a_run_without_wall_time_has_that_of_its_steps(write):
    run = read_run(write(step(9), step(19, time=36.0), step(29, time=72.0)))
    assert run.along("hours", run.metrics["lr"].iterations[1:]) == pytest.approx([0.2, 0.4])
    assert "hours are those of its training steps alone" in run.notes[0]


def test_a_run_that_an_older_version_began_has_the_time_of_its_steps(write):
    run = read_run(write(step(9, time=360.0), step(19, time=360.0, wall_time=3600)))
    assert run.along("hours", run.metrics["lr"].iterations) == pytest.approx([1, 2])


def test_time_does_not_go_back(write):
    run = read_run(write(step(9, wall_time=50), {"iteration": 9, "wall_time": 90}, step(19, wall_time=70)))
    assert run.along("hours", run.metrics["lr"].iterations) == pytest.approx([90 / 3600, 90 / 3600])


def test_without_any_time_hours_are_an_error(write):
    run = read_run(write(step(9)))
    with pytest.raises(ValueError, match="how long this run took is unknown"):
        run.along("hours", run.metrics["lr"].iterations)


def test_names_are_the_shortest_that_differ(write, tmp_path):
    for name in ("a/x", "b/x"):
        (tmp_path / name).mkdir(parents=True)
        write(step(0), name=name)
    folders = [tmp_path / "a" / "x", tmp_path / "b" / "x"]
    assert [run.name for run in read_runs(folders)] == ["a/x", "b/x"]
    assert [run.name for run in read_runs(folders[:1])] == ["x"]
    assert [run.name for run in read_runs(folders, ["one", "two"])] == ["one", "two"]
    with pytest.raises(ValueError, match="--names: expected one for each of 2 runs, got 1: one"):
        read_runs(folders, ["one"])


def test_a_metric_that_no_run_has_gets_the_nearest(write):
    run = read_run(write(step(0), {"iteration": 0, "bbox/AP": 1.0}))
    with pytest.raises(ValueError, match=r"metric 'bbox/AB'\. Did you mean 'bbox/AP'.*have: bbox/AP;"):
        require_metric([run], "bbox/AB")


def test_folders_that_hold_no_run(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no metrics\.json in it"):
        read_run(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"metrics\.json: expected one JSON object with `iteration` per line"):
        read_run(write("[1, 2]", '{"a": 1}'))
