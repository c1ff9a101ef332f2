import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances


@pytest.fixture
def register(tmp_path):
    """Register a json with the images beside it (or a function that returns dicts); forgotten after the test."""
    names = []

    def register_dataset(name, source, **metadata):
        if callable(source):
            DatasetCatalog.register(name, source)
            MetadataCatalog.get(name).set(**metadata)
        else:
            register_coco_instances(name, metadata, str(source), str(source.parent / "images"))
        names.append(name)
        return name

    yield register_dataset
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
