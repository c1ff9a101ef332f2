"""What an inspection finds beyond the faults that training meets (those are in tests/faults)."""

import json

import numpy as np
import pytest
from detectron2.config import LazyCall as L
from PIL import Image

from dinox import model_zoo
from dinox.config import apply_overrides, load_config
from dinox.config.calls import detections_key
from dinox.data import DataError, register_shapes
from dinox.data.inspection import FileOptions, ModelLimits, StepMemory, describe, inspect_dataset, measure_step_memory
from dinox.data.inspection.forecast import DINO_R50_4SCALE, forecast_memory, training_sizes
from dinox.data.inspection.source import load_source
from dinox.modeling import ClassNMS, ClassSoftNMS, TopKDetections
from tests.small_models import SMALL

from ..coco_files import annotation, small_coco, write_coco, write_image

LIMITS = ModelLimits("any", num_queries=3, denoising_objects=2)


def problems(report):
    return {problem.kind: [place.id for place in problem.places] for problem in report.problems}


def inspect(file, **options):
    return inspect_dataset(file, **{"limits": LIMITS, **options})


# --------------------------------------------------------------------------------------------------------------- source


def test_images_are_found_beside_the_json(tmp_path):
    file = write_coco(tmp_path, small_coco())
    assert load_source(file).image_root == str(tmp_path / "images")


def test_without_its_images_a_json_is_inspected_all_the_same(tmp_path):
    file = write_coco(tmp_path, small_coco(), images=False)
    report = inspect(file)
    assert report.image_root is None and "missing-file" not in problems(report)
    with pytest.raises(DataError, match=r"its images are not found\. Say where they are: --images FOLDER"):
        inspect(file, files=FileOptions(open_images="headers"))


def test_a_registered_dataset_is_made_if_it_is_not_there_yet(tmp_path):
    register_shapes("dinox_inspected", seed=3, num_images=20, size=96, root=tmp_path)
    report = inspect("dinox_inspected", files=FileOptions(open_images="pixels"))
    assert report.faults == [] and len(report.opened) == 20
    assert report.statistics.images == 20 and report.statistics.images_without_objects == 1


def test_datasets_of_functions_are_inspected_too(tmp_path, register):
    image = write_image(tmp_path / "a.png")
    record = {"file_name": str(image), "image_id": 5, "height": 48, "width": 64}
    boxes = [
        {"bbox": [1, 1, 9, 9], "bbox_mode": 0, "category_id": 0},
        {"bbox": [1, 1, -4, 9], "bbox_mode": 1, "category_id": 1},
    ]
    register("made", lambda: [record | {"annotations": boxes}, record | {"image_id": 6, "file_name": "gone.png"}])
    report = inspect("made")
    assert report.json_file is None
    assert {kind: ids for kind, ids in problems(report).items() if kind in ("negative-box", "missing-file")} == {
        "negative-box": [2],
        "missing-file": [6],
    }


def test_neither_a_name_nor_a_file_is_an_error_with_the_nearest_name():
    with pytest.raises(DataError, match=r"'coco_2017_trian' is neither a registered dataset nor a file\. Did you mean"):
        inspect("coco_2017_trian")


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("more", [0, 30])  # folders are listed when they have many images
def test_missing_files_and_folders_are_listed(tmp_path, more):
    coco = small_coco()
    coco["images"] += [{"id": 10 + i, "file_name": f"{i}.jpg", "height": 4, "width": 6} for i in range(more)]
    coco["images"] += [{"id": 3, "file_name": "folder", "height": 4, "width": 6}]
    file = write_coco(tmp_path, {**coco, "images": coco["images"][:-1]})
    file.write_text(json.dumps(coco))
    (tmp_path / "images" / "a.jpg").rename(tmp_path / "images" / "A.JPG")
    (tmp_path / "images" / "folder").mkdir()
    report = inspect(file, image_root=tmp_path / "images")
    assert problems(report)["missing-file"] == [1] and problems(report)["folder-not-file"] == [3]
    if more:
        assert "but there is A.JPG" in " ".join(describe(report).split())


def test_a_wrong_folder_is_one_fault(tmp_path):
    report = inspect(write_coco(tmp_path, small_coco()), image_root=tmp_path / "pictures")
    assert [problem.kind for problem in report.faults] == ["image-folder"]


def test_headers_tell_sizes_and_kinds_and_pixels_tell_damage(tmp_path):
    coco = small_coco()
    coco["images"] += [{"id": i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in range(3, 8)]
    file = write_coco(tmp_path, coco)
    folder = tmp_path / "images"
    write_image(folder / "3.png", height=30, width=64)
    (folder / "4.png").write_text("<html>")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:-500])
    Image.open(folder / "6.png").convert("RGBA").save(folder / "6.png")
    Image.new("F", (64, 48)).save(folder / "7.png", format="TIFF")
    found = problems(inspect(file, files=FileOptions(open_images="headers")))
    expected = {"wrong-size": [3], "unreadable-file": [4], "alpha-image": [6], "unusable-file": [7]}
    assert {kind: found[kind] for kind in expected} == expected
    decoded = problems(inspect(file, files=FileOptions(open_images="pixels")))
    assert decoded["unreadable-file"] == [4, 5]


# ---------------------------------------------------------------------------------------------------------------- notes


def test_notes_are_no_faults(tmp_path):
    coco = small_coco()
    coco["categories"].append({"id": 9, "name": "cat"})
    coco["images"].append({"id": 3, "file_name": "a.jpg", "height": 48, "width": 64})
    coco["annotations"] += [annotation(id=0, image_id=2, category_id=3, bbox=[60, 40, 20, 20])]
    coco["annotations"] += [annotation(id=20 + i, image_id=1, category_id=3, bbox=[1, 1, 5, 5]) for i in range(2)]
    report = inspect(write_coco(tmp_path, coco))
    assert report.faults == []
    found = problems(report)
    expected = {
        "repeated-class-name": [3, 9],
        "unused-class": [9],
        "image-without-annotations": [3],
        "repeated-file": [1, 3],
        "cut-box": [0],
        "crowd": [13],
        "annotation-id-0": [0],
        "more-objects-than-queries": [1],
        "more-objects-than-denoising": [1],
    }
    assert {kind: found[kind] for kind in expected} == expected
    assert describe(report).splitlines()[-2].startswith("Nothing is wrong")


def test_limits_come_from_the_config_without_building_it():
    limits = ModelLimits.of(model_zoo.get_config("dino/dino_r50_4scale_12ep"), name="dino")
    assert (limits.num_classes, limits.num_queries, limits.num_detections) == (80, 900, 300)
    assert limits.denoising_objects == 200  # 400 queries, one positive and one negative for each object
    assert (limits.short_edge, limits.max_size) == (800, 1333)


def test_detections_are_counted_before_nms():
    config = model_zoo.get_config("dino/dino_r50_4scale_12ep")
    config.model.postprocess = L(ClassNMS)(ranking=L(TopKDetections)())
    apply_overrides(config, [f"{detections_key(config)}=200"], file="dino")  # as a yaml config's number is applied
    assert ModelLimits.of(config, name="dino").num_detections == 200
    config.model.postprocess = L(ClassSoftNMS)(ranking=L(TopKDetections)(num_detections=900), num_detections=300)
    assert ModelLimits.of(config, name="dino").num_detections == 300


# ---------------------------------------------------------------------------------------------------------------- drift


def test_shares_of_the_classes_are_compared(tmp_path):
    def coco_with(cats, dogs):
        coco = small_coco()
        classes = [3] * cats + [7] * dogs
        coco["annotations"] = [
            annotation(id=i, image_id=1, category_id=c, bbox=[1, 1, 5, 5]) for i, c in enumerate(classes, start=1)
        ]
        return coco

    train = write_coco(tmp_path / "train", coco_with(cats=10, dogs=10))
    val = write_coco(tmp_path / "val", coco_with(cats=19, dogs=1))
    report = inspect(train, validation=[val]).validation[0]
    assert problems(report)["class-share"] == ["dog"]
    assert [(share.name, share.train_share, share.val_share) for share in report.shares] == [
        ("cat", 0.5, 0.95),
        ("dog", 0.5, 0.05),
    ]


def test_images_of_both_sets_are_told(tmp_path):
    file = write_coco(tmp_path, small_coco())
    assert problems(inspect(file, validation=[file]).validation[0])["trained-image"] == [1, 2]


# ------------------------------------------------------------------------------------------------------------- forecast


def test_training_sizes_are_those_of_the_largest_resize():
    limits = ModelLimits("any", short_edge=800, max_size=1333)
    sizes = training_sizes(np.array([[480.0, 640.0], [640, 480], [100, 1000]]), limits)
    assert sizes.tolist() == [[800, 1067], [1067, 800], [133, 1333]]


def test_forecast_adds_up():
    gib = 2**30
    memory = StepMemory(fixed=gib, per_image=0.8 * gib, per_pixel=0.8 * gib / (100 * 200))
    limits = ModelLimits("any", short_edge=100, max_size=1000)
    forecast = forecast_memory(memory, np.array([[100.0, 200.0]] * 2 + [[100.0, 400.0]]), limits)
    assert forecast.typical_size == (200, 100) and forecast.largest_size == (400, 100)
    assert dict(forecast.typical)[2] == pytest.approx(1 + 2 * (0.8 + 0.8) * 1.25)
    assert dict(forecast.largest)[1] == pytest.approx(1 + (0.8 + 1.6) * 1.25)


def test_a_config_s_memory_is_counted_on_its_own_model():
    memory = measure_step_memory(load_config("dino/dino_r50_4scale_12ep", SMALL))
    assert memory.fixed > 0 and memory.per_pixel > 100 and memory.per_image > 1e5


@pytest.mark.slow
def test_the_default_s_memory_is_what_is_counted():
    memory = measure_step_memory(model_zoo.get_config("dino/dino_r50_4scale_12ep"))
    for name in ("fixed", "per_image", "per_pixel"):
        assert getattr(DINO_R50_4SCALE, name) == pytest.approx(getattr(memory, name), rel=0.05), name
