"""Classes of several datasets are matched by name."""

import json
import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from dinox.data import DataError, load_dataset_dicts
from dinox.data.class_numbering import own_class_names_of
from dinox.evaluation import CocoEvaluator

from .coco_files import small_coco, write_coco


def swapped_coco() -> dict:
    """`small_coco`, with the classes' ids in the other order: dog 1, cat 2."""
    coco = small_coco()
    coco["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    for each in coco["annotations"]:
        each["category_id"] = {7: 1, 3: 2}[each["category_id"]]
    return coco


@pytest.fixture
def two(tmp_path, register):
    first = register("first", write_coco(tmp_path / "1", small_coco()))
    return first, register("second", write_coco(tmp_path / "2", swapped_coco()))


def classes_of(dicts):
    return [[each["category_id"] for each in record["annotations"]] for record in dicts]


def test_the_first_dataset_numbers_the_classes(two):
    dicts = load_dataset_dicts(two, filter_empty=False)
    assert classes_of(dicts) == [[0, 1], [1]] * 2
    assert MetadataCatalog.get("second").thing_classes == ["cat", "dog"]
    assert MetadataCatalog.get("second").thing_dataset_id_to_contiguous_id == {1: 1, 2: 0}
    assert own_class_names_of("second") == ["dog", "cat"]


def test_from_then_on_the_catalog_has_the_same_numbers(two):
    load_dataset_dicts(two)
    for _ in range(2):
        assert classes_of(DatasetCatalog.get("second")) == [[0, 1], [1]]
    assert classes_of(load_dataset_dicts("second", filter_empty=False)) == [[0, 1], [1]]


def test_another_dataset_may_be_named_to_number_like_before_it_was_loaded(two):
    first, second = two
    assert classes_of(load_dataset_dicts(second, numbered_like=first)) == [[0, 1]]


def test_numbers_can_be_changed_again(two):
    first, second = two
    load_dataset_dicts(second, numbered_like=first)
    load_dataset_dicts(first, numbered_like="third")  # which is not there
    assert classes_of(load_dataset_dicts([second, first], filter_empty=False)) == [[0, 1], [1]] * 2


def test_a_dataset_of_other_classes_keeps_its_numbers_with_a_warning(two, register, tmp_path, caplog):
    coco = small_coco()
    coco["categories"][0]["name"] = "horse"
    register("third", write_coco(tmp_path / "3", coco))
    with caplog.at_level(logging.WARNING, logger="dinox"):
        assert classes_of(load_dataset_dicts("second", numbered_like="third")) == [[1, 0]]
    assert MetadataCatalog.get("second").thing_classes == ["dog", "cat"]
    (message,) = [record.getMessage() for record in caplog.records if "by name" in record.getMessage()]
    assert "second has the classes dog, cat" in message and "those of third, which are cat, horse" in message


def test_classes_like_those_of_an_unknown_dataset_are_the_own_ones(two):
    assert classes_of(load_dataset_dicts("second", numbered_like="coco_2017_train")) == [[1, 0]]


def test_several_categories_of_one_name_cannot_be_matched(tmp_path, register):
    coco = small_coco()
    coco["categories"].append({"id": 9, "name": "cat"})
    first = register("first", write_coco(tmp_path / "1", coco))
    coco["categories"] = [{"id": 3, "name": "cat"}, {"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    second = register("second", write_coco(tmp_path / "2", coco))
    with pytest.raises(
        DataError, match="'second': its classes cat, cat, dog cannot be matched by name to cat, dog, cat"
    ):
        load_dataset_dicts([first, second])


@pytest.mark.parametrize("numbered_like", [None, "first"])
def test_average_precisions_have_the_right_names(two, tmp_path, numbered_like):
    """A detector that finds the cat and nothing else."""
    dicts = load_dataset_dicts("second", filter_empty=False, numbered_like=numbered_like)
    cat = MetadataCatalog.get("second").thing_classes.index("cat")
    evaluator = CocoEvaluator("second", output_dir=str(tmp_path))
    evaluator.reset()
    for record in dicts:
        found = Instances((record["height"], record["width"]))
        boxes = [each["bbox"] for each in record["annotations"] if each["category_id"] == cat]
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        found.pred_boxes, found.scores = Boxes(corners), torch.ones(len(boxes))
        found.pred_classes = torch.full((len(boxes),), cat)
        evaluator.process([record], [{"instances": found}])
    results = evaluator.evaluate()["bbox"]
    assert results["AP-cat"] == pytest.approx(100) and results["AP-dog"] == 0
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {each["category_id"] for each in written} == {2}


def test_annotations_are_not_changed_where_a_function_gives_the_same_ones_again(two, register):
    dicts = DatasetCatalog.get("second")
    register("cached", lambda: dicts, thing_classes=["dog", "cat"])
    for _ in range(2):
        assert classes_of(load_dataset_dicts("cached", numbered_like="first")) == [[0, 1]]
    assert classes_of(dicts) == [[1, 0], [0]]
