"""Objects365's validation set in two parts, as DINO has it."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from dinox.data import DataError, split_objects365
from dinox.data.objects365 import OBJECTS365_IMAGES_PER_EPOCH
from dinox.model_zoo import get_config

from .coco_files import small_coco


def write_val(tmp_path, image_ids):
    coco = small_coco()
    coco["images"] = [{**coco["images"][0], "id": i, "file_name": f"images/v1/{i}.jpg"} for i in image_ids]
    annotation = coco["annotations"][0]
    coco["annotations"] = [{**annotation, "id": 10 * i + n, "image_id": i} for n in (0, 1) for i in image_ids]
    folder = tmp_path / "objects365" / "annotations"
    folder.mkdir(parents=True)
    (folder / "zhiyuan_objv2_val.json").write_text(json.dumps(coco))
    return coco


def test_the_first_images_of_the_file_are_kept_with_their_annotations(tmp_path):
    coco = write_val(tmp_path, [7, 3, 9, 1, 5])
    kept, rest = (json.loads(path.read_text()) for path in split_objects365(tmp_path, num_kept=2))
    assert [image["id"] for image in kept["images"]] == [7, 3]
    assert [image["id"] for image in rest["images"]] == [9, 1, 5]
    assert {a["image_id"] for a in kept["annotations"]} == {7, 3}
    assert sorted(a["id"] for part in (kept, rest) for a in part["annotations"]) == sorted(
        a["id"] for a in coco["annotations"]
    )
    assert kept["categories"] == rest["categories"] == coco["categories"]


def test_the_split_is_the_same_each_time(tmp_path):
    write_val(tmp_path, range(1, 9))
    first = [path.read_text() for path in split_objects365(tmp_path, num_kept=3)]
    assert [path.read_text() for path in split_objects365(tmp_path, num_kept=3)] == first


def test_a_set_with_no_more_images_than_are_kept_is_no_objects365(tmp_path):
    write_val(tmp_path, [1, 2])
    with pytest.raises(DataError, match=r"zhiyuan_objv2_val\.json: expected more than 5000 images to split, got 2"):
        split_objects365(tmp_path)


def test_a_missing_json_is_named(tmp_path):
    with pytest.raises(DataError, match=r"zhiyuan_objv2_val\.json"):
        split_objects365(tmp_path)


def test_the_config_trains_on_all_but_the_images_that_are_kept():
    cfg = get_config("dino/dino_swin_large_5scale_objects365_26ep")
    names = [*cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names]
    assert names == ["objects365_train", "objects365_val_rest", "objects365_val_first5000"]
    assert set(names) <= set(DatasetCatalog.list())
    assert all("objects365/annotations/" in MetadataCatalog.get(name).json_file for name in names)
    assert cfg.schedule.iterations == round(26 * OBJECTS365_IMAGES_PER_EPOCH / 64)
    assert cfg.dataloader.train.mapper.num_classes == 365


def test_fine_tuning_is_at_one_and_a_half_times_the_size():
    usual = get_config("common/data/coco_detr").dataloader
    large = get_config("dino/dino_swin_large_5scale_objects365_coco_18ep")
    train = large.dataloader.train.mapper.augmentations
    assert (train.short_edges[0], train.short_edges[-1], train.max_size) == (720, 1200, 2000)
    test = large.dataloader.test.mapper.augmentations
    assert (test.short_edge, test.max_size) == (1200, 2000)
    assert "short_edges" not in usual.train.mapper.augmentations  # the other configs are as they were
    assert large.dataloader.train.mapper.num_classes == 80 and large.dataloader.train.dataset.names == "coco_2017_train"
