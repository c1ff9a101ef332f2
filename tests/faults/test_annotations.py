"""Annotations that are wrong, through `dinox check-data` and `dinox train`."""

import csv
import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.data.coco_files import annotation
from tests.engine.tiny import TinyDetector

from ..small_models import build_small, make_input
from .own_data import change_json, write_dataset

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def config(tmp_path, forget_datasets):
    return write_dataset(tmp_path)


@pytest.fixture
def train(dinox, config, output_dir):
    def run(*overrides):
        return dinox("train", "--config-file", config, f"train.output_dir={output_dir}", *overrides)

    return run


@pytest.fixture
def check(dinox, tmp_path):
    """`dinox check-data` on the training json -> (exit code, stdout, stderr, rows of the csv)."""

    def run(*arguments):
        table = tmp_path / "faults.csv"
        code, out, err = dinox(
            "check-data", tmp_path / "train.json", "--images", tmp_path / "train", "--csv", table, *arguments
        )
        rows = list(csv.DictReader(table.open())) if table.exists() else []
        return code, out, err, [row for row in rows if row["severity"] != "note"]

    return run


@pytest.fixture
def spoil(tmp_path):
    """Change the json of a split by a function of its content."""
    return lambda change, split="train": change_json(tmp_path / f"{split}.json", change)


def stops(result, output_dir, *texts):
    code, _, err = result
    assert code == 2
    assert err.startswith("dinox: error: ") and err.count("\n") == 1 and "--debug" not in err
    for text in texts:
        assert text in err
    assert not output_dir.exists()


def forget(name):
    """As in a new process."""
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def first_object(**fields):
    return lambda coco: coco["annotations"][3].update(fields)


def without(key):
    return lambda coco: coco.pop(key)


# ---------------------------------------------------------------------------------------------------------- whole files


def test_row_12_broken_json_is_told_with_path_and_byte(train, check, tmp_path, output_dir):
    file = tmp_path / "train.json"
    file.write_bytes(file.read_bytes()[:100])
    expected = f"{file}: not valid json at byte"
    stops(train(), output_dir, expected)
    code, _, err, _ = check()
    assert code == 2 and expected in err


@pytest.mark.parametrize(
    "change, text",
    [
        (without("categories"), "no key 'categories'"),
        (lambda coco: coco.update(categories=[]), "'categories' is empty"),
        (without("images"), "no key 'images'"),
        (lambda coco: coco.update(images=[]), "'images' is empty"),
    ],
)
def test_row_13_missing_sections_are_named(train, check, spoil, output_dir, change, text):
    spoil(change)
    stops(train(), output_dir, "train.json", text)
    code, _, err, _ = check()
    assert code == 2 and text in err


def test_row_14_unknown_categories_list_ten_annotations_and_their_number(train, check, spoil, output_dir):
    def change(coco):
        coco["annotations"] = [annotation(id=i, image_id=100, category_id=7, bbox=[1, 1, 5, 5]) for i in range(30, 55)]

    spoil(change)
    text = "'category_id': expected the id of a category (1, 2), got 7"
    ids = "30, 31, 32, 33, 34, 35, 36, 37, 38, 39, ... (25 in all)"
    stops(train(), output_dir, "train.json", text, ids)
    code, out, _, rows = check()
    assert code == 1
    assert text in out and ids in out and "40" not in out.partition(ids)[2].partition("index")[0]
    assert [row["id"] for row in rows if row["kind"] == "unknown-category"] == [str(i) for i in range(30, 55)]


# -------------------------------------------------------------------------------------------------------------- classes


def renumbered(ids, names):
    """Other ids and another order of the same two classes: what was "cat" stays a cat."""

    def change(coco):
        coco["categories"] = [{"id": i, "name": name} for i, name in zip(ids, names)]
        cat = dict(zip(names, ids))["cat"]
        for each in coco["annotations"]:
            each["category_id"] = cat

    return change


@pytest.mark.parametrize("ids, names", [((9, 4), ("dog", "cat")), ((0, 1), ("cat", "dog"))])
def test_row_15_ids_with_gaps_from_zero_and_unsorted_are_mapped(train, check, spoil, ids, names):
    spoil(renumbered(ids, names))
    code, _, err = train("train.max_iter=1")
    assert code == 0, err
    code, out, _, _ = check()
    assert code == 0
    assert "[category-ids]" in out and f"{min(ids)} -> 0, {max(ids)} -> 1" in " ".join(out.split())


def test_row_15_another_order_in_the_validation_set_is_matched_by_name(train, check, spoil, output_dir, tmp_path):
    spoil(renumbered((1, 2), ("dog", "cat")), "val")
    code, out, err = train("train.max_iter=1")
    assert code == 0, err
    assert "Dataset own_val has its classes in another order; they are matched by name and numbered cat, dog" in out
    detections = json.loads((output_dir / "inference" / "coco_instances_results.json").read_text())
    model = torch.load(output_dir / "model_final.pth", weights_only=True)
    assert model["dinox"]["class_names"] == ["cat", "dog"]
    # Whatever the model says is written with the validation set's ids: class 0, the cat, is its 2.
    assert {each["category_id"] for each in detections} <= {1, 2}
    code, out, _, _ = check("--val", tmp_path / "val.json")
    assert code == 0 and "[class-order]" in out


def test_row_15_a_checkpoint_keeps_its_numbering(dinox, train, config, spoil, output_dir):
    train("train.max_iter=1", "train.eval_period=0")
    spoil(renumbered((1, 2), ("dog", "cat")), "val")
    forget("own_val")
    # Nothing but the checkpoint says now how the model numbers its classes.
    overrides = [
        f"train.init_checkpoint={output_dir / 'model_final.pth'}",
        "dataloader.test.dataset.numbered_like=null",
    ]
    code, out, err = dinox("eval", "--config-file", config, f"train.output_dir={output_dir}", *overrides)
    assert code == 0, err
    assert "Dataset own_val has its classes in another order; they are matched by name and numbered cat, dog" in out
    spoil(lambda coco: coco["categories"][1].update(name="horse"), "val")
    forget("own_val")
    code, _, err = dinox("eval", "--config-file", config, f"train.output_dir={output_dir}", *overrides)
    assert code == 2
    assert "model_final.pth detects cat, dog, but dataset 'own_val' has the classes dog, horse" in err


def test_row_15_a_model_is_not_told_classes_by_other_numbers_than_its_own(dinox, train, config, spoil, output_dir):
    train("train.max_iter=1", "train.eval_period=0")
    spoil(renumbered((1, 2), ("dog", "cat")), "val")
    forget("own_val")
    weights, known = (
        f"train.init_checkpoint={output_dir / 'model_final.pth'}",
        "dataloader.test.mapper.known_labels=True",
    )
    arguments = ("eval", "--config-file", config, f"train.output_dir={output_dir}", weights, known)
    assert dinox(*arguments)[0] == 0
    forget("own_val")
    code, _, err = dinox(*arguments, "dataloader.test.dataset.numbered_like=null")
    assert code == 2
    assert "dataloader.test.mapper.known_labels: the model would be told other classes" in err


def test_row_15_other_names_in_the_validation_set_are_an_error(train, check, spoil, output_dir, tmp_path):
    spoil(lambda coco: coco["categories"][1].update(name="horse"), "val")
    stops(train(), output_dir, "'own_train' and 'own_val' have different classes", "dog", "horse")
    code, out, _, rows = check("--val", tmp_path / "val.json")
    assert code == 1 and "[other-classes]" in out
    assert {row["kind"] for row in rows} == {"other-classes"}


@pytest.mark.parametrize("section, where", [("images", "image"), ("annotations", "annotation")])
def test_row_16_repeated_ids_are_listed(train, check, spoil, output_dir, section, where):
    spoil(lambda coco: coco[section].append(dict(coco[section][2])))
    number = 102 if where == "image" else 3
    text = f"'id': expected an id of its own for each {where}, got 2 entries with the id {number}"
    stops(train(), output_dir, text)
    code, out, _, rows = check()
    assert code == 1 and text in " ".join(out.split())
    assert [(row["kind"], row["id"]) for row in rows] == [(f"duplicate-{where}-id", str(number))]


# ---------------------------------------------------------------------------------- what is left out, and what is wrong


def added(**fields):
    good = {"id": 77, "image_id": 101, "category_id": 1, "bbox": [1, 1, 5, 5]}
    return lambda coco: coco["annotations"].append(annotation(**{**good, **fields}))


def test_row_17_annotations_of_absent_images_are_skipped_and_counted(train, check, spoil):
    spoil(added(image_id=999))
    code, out, err = train("train.max_iter=1")
    assert code == 0, err
    assert "contains 9 annotations, but only 8 of them match to images in the file" in out
    code, out, _, rows = check()
    assert code == 1 and "LEFT OUT" in out
    assert [(row["kind"], row["severity"], row["id"]) for row in rows] == [("absent-image", "left out", "77")]


LEFT_OUT = [
    pytest.param([20, 20, -5, 4], "negative-box", "1 of negative width or height", id="row_18_negative_width"),
    pytest.param([20, 20, 5, -4], "negative-box", "1 of negative width or height", id="row_18_negative_height"),
    pytest.param([20, 20, 0, 4], "empty-box", "1 without area", id="row_19_no_area"),
    pytest.param([20, NAN, 5, 4], "nan-box", "1 with NaN", id="row_19_nan"),
    pytest.param([20, 20, INF, 4], "infinite-box", "1 with an infinite number", id="row_19_inf"),
    pytest.param([70, 20, 5, 4], "outside-box", "1 outside of the image", id="row_19_outside"),
]


@pytest.mark.parametrize("box, kind, count", LEFT_OUT)
def test_row_18_19_boxes_that_can_be_no_object_are_skipped_counted_and_listed(
    train, check, spoil, tmp_path, output_dir, box, kind, count
):
    spoil(added(bbox=box))
    code, out, err = train("train.max_iter=1")
    assert code == 0, err
    text = f"1 of 9 annotations of dataset 'own_train' have boxes that can be no object: {count} (images 101)"
    assert out.count(text) == 1
    row = [str(tmp_path / "train" / "1.png"), "101", f"boxes left out: {count}"]
    assert row in list(csv.reader((output_dir / "skipped.csv").open()))
    code, out, _, rows = check()
    assert code == 1 and f"[{kind}]" in out
    assert [(row["kind"], row["severity"], row["id"], row["file"]) for row in rows] == [
        (kind, "left out", "77", "1.png")
    ]


def test_row_19_every_cause_is_counted_on_its_own(train, spoil):
    for parameters in LEFT_OUT:
        spoil(added(bbox=parameters.values[0], id=80 + LEFT_OUT.index(parameters)))
    code, out, err = train("train.max_iter=1")
    assert code == 0, err
    causes = (
        "1 with NaN, 1 with an infinite number, 2 of negative width or height, 1 without area, 1 outside of the image"
    )
    assert f"6 of 14 annotations of dataset 'own_train' have boxes that can be no object: {causes}" in out


def test_row_19_too_many_end_training(train, spoil, output_dir):
    spoil(lambda coco: [added(bbox=[1, 1, 0, 5], id=200 + i)(coco) for i in range(11)])
    stops(train(), output_dir, "11 of 19 annotations have boxes", "max_bad_boxes=0.01 allows 10", "ids 200, 201")
    code, _, err = train("dataloader.train.dataset.max_bad_boxes=0.6", "train.max_iter=1")
    assert code == 0, err


@pytest.mark.parametrize("box, kind, count", LEFT_OUT)
def test_row_18_19_evaluation_leaves_nothing_out(dinox, config, spoil, output_dir, tmp_path, box, kind, count):
    spoil(added(bbox=box), "val")
    weights = tmp_path / "weights.pth"
    torch.save(TinyDetector(num_classes=2).state_dict(), weights)
    overrides = [f"train.init_checkpoint={weights}", f"train.output_dir={output_dir}"]
    result = dinox("eval", "--config-file", config, *overrides)
    stops(result, output_dir, "Dataset 'own_val'", "val.json: 'bbox'", "id 77", "max_bad_boxes=0 allows 0")
    code, _, err = dinox("eval", "--config-file", config, *overrides, "dataloader.test.dataset.max_bad_boxes=0.5")
    assert code == 0, err


@pytest.mark.parametrize("box", [[1, 2, 3], "1 2 3 4", None, [1, 2, None, 4], ["1", "2", "3", "4"], "missing"])
def test_row_20_what_is_no_box_stops_before_training(train, check, spoil, output_dir, box):
    def change(coco):
        coco["annotations"][3]["bbox"] = box
        if box == "missing":
            del coco["annotations"][3]["bbox"]

    spoil(change)
    text = "'bbox': expected 4 numbers (x, y, width, height), got"
    stops(train(), output_dir, "train.json", text, "id 4")
    code, out, _, rows = check()
    assert code == 1 and text in " ".join(out.split())
    assert [(row["kind"], row["severity"], row["id"]) for row in rows] == [("no-box", "error", "4")]


@pytest.mark.parametrize("category", [-1, 1.7, "cat"])
def test_row_21_what_is_no_class_stops_before_training(train, check, spoil, output_dir, category):
    spoil(first_object(category_id=category))
    stops(train(), output_dir, "'category_id': expected the id of a category (1, 2)", repr(category), "id 4")
    code, _, _, rows = check()
    assert code == 1
    assert [(row["kind"], row["id"]) for row in rows] == [("unknown-category", "4")]


@pytest.mark.parametrize("category", [-1, 1.7, "cat"])
def test_row_21_no_such_class_reaches_the_model_from_a_function_either(dinox, config, output_dir, category):
    config.write_text(
        config.read_text()
        + f"""
def made():
    dicts = DatasetCatalog.get("own_train")
    dicts[3]["annotations"][0]["category_id"] = {category!r}
    return dicts

DatasetCatalog.register("own_made", made)
dataloader.train.dataset.names = "own_made"
del made
"""
    )
    result = dinox("train", "--config-file", config, f"train.output_dir={output_dir}")
    stops(
        result, output_dir, "'own_made'", "3.png, annotation 0: 'category_id': expected a class index", repr(category)
    )


@pytest.mark.parametrize("label", [-1, 80])
def test_row_21_no_such_class_becomes_a_target_of_a_model_without_its_data_checked(label):
    """An index outside of a one-hot encoding would be an opaque error of a GPU."""
    image = make_input(64, 64, 3)
    image["instances"].gt_classes[1] = label
    model = build_small()
    with pytest.raises(ValueError, match=rf"0\.png: gt_classes holds {label}, expected 0 <= class < num_classes = 80"):
        model([image])


def test_row_22_another_number_of_classes_stops_with_both_numbers(train, dinox, config, output_dir):
    stops(train("model.num_classes=80"), output_dir, "model.num_classes is 80", "'own_train' has 2 classes (cat, dog)")
    config.write_text(config.read_text().replace("num_classes = 2", "num_classes = 80"))
    code, out, _ = dinox("check-data", "own_train", "--config-file", config)
    assert code == 1
    assert "model.num_classes is 80" in out and "there are 2 categories" in out and "model.num_classes=2" in out


def test_row_23_crowds_are_counted(train, check, spoil):
    spoil(added(iscrowd=1))
    code, out, err = train("train.max_iter=1")
    assert code == 0, err
    assert "own_train: 1 crowd regions, which are no objects to train on" in out
    code, out, _, _ = check()
    assert code == 0
    assert "9 annotations: 8 objects of 2 classes, 1 crowd region" in out and "[crowd]" in out


# ---------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("path", ["../../secret.png", "/etc/passwd", "a/../../secret.png", "https://host/image.png"])
def test_paths_out_of_the_image_folder_are_refused_and_not_opened(train, check, spoil, output_dir, tmp_path, path):
    spoil(lambda coco: coco["images"][3].update(file_name=path))
    expected = ["'file_name'", path, f"{tmp_path}/train", "id 103", "allow_outside_image_root=True"]
    stops(train(), output_dir, *expected)
    code, out, _, rows = check("--open-images")
    assert code == 1
    assert [(row["kind"], row["id"], row["file"]) for row in rows] == [("outside-path", "103", path)]
    assert all(text in " ".join(out.split()) for text in expected)


def test_paths_out_of_the_image_folder_can_be_allowed(train, check, spoil, tmp_path):
    (tmp_path / "train" / "3.png").rename(tmp_path / "elsewhere.png")
    spoil(lambda coco: coco["images"][3].update(file_name="../elsewhere.png"))
    code, _, err = train("dataloader.train.dataset.allow_outside_image_root=True", "train.max_iter=1")
    assert code == 0, err
    assert check("--allow-outside-image-root", "--open-images")[0] == 0


def test_links_inside_of_the_image_folder_are_followed(train, check, tmp_path):
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    (tmp_path / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "3.png").rename(tmp_path / "3.png")
    (tmp_path / "elsewhere" / "3.png").symlink_to(tmp_path / "3.png")
    code, _, err = train("train.max_iter=1")
    assert code == 0, err
    assert check("--open-images")[0] == 0
