import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from dinox.data import DataError, load_dataset_dicts, register_coco

from .coco_files import small_coco, write_coco


@pytest.fixture
def name():
    yield "registered_coco"
    DatasetCatalog.remove("registered_coco")
    MetadataCatalog.remove("registered_coco")


def test_a_dataset_may_be_registered_twice(tmp_path, name):
    file = write_coco(tmp_path, small_coco())
    for _ in range(2):
        register_coco(name, file, tmp_path / "images")
    assert len(load_dataset_dicts(name, filter_empty=False)) == 2


def test_a_name_that_is_taken_is_an_error_with_both(tmp_path, name):
    register_coco(name, tmp_path / "one.json", tmp_path)
    with pytest.raises(DataError, match=rf"'{name}' is already registered, for .*one.json .*; got .*two.json"):
        register_coco(name, tmp_path / "two.json", tmp_path)
    assert MetadataCatalog.get(name).json_file == str(tmp_path / "one.json")
