"""The data configs, built with detectron2's own loaders."""

import pytest
from detectron2.config import instantiate
from detectron2.evaluation import COCOEvaluator

from dinox.data import DataError, register_shapes
from dinox.model_zoo import get_config

from .coco_files import small_coco, write_coco


@pytest.fixture
def coco(tmp_path, register):
    return register("tiny_coco", write_coco(tmp_path, small_coco()))


@pytest.mark.parametrize("name", ["coco_detr", "shapes"])
def test_loaders_and_evaluator_are_built_as_the_stock_script_does(coco, name, tmp_path):
    cfg = get_config(f"common/data/{name}")
    cfg.model, cfg.train = {"num_classes": 2}, {"output_dir": str(tmp_path)}
    dataloader = cfg.dataloader
    for loader in (dataloader.train, dataloader.test):
        loader.dataset.names = coco
        loader.num_workers = 0
    dataloader.train.total_batch_size = 2
    batch = next(iter(instantiate(dataloader.train)))
    assert len(batch) == 2 and all("instances" in image for image in batch)
    tested = [image for images in instantiate(dataloader.test) for image in images]
    assert [image["image_id"] for image in tested] == [1, 2]
    assert all("instances" not in image for image in tested)
    evaluator = instantiate(dataloader.evaluator)
    assert isinstance(evaluator, COCOEvaluator)
    cfg.model.num_classes = 1
    with pytest.raises(DataError, match="expected a class index from 0 to 0, got 1"):
        next(iter(instantiate(dataloader.train)))


def test_coco_config_is_that_of_the_papers():
    dataloader = get_config("common/data/coco_detr").dataloader
    assert (dataloader.train.dataset.names, dataloader.test.dataset.names) == ("coco_2017_train", "coco_2017_val")
    assert dataloader.train.total_batch_size == 16
    assert dataloader.evaluator.dataset_name == "coco_2017_val"
    assert dataloader.test.mapper.image_format == dataloader.train.mapper.image_format == "RGB"
    resize = instantiate(dataloader.test.mapper.augmentations)[0]
    assert (resize.short_edge_length, resize.max_size) == ((800,), 1333)


def test_shapes_config_loads_the_embedded_dataset(tmp_path):
    register_shapes("tiny_shapes", seed=9, num_images=8, root=tmp_path)
    cfg = get_config("common/data/shapes")
    cfg.model, cfg.train = {"num_classes": 6}, {"output_dir": str(tmp_path)}
    loader = cfg.dataloader.train
    loader.dataset.names = "tiny_shapes"
    batch = next(iter(instantiate(loader)))
    assert len(batch) == loader.total_batch_size
    assert all(160 <= min(image["image"].shape[1:]) <= 224 for image in batch)
