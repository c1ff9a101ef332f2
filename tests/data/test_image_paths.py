"""Which paths of a json lead out of its image folder."""

import os

import pytest
from detectron2.data import MetadataCatalog

from dinox.data import DataError, load_dataset_dicts
from dinox.data.image_paths import first_outside, leaves_root

from .coco_files import small_coco, write_coco


@pytest.mark.parametrize("path", ["a.jpg", "folder/a.jpg", "folder/../a.jpg", "/data/images/a.jpg", "a..b.jpg", "./a"])
def test_inside(path):
    assert not leaves_root(path, "/data/images")
    assert not leaves_root(path, "/data/images/")


@pytest.mark.parametrize(
    "path", ["../a.jpg", "folder/../../a.jpg", "/etc/passwd", "/data/images2/a.jpg", "..", "https://host/a.jpg", "a\0b"]
)
def test_outside(path):
    assert leaves_root(path, "/data/images")


def test_the_root_may_be_relative_or_everything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not leaves_root(str(tmp_path / "images" / "a.jpg"), "images")
    assert leaves_root(str(tmp_path / "a.jpg"), "images")
    assert not leaves_root("/anything/a.jpg", "/")
    assert leaves_root("/anything/a.jpg", "")


@pytest.mark.parametrize("root", ["../data", "/data/images"])
def test_joined_paths_are_told_apart(root):
    joined = [os.path.join(root, name) for name in ("a.jpg", "b/c.jpg", "../x.jpg")]
    assert first_outside(joined, root) == 2
    assert first_outside(joined[:2], root) is None


def test_loading_refuses_them_with_the_image_and_the_key(tmp_path, register):
    coco = small_coco()
    coco["images"][1]["file_name"] = "../b.jpg"
    name = register("leaves", write_coco(tmp_path, coco))
    message = rf"'leaves': image 2: its path {tmp_path}/images/../b.jpg leads out of .*{tmp_path}/images.*allow_outside"
    with pytest.raises(DataError, match=message):
        load_dataset_dicts(name, filter_empty=False)
    assert len(load_dataset_dicts(name, filter_empty=False, allow_outside_image_root=True)) == 2


def test_functions_make_their_own_paths(register):
    name = register("made", lambda: [{"file_name": "/elsewhere/a.jpg", "image_id": 1, "height": 4, "width": 4}])
    MetadataCatalog.get(name).set(image_root="/data")
    assert len(load_dataset_dicts(name)) == 1
