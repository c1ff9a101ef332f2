"""Each mistake in a COCO json is one error that names the file, the field or the id, and the cure."""

import pytest

from dinox.data import DataError, check_coco_json
from dinox.data.boxes import box_fault
from dinox.data.coco_problems import find_problems

from .coco_files import annotation, small_coco, write_coco


def test_good_file_gives_its_classes_in_the_order_of_ids(tmp_path):
    file = write_coco(tmp_path, small_coco())
    assert check_coco_json(file, tmp_path / "images") == ["cat", "dog"]


def test_annotations_may_be_missing_in_a_test_set(tmp_path):
    coco = small_coco()
    del coco["annotations"]
    file = write_coco(tmp_path, coco)
    assert check_coco_json(file, annotated=False) == ["cat", "dog"]
    with pytest.raises(DataError, match=rf"{file}: no key 'annotations'"):
        check_coco_json(file)


def test_a_missing_file_is_told_without_the_folder_of_registered_datasets(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path}/none.json not found \(seen from ") as caught:
        check_coco_json(tmp_path / "none.json")
    assert "DETECTRON2_DATASETS" not in str(caught.value)


@pytest.mark.parametrize("field", ["bbox", "area", "iscrowd"])
def test_integers_beyond_the_range_of_floats_are_no_numbers(tmp_path, field):
    coco = small_coco()
    coco["annotations"][1][field] = [10**400, 1, 5, 5] if field == "bbox" else 10**400
    with pytest.raises(DataError, match=rf"'{field}': expected .* annotation: id 12"):
        check_coco_json(write_coco(tmp_path, coco), evaluated=True)


def test_integers_that_python_does_not_read_are_told_with_the_file(tmp_path):
    file = tmp_path / "long.json"
    file.write_text('{"images": [' + "9" * 5000 + "]}")
    with pytest.raises(DataError, match=rf"{file}: not a COCO json: .*digits"):
        check_coco_json(file)


def test_folder_in_place_of_a_file_gives_the_system_s_reason(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path} cannot be read: Is a directory"):
        check_coco_json(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"not valid json at byte 0 of 0"),
        (b'{"images": [1, 2', r"not valid json at byte 16 of 16 \(line 1, column 17\)"),
        ('{"größe": }'.encode(), r"not valid json at byte 12 of 13"),  # bytes, not characters
        (b'{"a": "\xff"}', r"not valid json: byte 7 of 10 is no text"),
        (b"<html>", r"not valid json at byte 0"),
        (b"[]", r"expected an object with images, annotations and categories, got \[\]"),
    ],
)
def test_what_is_no_json_object_is_located(tmp_path, content, message):
    file = tmp_path / "annotations.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"{file}: {message}"):
        check_coco_json(file)


@pytest.mark.parametrize("key", ["categories", "images", "annotations"])
def test_missing_section_is_named(tmp_path, key):
    coco = small_coco()
    del coco[key]
    file = write_coco(tmp_path, coco, images=False)
    with pytest.raises(DataError, match=rf"{file}: no key '{key}' \(found: "):
        check_coco_json(file)


@pytest.mark.parametrize("key", ["categories", "images"])
def test_empty_section_is_named(tmp_path, key):
    file = write_coco(tmp_path, {**small_coco(), key: []}, images=False)
    with pytest.raises(DataError, match=rf"{file}: '{key}' is empty"):
        check_coco_json(file)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"category_id": 5}, r"'category_id': expected the id of a category \(3, 7\), got 5 .*id 99"),
        ({"category_id": "cat"}, r"'category_id'.*got 'cat'"),
        ({"category_id": None}, r"'category_id'.*got null"),
        ({"bbox": [1, 2, 3]}, r"'bbox': expected 4 numbers \(x, y, width, height\), got \[1, 2, 3\]"),
        ({"bbox": None}, r"'bbox': expected 4 numbers .* got null"),
        ({"bbox": "1 2 3 4"}, r"'bbox': expected 4 numbers .* got '1 2 3 4'"),
        ({"bbox": [1, 2, None, 4]}, r"'bbox': expected 4 numbers"),
        ({"id": None}, r"'id': expected a number, got null"),
        ({"id": 11}, r"'id': expected an id of its own for each annotation, got 2 entries with the id 11"),
        ({"ignore": 1}, r"'ignore': expected 0, got 1 .*iscrowd"),
    ],
)
def test_bad_annotation_is_named(tmp_path, fields, message):
    coco = small_coco()
    good = {"id": 99, "image_id": 1, "category_id": 3, "bbox": [1, 1, 2, 2]}
    coco["annotations"].append(annotation(**{**good, **fields}))
    file = write_coco(tmp_path, coco, images=False)
    with pytest.raises(DataError, match=rf"^{file}: {message}"):
        check_coco_json(file)


@pytest.mark.parametrize("field", ["bbox", "category_id", "image_id"])
def test_missing_field_of_an_annotation_is_named(tmp_path, field):
    coco = small_coco()
    del coco["annotations"][1][field]
    file = write_coco(tmp_path, coco, images=False)
    with pytest.raises(DataError, match=rf"'{field}': expected .* got (nothing|null) .*id 12"):
        check_coco_json(file)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"height": None}, r"'height': expected a number of pixels, got null .*image: id 2"),
        ({"width": 0}, r"'width': expected a number of pixels, got 0"),
        ({"file_name": 5}, r"'file_name': expected a path"),
        ({"id": 1}, r"'id': expected an id of its own for each image, got 2 entries with the id 1"),
    ],
)
def test_bad_image_is_named(tmp_path, fields, message):
    coco = small_coco()
    coco["images"][1].update(fields)
    with pytest.raises(DataError, match=message):
        check_coco_json(write_coco(tmp_path, coco, images=False))


def test_category_without_a_name_is_named(tmp_path):
    coco = small_coco()
    del coco["categories"][0]["name"]
    with pytest.raises(DataError, match=r"'name': expected the name of the class, got nothing .*category: id 7"):
        check_coco_json(write_coco(tmp_path, coco))


def test_ten_ids_are_listed_and_all_are_counted(tmp_path):
    coco = small_coco()
    coco["annotations"] = [annotation(id=i, image_id=1, category_id=5, bbox=[0, 0, 1, 1]) for i in range(25)]
    with pytest.raises(DataError, match=r"ids 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\. \(25 in all\)") as caught:
        check_coco_json(write_coco(tmp_path, coco))
    assert "10, " not in str(caught.value)


def test_other_kinds_of_mistakes_are_counted(tmp_path):
    coco = small_coco()
    coco["annotations"][0]["category_id"] = 5
    coco["annotations"][1]["bbox"] = None
    assert [problem.kind for problem in find_problems(coco)] == ["unknown-category", "no-box"]
    with pytest.raises(DataError, match="There is 1 other kind of mistake"):
        check_coco_json(write_coco(tmp_path, coco, images=False))


def test_missing_image_folder_is_named(tmp_path):
    file = write_coco(tmp_path, small_coco())
    with pytest.raises(DataError, match=rf"Image folder {tmp_path}/pictures of {file} not found.*DETECTRON2_DATASETS"):
        check_coco_json(file, tmp_path / "pictures")


def test_wrong_image_folder_is_named_with_a_file_that_was_looked_for(tmp_path):
    file = write_coco(tmp_path, small_coco(), images=False)
    with pytest.raises(DataError, match=rf"none of the first 2 files is there, for example {tmp_path}/images/a.jpg"):
        check_coco_json(file, tmp_path / "images")


@pytest.mark.parametrize("box", [[0, 0, 0, 5], [-3, -3, 1, 1], [1.5, 2, 3, 4], (1, 2, 3, 4)])
def test_boxes_without_area_or_outside_are_no_fault(box):
    assert box_fault(box) is None


@pytest.mark.parametrize("box, fine", [([10, 10, 20, 20], True), ([20, 10, 10, 20], False), ([-5, -5, -3, -1], True)])
def test_corners_are_compared(box, fine):
    assert (box_fault(box, corners=True) is None) == fine


def test_whole_floats_are_integers(tmp_path):
    coco = small_coco()
    coco["images"][0].update(height=48.0, width=64.0)
    coco["annotations"][0].update(category_id=3.0)
    assert find_problems(coco) == []
