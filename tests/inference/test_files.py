"""Many files: what is found, what is written and under which names, and what can be wrong."""

import contextlib
import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dinox.inference.files import Outputs, predict_files
from dinox.inference.inputs import find_inputs
from tests.inference.marker import picture

RED, BLUE = (10, 20, 30, 50), (50, 5, 70, 25)


def write(path, **marks):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(**marks)).save(path)
    return path


def run(predictor, paths, outputs):
    return list(predict_files(predictor, find_inputs([str(path) for path in paths]), outputs))


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --------------------------------------------------------------------------------------------------------------- inputs


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("b.jpg", "a.PNG", "sub/c.jpg", "sub/.hidden.jpg", "notes.txt", "film.mp4", "sub/deep/d.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "texts, lines, expected",
    [
        (["b.jpg"], [], ["b.jpg"]),
        (["."], [], ["./a.PNG", "./b.jpg", "./film.mp4"]),
        (["sub", "b.jpg"], [], ["sub/c.jpg", "b.jpg"]),
        (["**/*.jpg"], [], ["b.jpg", "sub/c.jpg"]),
        (["s*/**"], [], ["sub/c.jpg", "sub/deep/d.webp"]),
        (["-"], ["sub/c.jpg\n", "\n", "gone.jpg\n"], ["sub/c.jpg", "gone.jpg"]),
        (["b.jpg", "./b.jpg", "*.jpg"], [], ["b.jpg"]),
        (["notes.txt"], [], ["notes.txt"]),
    ],
)
def test_files_folders_patterns_and_lists_are_found(tree, texts, lines, expected):
    assert [file.path for file in find_inputs(texts, standard_input=lines)] == expected


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tree):
    (tree / "a[1].jpg").touch()
    assert [file.path for file in find_inputs(["a[1].jpg"])] == ["a[1].jpg"]


@pytest.mark.parametrize(
    "texts, message",
    [
        (["sub/deep/../../empty"], r"empty: no images or videos in this folder\. For those in its subfolders"),
        (["*.tif"], r"\*\.tif: no image or video matches this pattern"),
        (["-"], "no images: give files"),
    ],
)
def test_nothing_found_is_an_error(tree, texts, message):
    (tree / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        find_inputs(texts)


@pytest.mark.parametrize(
    "name, drawn",
    [("a.jpg", "a.jpg"), ("a.JPEG", "a.JPEG"), ("a.png", "a.png"), ("a.tif", "a.tif.png"), ("a.mov", "a.mov.mp4")],
)
def test_pictures_keep_their_names_if_they_can(name, drawn):
    assert str(find_inputs([name])[0].drawn_name) == drawn


# ------------------------------------------------------------------------------------------------------------- pictures


def test_pictures_show_the_boxes(make_predictor, tmp_path):
    path = write(tmp_path / "in" / "a.png", red=RED)
    [prediction] = run(make_predictor(), [path], Outputs(folder=tmp_path / "out"))
    assert prediction.size == (60, 80) and len(prediction.instances) == 1
    with Image.open(tmp_path / "out" / "a.png") as drawn:
        assert drawn.size == (480, 360)  # enlarged, so that its label can be read
        pixels = np.asarray(drawn).astype(int)
    yellow = (abs(pixels - (255, 214, 0)).sum(2) < 10).nonzero()  # the first class's colour
    assert yellow[1].min() == pytest.approx(6 * RED[0], abs=8) and yellow[1].max() <= 6 * RED[2] + 40
    assert yellow[0].max() == pytest.approx(6 * RED[3], abs=8)


def test_equal_names_in_different_folders_stay_apart(make_predictor, tmp_path):
    for name in ("x/1.png", "y/1.png", "y/z/1.png"):
        write(tmp_path / "in" / name)
    run(make_predictor(), [tmp_path / "in" / "**" / "*.png"], Outputs(folder=tmp_path / "out"))
    assert files_in(tmp_path / "out") == ["x/1.png", "y/1.png", "y/z/1.png"]


def test_nothing_is_drawn_when_it_is_not_wanted(make_predictor, tmp_path):
    run(make_predictor(), [write(tmp_path / "a.png")], Outputs(folder=tmp_path / "out", pictures=False))
    assert not (tmp_path / "out").exists()


def test_files_that_are_there_are_not_overwritten_unless_told(make_predictor, tmp_path):
    paths = [write(tmp_path / "in" / name) for name in ("a.png", "b.png")]
    there = write(tmp_path / "out" / "b.png")
    before = there.read_bytes()
    predictor = make_predictor()
    with pytest.raises(ValueError, match=r"out/b\.png \(what .*/b\.png\) is there already: .*--overwrite"):
        predict_files(predictor, find_inputs(map(str, paths)), Outputs(folder=tmp_path / "out"))
    assert there.read_bytes() == before and files_in(tmp_path / "out") == ["b.png"]
    run(predictor, paths, Outputs(folder=tmp_path / "out", overwrite=True))
    assert there.read_bytes() != before


def test_inputs_are_never_overwritten(make_predictor, tmp_path):
    path = write(tmp_path / "a.png")
    outputs = Outputs(folder=tmp_path, overwrite=True)
    with pytest.raises(
        ValueError,
        match=r"a\.png \(what is found in .*\) would overwrite what this command reads, .*a\.png \(an input\)",
    ):
        predict_files(make_predictor(), find_inputs([str(path)]), outputs)


def test_two_inputs_for_one_picture_are_an_error(make_predictor, tmp_path):
    for name in ("a.bmp", "a.bmp.png"):
        write(tmp_path / "in" / name)
    with pytest.raises(
        ValueError, match=r"a\.bmp and what is found in .*a\.bmp\.png would both be written to .*a\.bmp\.png"
    ):
        predict_files(make_predictor(), find_inputs([str(tmp_path / "in")]), Outputs(folder=tmp_path / "out"))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_bad_file_costs_nothing_but_itself(make_predictor, tmp_path, batch_size):
    for name in ("a.png", "c.png", "d.png"):
        write(tmp_path / "in" / name, red=RED)
    (tmp_path / "in" / "b.png").write_text("no image")
    coco_json = tmp_path / "results.json"
    outputs = Outputs(folder=tmp_path / "out", coco_json=coco_json)
    predictions = run(make_predictor(batch_size=batch_size), [tmp_path / "in"], outputs)
    assert [os.path.basename(p.file.path) for p in predictions] == ["a.png", "b.png", "c.png", "d.png"]
    assert [p.error is None for p in predictions] == [True, False, True, True]
    assert "in/b.png cannot be read" in predictions[1].error
    assert files_in(tmp_path / "out") == ["a.png", "c.png", "d.png"]
    assert [result["image_id"] for result in json.loads(coco_json.read_text())] == [1, 2, 3]


# ----------------------------------------------------------------------------------------------------------------- COCO


def ground_truth(folder, *, names=("blue", "green", "red"), ids=(4, 9, 11)):
    """Categories in another order, with gaps, and one more than the model has."""
    boxes = {"a.png": ("red", RED), "sub/a.png": ("blue", BLUE)}
    by_name = dict(zip(names, ids))
    images, annotations = [], []
    for number, (name, (category, (x0, y0, x1, y1))) in enumerate(boxes.items(), start=100):
        write(folder / name, **{category: boxes[name][1]})
        images.append({"id": number, "file_name": name, "height": 60, "width": 80})
        box = [x0, y0, x1 - x0, y1 - y0]
        annotations.append({"id": number, "image_id": number, "category_id": by_name.get(category, 1), "bbox": box})
        annotations[-1] |= {"area": box[2] * box[3], "iscrowd": 0}
    categories = [{"id": category_id, "name": name} for name, category_id in by_name.items()]
    file = folder / "annotations.json"
    file.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories}))
    return file


def load_results(images_json, results_json):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(images_json))
        return coco, coco.loadRes(str(results_json))


def test_results_with_the_ids_of_a_json_are_what_pycocotools_scores(make_predictor, tmp_path):
    json_file = ground_truth(tmp_path / "in")
    outputs = Outputs(folder=tmp_path, pictures=False, coco_json=tmp_path / "results.json", coco_images=json_file)
    run(make_predictor(), [tmp_path / "in" / "sub" / "a.png", tmp_path / "in" / "a.png"], outputs)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(r["image_id"], r["category_id"]) for r in results] == [(101, 4), (100, 11)]
    coco, found = load_results(json_file, tmp_path / "results.json")
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = COCOeval(coco, found, "bbox")
        scoring.evaluate(), scoring.accumulate(), scoring.summarize()
    assert scoring.stats[1] == pytest.approx(1)  # AP50
    assert not (tmp_path / "results.images.json").exists()


def test_without_a_json_images_are_numbered_and_their_table_is_written(make_predictor, tmp_path):
    paths = [write(tmp_path / "in" / name, red=RED, blue=BLUE) for name in ("a.png", "b.png")]
    run(make_predictor(), paths, Outputs(folder=tmp_path, pictures=False, coco_json=tmp_path / "r.json"))
    coco, found = load_results(tmp_path / "r.images.json", tmp_path / "r.json")
    assert [image["file_name"] for image in coco.imgs.values()] == [str(path) for path in paths]
    assert {category["id"]: category["name"] for category in coco.cats.values()} == {1: "red", 2: "blue"}
    assert sorted(found.imgToAnns) == [1, 2] and len(found.anns) == 4


def test_no_detections_are_an_empty_list(make_predictor, tmp_path):
    path = write(tmp_path / "a.png")
    run(make_predictor(), [path], Outputs(folder=tmp_path, pictures=False, coco_json=tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text()) == []


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda folder: write(folder / "other.png"),
            r"annotations\.json: no image has a 'file_name' that fits .*other",
        ),
        (lambda folder: ground_truth(folder, names=("blue", "rad"), ids=(1, 2)), r"no 'red', a class.*mean 'rad'"),
        (lambda folder: (folder / "annotations.json").write_text("[]"), r"annotations\.json"),
        (
            lambda folder: (folder / "annotations.json").write_text('{"images": [{}]}'),
            r"annotations\.json: .*file_name",
        ),
        (
            lambda folder: (folder / "annotations.json").write_text(
                '{"images": [{"id": 7, "file_name": ""}], "categories": [], "annotations": []}'
            ),
            r"annotations\.json: image 7: expected the name of a file as 'file_name', got ''",
        ),
    ],
    ids=["unknown image", "unknown class", "no object", "no ids", "no name"],
)
def test_a_json_that_does_not_fit_is_an_error_before_anything_is_done(make_predictor, tmp_path, change, message):
    json_file = ground_truth(tmp_path / "in")
    change(tmp_path / "in")
    outputs = Outputs(folder=tmp_path / "out", coco_json=tmp_path / "r.json", coco_images=json_file)
    with pytest.raises(ValueError, match=message):
        predict_files(make_predictor(), find_inputs([str(tmp_path / "in" / "**" / "*.png")]), outputs)
    assert not (tmp_path / "out").exists() and not (tmp_path / "r.json").exists()


def test_a_run_that_is_interrupted_leaves_its_pictures_and_no_half_of_a_json(make_predictor, tmp_path):
    for name in ("a.png", "b.png"):
        write(tmp_path / "in" / name, red=RED)
    outputs = Outputs(folder=tmp_path / "out", coco_json=tmp_path / "r.json")
    predictions = predict_files(make_predictor(), find_inputs([str(tmp_path / "in")]), outputs)
    next(predictions)
    predictions.close()
    assert files_in(tmp_path) == ["in/a.png", "in/b.png", "model.pth", "out/a.png"]
