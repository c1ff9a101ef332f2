"""The data configs, built with detectron2's own loaders."""

import pytest
from detectron2.config import instantiate
from detectron2.evaluation import COCOEvaluator

from dinox.config.overrides import apply_overrides
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


def test_large_scale_jitter_and_copy_paste_are_those_of_the_paper(tmp_path):
    register_shapes("tiny_shapes_lsj", seed=9, num_images=8, root=tmp_path)
    cfg = get_config("common/data/coco_lsj")
    cfg.model, cfg.train = {"num_classes": 6}, {"output_dir": str(tmp_path)}
    train, test = cfg.dataloader.train, cfg.dataloader.test
    assert (train.dataset.names, train.total_batch_size) == ("coco_2017_train", 16)
    settings = train.mapper.augmentations
    assert (settings.size, settings.min_scale, settings.max_scale, settings.pad_value) == (1024, 0.1, 2.0, 114)
    assert (train.mapper.min_box_side, train.copy_paste.max_pasted) == (1e-2, 100)
    train.dataset.names = test.dataset.names = "tiny_shapes_lsj"
    train.num_workers, test.num_workers, train.total_batch_size, settings.size = 0, 0, 2, 128
    for image in next(iter(instantiate(train))):
        assert image["image"].shape == (3, 128, 128)
        assert set(image["instances"].get_fields()) == {"gt_boxes", "gt_classes"}
    (tested,) = next(iter(instantiate(test)))  # one size for both
    assert tested["image"].shape == (3, 128, 128)


def test_longer_ranges_of_the_recipes_are_overrides():
    """Co-DETR's recipes for large backbones: 480 to 1536 in steps of 32, the longer edge at most 2400."""
    edges = f"[{','.join(map(str, range(480, 1537, 32)))}]"
    augmentations = "dataloader.train.mapper.augmentations"
    dataloader = get_config("common/data/coco_detr")
    overrides = [f"{augmentations}.short_edges={edges}", f"{augmentations}.max_size=2400"]
    flip, one_of = instantiate(apply_overrides(dataloader, overrides).dataloader.train.mapper.augmentations)
    (resize,), (before, crop, after) = (branch.augs for branch in one_of.branches)
    assert flip.prob == 0.5 and one_of.probabilities == [0.5, 0.5]
    for last in (resize, after):
        assert (min(last.short_edge_length), max(last.short_edge_length), last.max_size) == (480, 1536, 2400)
    assert before.short_edge_length == (400, 500, 600) and crop.crop_size == (384, 600)


def test_shapes_config_loads_the_embedded_dataset(tmp_path):
    register_shapes("tiny_shapes", seed=9, num_images=8, root=tmp_path)
    cfg = get_config("common/data/shapes")
    cfg.model, cfg.train = {"num_classes": 6}, {"output_dir": str(tmp_path)}
    loader = cfg.dataloader.train
    loader.dataset.names = "tiny_shapes"
    batch = next(iter(instantiate(loader)))
    assert len(batch) == loader.total_batch_size
    assert all(160 <= min(image["image"].shape[1:]) <= 224 for image in batch)
