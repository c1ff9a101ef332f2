"""A new json without the faults that can be mended; the old one is never touched."""

import json
import time

import pytest
from PIL import Image

from dinox.data import DataError, check_coco_json
from dinox.data.inspection import FileOptions, ModelLimits, describe_fix, fix_dataset, inspect_dataset

from ..coco_files import annotation, small_coco, write_coco, write_image


def with_orientation(file, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(file).save(file, exif=exif)


@pytest.fixture
def fix(tmp_path):
    """Fix a content whose images are there -> (report, new content)."""

    def run(coco, *, change_files=lambda folder: None, images=None):
        write_coco(tmp_path, small_coco())
        change_files(tmp_path / "images")
        old = tmp_path / "annotations.json"
        old.write_text(json.dumps(coco))
        before = old.read_bytes()
        report = fix_dataset(old, tmp_path / "new.json", image_root=images)
        assert old.read_bytes() == before
        return report, json.loads((tmp_path / "new.json").read_text())

    return run


def sizes(coco):
    return [(image["width"], image["height"]) for image in coco["images"]]


def changes(entries):
    return {(each.where, each.text): each.ids for each in entries}


def test_a_good_json_stays_as_it_is(fix):
    report, new = fix(small_coco())
    assert new == small_coco()
    assert (report.changed, report.left_out, report.remaining) == ((), (), ())


def test_missing_sizes_come_from_the_files(fix):
    coco = small_coco()
    del coco["images"][0]["height"], coco["images"][1]["width"]
    report, new = fix(coco)
    assert sizes(new) == [(64, 48)] * 2
    assert changes(report.changed) == {("image", "missing size taken from the file"): (1, 2)}


def test_wrong_sizes_are_replaced_where_the_boxes_leave_no_doubt(fix):
    coco = small_coco()
    coco["images"][0].update(width=100, height=48)
    report, new = fix(coco)
    assert sizes(new) == [(64, 48)] * 2
    assert changes(report.changed) == {("image", "wrong size replaced by that of the file"): (1,)}


def test_sizes_of_another_scale_are_left_and_told(fix):
    coco = small_coco()
    coco["images"][0].update(width=128, height=96)
    report, new = fix(coco)
    assert sizes(new) == [(128, 96), (64, 48)]
    assert [(problem.kind, problem.places[0].id) for problem in report.remaining] == [("resized-image", 1)]


@pytest.mark.parametrize(
    "orientation, boxes",
    [
        (5, [[6, 4, 10, 20], [20, 30, 20, 16.5]]),
        (6, [[32, 4, 10, 20], [8, 30, 20, 16.5]]),
        (7, [[32, 40, 10, 20], [8, 17.5, 20, 16.5]]),
        (8, [[6, 40, 10, 20], [20, 17.5, 20, 16.5]]),
    ],
)
def test_boxes_of_the_stored_frame_are_turned(fix, orientation, boxes):
    report, new = fix(small_coco(), change_files=lambda folder: with_orientation(folder / "a.jpg", orientation))
    assert sizes(new) == [(48, 64), (64, 48)]
    assert [each["bbox"] for each in new["annotations"][:2]] == boxes
    assert new["annotations"][2] == small_coco()["annotations"][2]
    (kind,) = changes(report.changed)
    assert kind[1].startswith("EXIF orientation: shown size written, boxes turned")


def test_a_guessed_frame_is_called_a_guess(fix):
    report, _ = fix(small_coco(), change_files=lambda folder: with_orientation(folder / "a.jpg", 6))
    text = "EXIF orientation: shown size written, boxes turned; they are assumed to be of the stored frame: look at one"
    assert changes(report.changed) == {("image", text): (1,)}
    assert [(problem.kind, [place.id for place in problem.places]) for problem in report.remaining] == [
        ("assumed-frame", [1])
    ]
    assert "Nothing else is wrong" not in describe_fix(report)


def test_a_frame_that_the_boxes_tell_is_no_guess(fix):
    coco = small_coco()
    coco["annotations"][0]["bbox"] = [50, 10, 14, 20]  # 64 wide: not in an image of 48
    report, new = fix(coco, change_files=lambda folder: with_orientation(folder / "a.jpg", 6))
    assert new["annotations"][0]["bbox"] == [18, 50, 20, 14]
    text = "EXIF orientation: shown size written, boxes turned from the stored frame"
    assert changes(report.changed) == {("image", text): (1,)}
    assert report.remaining == ()


def test_turned_images_without_boxes_are_no_guess(fix):
    coco = small_coco()
    del coco["annotations"][2]
    report, new = fix(coco, change_files=lambda folder: with_orientation(folder / "b.jpg", 6))
    assert sizes(new) == [(64, 48), (48, 64)]
    assert changes(report.changed) == {("image", "EXIF orientation: shown size written"): (2,)}
    assert report.remaining == ()


def test_square_images_that_are_turned_are_told(tmp_path):
    coco = small_coco()
    coco["images"][0]["width"] = 48
    file = write_coco(tmp_path, coco)
    with_orientation(tmp_path / "images" / "a.jpg", 6)
    report = inspect_dataset(file, limits=ModelLimits("any"), files=FileOptions(open_images="headers"))
    assert [place.id for each in report.problems if each.kind == "mirrored-image" for place in each.places] == [1]


def test_with_exif_ignored_the_stored_size_is_right(tmp_path):
    file = write_coco(tmp_path, small_coco())
    with_orientation(tmp_path / "images" / "a.jpg", 6)
    files = FileOptions(open_images="headers", exif="ignore")
    assert inspect_dataset(file, limits=ModelLimits("any"), files=files).faults == []
    report = fix_dataset(file, tmp_path / "new.json", files=files)
    assert (report.changed, report.remaining) == ((), ())


def test_with_exif_ignored_the_shown_size_is_wrong_and_left(tmp_path):
    coco = small_coco()
    file = write_coco(tmp_path, coco)
    with_orientation(tmp_path / "images" / "a.jpg", 6)
    coco["images"][0].update(width=48, height=64)
    file.write_text(json.dumps(coco))
    files = FileOptions(open_images="headers", exif="ignore")
    report = fix_dataset(file, tmp_path / "new.json", files=files)
    assert report.changed == () and [problem.kind for problem in report.remaining] == ["shown-size"]


def test_the_limit_of_pixels_is_that_of_the_config(tmp_path):
    file = write_coco(tmp_path, small_coco())
    files = FileOptions(open_images="headers", max_pixels=100)
    faults = inspect_dataset(file, limits=ModelLimits("any"), files=files).faults
    assert [problem.kind for problem in faults] == ["unusable-file"]


@pytest.mark.parametrize("name, value", [("segmentation", {"size": [48, 64]}), ("keypoints", [1, 2])])
def test_what_cannot_be_turned_is_named_and_stays(fix, name, value):
    coco = small_coco()
    coco["annotations"][0].update(bbox=[50, 10, 14, 20], **{name: value})
    report, new = fix(coco, change_files=lambda folder: with_orientation(folder / "a.jpg", 6))
    assert new["annotations"][0]["bbox"] == [18, 50, 20, 14] and new["annotations"][0][name] == value
    found = [(problem.kind, [place.id for place in problem.places]) for problem in report.remaining]
    assert found == [(f"unturned-{name}", [11])]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_fields_of_evaluation_that_are_no_number_are_written(fix, tmp_path, value):
    coco = small_coco()
    coco["annotations"][0].update(area=value, iscrowd=value)
    report, new = fix(coco)
    assert (new["annotations"][0]["area"], new["annotations"][0]["iscrowd"]) == (200, 0)
    assert report.remaining == ()
    check_coco_json(tmp_path / "new.json", evaluated=True)


def test_the_new_json_has_no_nan(fix, tmp_path):
    coco = small_coco()
    coco["annotations"][0]["score"] = float("nan")
    report, new = fix(coco)
    assert new["annotations"][0]["score"] is None
    assert "NaN" not in (tmp_path / "new.json").read_text()
    assert changes(report.changed) == {("annotation", "null written for NaN or infinity in 'score'"): (11,)}


def test_many_ids_of_zero_take_no_time(fix):
    coco = small_coco()
    coco["annotations"] += [annotation(id=0, image_id=1, category_id=3, bbox=[1, 1, 5, 5]) for _ in range(150_000)]
    began = time.process_time()
    report, _ = fix(coco)
    assert time.process_time() - began < 5  # not the square of their number
    assert [problem.kind for problem in report.remaining] == ["duplicate-annotation-id"]


def test_boxes_that_fit_the_shown_frame_only_are_kept(fix):
    coco = small_coco()
    coco["annotations"][0]["bbox"] = [10, 50, 20, 14]  # 64 high: not in an image of 48
    report, new = fix(coco, change_files=lambda folder: with_orientation(folder / "a.jpg", 6))
    assert sizes(new) == [(48, 64), (64, 48)]
    assert new["annotations"] == coco["annotations"]
    assert [each.text for each in report.changed] == [
        "EXIF orientation: shown size written, boxes kept (they are of the shown frame)"
    ]


def test_images_that_can_tell_decide_for_those_that_cannot(fix):
    def turn_both(folder):
        for name in ("a.jpg", "b.jpg"):
            with_orientation(folder / name, 6)

    coco = small_coco()
    coco["annotations"][0]["bbox"] = [10, 50, 20, 14]
    coco["annotations"][2]["bbox"] = [1, 1, 5, 5]  # of the second image: fits both
    _, new = fix(coco, change_files=turn_both)
    assert new["annotations"] == coco["annotations"]


def test_sizes_that_are_those_of_the_shown_image_are_right(fix):
    coco = small_coco()
    coco["images"][0].update(width=48, height=64)
    report, new = fix(coco, change_files=lambda folder: with_orientation(folder / "a.jpg", 6))
    assert new == coco and report.changed == ()


def test_fixed_images_have_no_size_problems_left(fix, tmp_path):
    fix(small_coco(), change_files=lambda folder: with_orientation(folder / "a.jpg", 6))
    files = FileOptions(open_images="pixels")
    limits = ModelLimits("any")
    before = inspect_dataset(tmp_path / "annotations.json", limits=limits, files=files)
    assert [problem.kind for problem in before.faults] == ["rotated-image"]
    assert inspect_dataset(tmp_path / "new.json", limits=limits, files=files).faults == []


def test_what_training_leaves_out_is_left_out_and_listed(fix):
    coco = small_coco()
    bad = {40: [1, 1, -3, 4], 41: [1, 1, 0, 4], 42: [float("nan"), 1, 3, 4], 43: [900, 1, 3, 4]}
    coco["annotations"] += [annotation(id=i, image_id=1, category_id=3, bbox=box) for i, box in bad.items()]
    coco["annotations"].append(annotation(id=44, image_id=9, category_id=3, bbox=[1, 1, 3, 4]))
    report, new = fix(coco)
    assert [each["id"] for each in new["annotations"]] == [11, 12, 13]
    assert changes(report.left_out) == {
        ("annotation", "box of negative width or height"): (40,),
        ("annotation", "box without area"): (41,),
        ("annotation", "box with NaN"): (42,),
        ("annotation", "box outside of the image"): (43,),
        ("annotation", "its image is not in the json"): (44,),
    }
    assert report.remaining == ()


def test_what_evaluation_needs_is_written(fix, tmp_path):
    coco = small_coco()
    del coco["annotations"][0]["iscrowd"], coco["annotations"][1]["area"]
    coco["annotations"][0]["id"] = 0
    coco["annotations"][1]["segmentation"] = [[1, 2]]
    with pytest.raises(DataError, match=r"'iscrowd'.*Evaluation needs it"):
        check_coco_json(write_coco(tmp_path / "other", coco), evaluated=True)
    report, new = fix(coco)
    assert (new["annotations"][0]["iscrowd"], new["annotations"][0]["id"]) == (0, 14)
    assert new["annotations"][1]["area"] == 16.5 * 20 and "segmentation" not in new["annotations"][1]
    assert len(report.changed) == 4
    check_coco_json(tmp_path / "new.json", evaluated=True)


def test_what_cannot_be_mended_is_listed_and_stays(fix):
    coco = small_coco()
    coco["annotations"][0]["category_id"] = 99
    coco["annotations"][1]["bbox"] = None
    report, new = fix(coco, change_files=lambda folder: (folder / "b.jpg").unlink())
    assert new["annotations"] == coco["annotations"]
    assert {problem.kind for problem in report.remaining} == {"unknown-category", "no-box", "missing-file"}


def test_paths_out_of_the_folder_are_not_opened(fix, tmp_path):
    coco = small_coco()
    write_image(tmp_path / "secret.jpg", height=10, width=10)
    coco["images"][0].update(file_name="../secret.jpg")
    del coco["images"][0]["height"]
    report, new = fix(coco, images=tmp_path / "images")
    assert "height" not in new["images"][0]
    assert [problem.kind for problem in report.remaining] == ["outside-path", "height"]


def test_nothing_is_overwritten(fix, tmp_path):
    (tmp_path / "new.json").write_text("precious")
    with pytest.raises(DataError, match=r"new.json: it exists, and is not overwritten"):
        fix(small_coco())
    assert (tmp_path / "new.json").read_text() == "precious"


def test_a_folder_that_is_not_there_is_told_before_the_work(tmp_path):
    file = write_coco(tmp_path, small_coco())
    with pytest.raises(DataError, match=r"gone/new.json: expected a file in an existing folder"):
        fix_dataset(file, tmp_path / "gone" / "new.json")
