"""LVIS: loading, repeat-factor sampling, evaluation, and the counts that the federated loss draws by.

The package lvis need not be there: a stand-in reads the json as detectron2 asks it to.
"""

import itertools
import json
import sys
import types
from collections import Counter

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_lvis_instances
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf

from dinox.data import ClassImageCounts, DataError, RepeatFactorSampling, check_data, load_dataset_dicts
from dinox.evaluation import LvisEvaluator
from dinox.model_zoo import get_config

from .coco_files import small_coco, write_coco, write_image

TRAIN, NUM_CLASSES = "tiny_lvis_v1_train", 1203
IMAGES = 4


class StandIn:
    """The part of lvis.LVIS that detectron2 loads datasets by."""

    def __init__(self, json_file):
        with open(json_file) as file:
            self.dataset = json.load(file)
        self.imgs = {image["id"]: image for image in self.dataset["images"]}
        self.img_ann_map = {key: [a for a in self.dataset["annotations"] if a["image_id"] == key] for key in self.imgs}

    def load_imgs(self, ids):
        return [self.imgs[key] for key in ids]

    def get_ann_ids(self):
        return []  # as of a test set: nothing to evaluate


@pytest.fixture
def lvis_package(monkeypatch):
    module = types.ModuleType("lvis")
    module.LVIS = StandIn
    module.__spec__ = types.SimpleNamespace(name="lvis")
    monkeypatch.setitem(sys.modules, "lvis", module)


@pytest.fixture
def lvis_train(tmp_path):
    """Four images: class 1 (id 2) in all of them, class 1202 (id 1203, the last) in the last one, twice."""

    def box(number, image, category):
        polygon = [[4, 6, 24, 6, 24, 16, 4, 16]]
        fields = {"id": number, "image_id": image, "category_id": category}
        return {**fields, "bbox": [4, 6, 20, 10], "area": 200, "segmentation": polygon}

    url = "http://images.cocodataset.org/train2017/{}.jpg"
    images = [{"id": i, "height": 48, "width": 64, "coco_url": url.format(i)} for i in range(1, IMAGES + 1)]
    annotations = [box(i, i, 2) for i in range(1, IMAGES + 1)] + [box(10 + i, IMAGES, 1203) for i in range(2)]
    counts = {2: IMAGES, 1203: 1}
    categories = [{"id": i, "name": str(i), "image_count": counts.get(i, 0)} for i in range(1203, 0, -1)]
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    (tmp_path / "train2017").mkdir()
    for image in images:
        write_image(tmp_path / "train2017" / f"{image['id']}.jpg")
    register_lvis_instances(TRAIN, get_lvis_instances_meta(TRAIN), str(file), f"{tmp_path}/")
    yield file
    DatasetCatalog.remove(TRAIN)
    MetadataCatalog.remove(TRAIN)


def lvis_config(tmp_path, **model):
    cfg = get_config("common/data/lvis")
    cfg.model, cfg.train = {"num_classes": NUM_CLASSES, **model}, {"output_dir": str(tmp_path)}
    for loader in (cfg.dataloader.train, cfg.dataloader.test):
        loader.dataset.names = TRAIN
        loader.num_workers = 0
    cfg.dataloader.train.mapper.augmentations.size = 64
    cfg.dataloader.train.total_batch_size = 2
    return cfg


def test_the_config_loads_lvis_and_repeats_rare_images(lvis_package, lvis_train, tmp_path):
    """In a quarter of the images, below a threshold of 1: repeated by (1 / .25)^.5 = 2 times."""
    cfg = lvis_config(tmp_path)
    cfg.dataloader.train.sampler.threshold = 1.0
    check_data(cfg)
    loader = instantiate(cfg.dataloader.train)
    images = [image for batch in itertools.islice(loader, 50) for image in batch]
    seen = Counter(image["image_id"] for image in images)
    # Every epoch has five images, two of them the last one.
    assert seen[IMAGES] == pytest.approx(40, abs=2) and seen[1] == pytest.approx(20, abs=2)
    assert all(image["image"].shape == (3, 64, 64) for image in images)
    classes = {c for image in images for c in image["instances"].gt_classes.tolist()}
    assert classes == {1, 1202}
    tested = [image for images in instantiate(cfg.dataloader.test) for image in images]
    assert [image["image_id"] for image in tested] == [1, 2, 3, 4] and tested[0]["content_size"] == (48, 64)


def test_the_config_is_that_of_the_paper():
    dataloader = get_config("common/data/lvis").dataloader
    assert (dataloader.train.dataset.names, dataloader.test.dataset.names) == ("lvis_v1_train", "lvis_v1_val")
    assert dataloader.train.sampler.threshold == 1e-3
    assert {"lvis_v1_train", "lvis_v1_val"} <= set(DatasetCatalog.list())
    assert len(MetadataCatalog.get("lvis_v1_train").thing_classes) == NUM_CLASSES


def test_repeat_factors_are_those_of_lvis_s_appendix():
    """Class 0 is in all images, class 1 in a quarter: r = max(1, (t / f)^.5) with t = 9/16 is 1 and 1.5."""
    dicts = [{"annotations": [{"category_id": c} for c in classes]} for classes in ((0,), (0,), (0,), (0, 1))]
    stream = iter(RepeatFactorSampling(threshold=9 / 16, seed=0)(dicts))
    counts = Counter(itertools.islice(stream, 9000))
    # 9000 indices are 2000 epochs of 4.5; the half is drawn each time: a standard deviation of 22.
    assert counts[3] == pytest.approx(3000, abs=100) and counts[0] == pytest.approx(2000, abs=50)


def test_images_without_annotations_come_once():
    sampler = RepeatFactorSampling(threshold=1e-3, seed=0)([{"file_name": "a"}, {"annotations": []}])
    assert sorted(itertools.islice(iter(sampler), 2)) == [0, 1]


def test_wrong_thresholds_are_refused():
    with pytest.raises(ValueError, match="threshold: expected a share of the images from 0 to 1, got 2"):
        RepeatFactorSampling(threshold=2)


@pytest.fixture
def no_lvis_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lvis", None)  # importing it raises ModuleNotFoundError


def test_without_the_package_loading_says_what_to_install(no_lvis_package, lvis_train):
    with pytest.raises(
        DataError, match=r"'tiny_lvis_v1_train' is read by the package lvis: pip install 'dinox\[lvis\]'"
    ):
        load_dataset_dicts(TRAIN)


def test_without_the_package_evaluation_says_what_to_install(no_lvis_package, lvis_train):
    with pytest.raises(DataError, match=r"package lvis, which is not installed: pip install 'dinox\[lvis\]'"):
        LvisEvaluator(TRAIN)


def test_detections_are_written_with_lvis_s_ids(lvis_package, lvis_train, tmp_path):
    evaluator = LvisEvaluator(TRAIN, output_dir=str(tmp_path / "inference"), distributed=False)
    evaluator.reset()
    found = Instances((48, 64))
    found.pred_boxes, found.scores = Boxes(torch.tensor([[4.0, 6.0, 24.0, 16.0]])), torch.tensor([0.5])
    found.pred_classes = torch.tensor([1202])
    evaluator.process([{"image_id": 4}], [{"instances": found}])
    evaluator.evaluate()
    (result,) = json.loads((tmp_path / "inference" / "lvis_instances_results.json").read_text())
    assert (result["image_id"], result["category_id"], result["bbox"]) == (4, 1203, [4, 6, 20, 10])


# --------------------------------------------------------------------------------------------------------------- counts


def test_counts_are_read_from_lvis_s_categories(lvis_train):
    for source in (TRAIN, str(lvis_train)):
        counts = ClassImageCounts(source=source)()
        assert len(counts) == NUM_CLASSES and (counts[1], counts[1202], sum(counts)) == (IMAGES, 1, IMAGES + 1)


def test_counts_are_read_from_a_list_of_classes(tmp_path):
    file = tmp_path / "counts.json"
    file.write_text(json.dumps([{"id": 9, "image_count": 5}, {"id": 2, "image_count": 7}]))
    assert ClassImageCounts(source=str(file))() == (7, 5)


def test_counts_are_read_from_the_metadata(register):
    counts = [{"id": 1, "image_count": 3}, {"id": 2, "image_count": 0}]
    name = register("counted", list, thing_classes=["cat", "dog"], class_image_count=counts)
    assert ClassImageCounts(source=name)() == (3, 0)


def test_images_of_a_coco_json_are_counted_once_for_each_class(tmp_path, register):
    coco = small_coco()
    coco["annotations"].append({**coco["annotations"][0], "id": 14})
    name = register("to_count", write_coco(tmp_path, coco))
    assert ClassImageCounts(source=name)() == (1, 2)  # cat (id 3) in the first image, dog (id 7) in both


@pytest.mark.parametrize("content", ["[{}]", '[{"id": 1, "image_count": "many"}]', '{"images": []}', "3"])
def test_files_without_counts_are_errors_that_name_them(tmp_path, content):
    file = tmp_path / "counts.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"counts\.json: expected"):
        ClassImageCounts(source=str(file))()


def test_counts_of_other_classes_are_an_error_before_the_first_step(lvis_package, lvis_train, tmp_path):
    file = tmp_path / "counts.json"
    file.write_text(json.dumps([{"id": 1, "image_count": 5}]))
    loss = {"image_counts": {"_target_": "dinox.data.ClassImageCounts", "source": str(file)}}
    cfg = lvis_config(tmp_path, criterion={"class_loss": loss})
    with pytest.raises(DataError, match=r"class_loss.image_counts: 1 classes are counted in .*counts\.json.* has 1203"):
        check_data(OmegaConf.create(cfg))
