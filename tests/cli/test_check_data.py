"""`dinox check-data`: what it prints and writes, and its exit codes. Each fault is in tests/faults."""

import csv
import json

import pytest

from dinox.data.inspection import image_files
from tests.data.coco_files import annotation, small_coco, write_coco
from tests.faults.own_data import write_dataset


@pytest.fixture
def good(tmp_path):
    return write_coco(tmp_path / "good", small_coco())


@pytest.fixture
def bad(tmp_path):
    coco = small_coco()
    coco["annotations"] += [annotation(id=20 + i, image_id=1, category_id=3, bbox=[1, 1, 0, 5]) for i in range(12)]
    return write_coco(tmp_path / "bad", coco)


def test_a_good_dataset_gives_0_and_says_what_was_not_done(dinox, good):
    code, out, _ = dinox("check-data", good)
    assert code == 0
    assert "2 images, 3 annotations: 2 objects of 2 classes, 1 crowd regions" in out
    assert "No faults found." in out
    assert "--open-images compares their sizes" in out.splitlines()[-1]
    code, out, _ = dinox("check-data", good, "--decode-images")
    assert code == 0
    assert out.splitlines()[-1] == "Nothing is wrong."


def test_faults_give_1_with_ten_ids_and_what_to_do(dinox, bad):
    code, out, _ = dinox("check-data", bad)
    assert code == 1
    assert "12 annotations: 'bbox': expected a width and a height greater than 0, got [1, 1, 0, 5]  [empty-box]" in out
    assert "ids 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, ... (12 in all)" in out
    assert "12 faults: empty-box." in out and "--csv FILE" in out.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["nothing.json"], ["no_such_dataset"], ["JSON", "--config-file", "no.py"]])
def test_what_cannot_be_read_gives_2_and_one_line(dinox, good, arguments):
    code, _, err = dinox("check-data", *(good if each == "JSON" else each for each in arguments))
    assert code == 2
    assert err.startswith("dinox: error: ") and err.count("\n") == 1


def test_the_table_has_a_line_for_each_fault(dinox, bad, tmp_path):
    dinox("check-data", bad, "--csv", tmp_path / "faults.csv")
    rows = list(csv.DictReader((tmp_path / "faults.csv").open()))
    assert list(rows[0]) == ["kind", "severity", "where", "id", "file", "detail"]
    assert [row["id"] for row in rows if row["kind"] == "empty-box"] == [str(20 + i) for i in range(12)]
    assert {row["file"] for row in rows if row["kind"] == "empty-box"} == {"a.jpg"}


def test_with_a_validation_set_the_table_says_which(dinox, good, bad, tmp_path):
    code, out, _ = dinox("check-data", good, "--val", bad, "--csv", tmp_path / "faults.csv")
    assert code == 1
    rows = list(csv.DictReader((tmp_path / "faults.csv").open()))
    assert {row["dataset"] for row in rows if row["kind"] == "empty-box"} == {str(bad)}
    assert "in training" in out


def test_results_as_json(dinox, bad, tmp_path):
    file = tmp_path / "results.json"
    dinox("check-data", bad, "--json", file)
    results = json.loads(file.read_text())
    found = next(problem for problem in results["problems"] if problem["kind"] == "empty-box")
    assert (found["count"], found["first_ids"], found["severity"]) == (12, list(range(20, 30)), "error")
    assert results["statistics"]["images"] == 2
    assert results["memory_forecast_gib"]["typical"][0][0] == 1


def test_a_config_registers_the_dataset_and_sets_the_limits(dinox, tmp_path, forget_datasets):
    config = write_dataset(tmp_path)
    code, out, _ = dinox("check-data", "own_train", "--val", "own_val", "--config-file", config)
    assert code == 0, out
    assert f"Forecast of GPU memory for training {config}" in out
    config.write_text(config.read_text().replace("num_classes = 2", "num_classes = 3"))
    code, out, _ = dinox("check-data", "own_train", "--config-file", config)
    assert code == 1 and "[num-classes]" in out


def test_a_fixed_json_is_written_told_and_good(dinox, bad, tmp_path):
    new = tmp_path / "new.json"
    code, out, _ = dinox("check-data", bad, "--fix", new)
    assert code == 1
    assert f"Wrote {new}" in out and "12 annotations: box without area (ids 20" in out
    assert dinox("check-data", new, "--images", bad.parent / "images")[0] == 0
    code, _, err = dinox("check-data", bad, "--fix", new)
    assert code == 2 and "is not overwritten" in err


def test_damage_that_was_found_is_still_there_after_the_fix(dinox, good, tmp_path):
    file = good.parent / "images" / "a.jpg"
    file.write_bytes(file.read_bytes()[:-500])
    code, out, _ = dinox("check-data", good, "--decode-images", "--fix", tmp_path / "new.json")
    assert code == 1
    _, _, fixed = out.partition("Wrote ")
    assert "still there" in fixed and "[unreadable-file]" in fixed and "Nothing else is wrong" not in fixed


def test_images_are_opened_once_for_report_and_fix(dinox, good, tmp_path, monkeypatch):
    opened = []
    original = image_files.inspect_image
    monkeypatch.setattr(image_files, "inspect_image", lambda path, **o: opened.append(path) or original(path, **o))
    assert dinox("check-data", good, "--open-images", "--fix", tmp_path / "new.json")[0] == 0
    assert len(opened) == 2


def test_findings_are_written_before_a_fix_that_fails(dinox, bad, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise ValueError("no space")

    monkeypatch.setattr("dinox.cli.check_data.fix_dataset", fail)
    table, results = tmp_path / "faults.csv", tmp_path / "results.json"
    code, _, err = dinox("check-data", bad, "--fix", tmp_path / "n.json", "--csv", table, "--json", results)
    assert code == 2 and "no space" in err
    assert table.is_file() and json.loads(results.read_text())["problems"]


def test_the_given_image_folder_is_that_of_the_validation_json_too(dinox, good, tmp_path):
    val = write_coco(tmp_path / "val", small_coco())
    (tmp_path / "pictures").mkdir()
    code, out, _ = dinox("check-data", good, "--val", val, "--images", tmp_path / "pictures")
    assert code == 1
    assert out.count(f"no file {tmp_path}/pictures/a.jpg") == 2


def test_one_fault_is_no_faults(dinox, good):
    (good.parent / "images" / "b.jpg").unlink()
    _, out, _ = dinox("check-data", good)
    assert "1 fault: missing-file." in out
    assert out.splitlines()[-1].endswith("writes a json with those mended that can be.")


def test_a_mistyped_path_is_not_a_matter_of_registered_datasets(dinox, tmp_path):
    code, _, err = dinox("check-data", tmp_path / "none.json")
    assert code == 2 and "none.json not found" in err and "DETECTRON2_DATASETS" not in err


@pytest.mark.parametrize("option", ["--csv", "--json", "--fix"])
def test_targets_that_cannot_be_written_are_told_before_the_work(dinox, good, tmp_path, option):
    code, out, err = dinox("check-data", good, option, tmp_path / "gone" / "file")
    assert code == 2 and out == "" and f"{option} {tmp_path}/gone/file: expected a file in an existing folder" in err
