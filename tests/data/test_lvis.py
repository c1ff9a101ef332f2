"""LVIS: loading, repeat-factor sampling, evaluation, and the counts that the federated loss draws by.

The package lvis need not be there: a stand-in reads the json as detectron2 asks it to.
"""

import itertools
import json
import sys
import types
from collections import Counter

import numpy
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
    module.LVISResults = module.LVISEval = None  # not reached without annotations
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
    for threshold, shown in ((2, "2"), ("x", "'x'")):
        with pytest.raises(ValueError, match=f"threshold: expected a share of the images from 0 to 1, got {shown}"):
            RepeatFactorSampling(threshold=threshold)


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


def test_a_package_that_cannot_be_imported_is_an_error_before_the_first_image(tmp_path, monkeypatch, lvis_train):
    """Such as without one that it needs itself."""
    (tmp_path / "lvis").mkdir()
    (tmp_path / "lvis" / "__init__.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lvis", raising=False)
    with pytest.raises(DataError, match=r"lvis, which cannot be imported \(.*'not_there_at_all'\): pip install"):
        LvisEvaluator(TRAIN)


def test_another_package_of_this_name_is_an_error_before_the_first_image(lvis_package, lvis_train, monkeypatch):
    monkeypatch.delattr(sys.modules["lvis"], "LVISEval")
    with pytest.raises(DataError, match=r"lvis, which has no LVISEval here"):
        LvisEvaluator(TRAIN)


@pytest.mark.parametrize("most", [-4, 0, 2.5, True])
def test_wrong_numbers_of_detections_are_errors(lvis_package, lvis_train, most):
    with pytest.raises(ValueError, match=f"max_dets_per_image: expected a whole number of at least 1, got {most}"):
        LvisEvaluator(TRAIN, max_dets_per_image=most)


def evaluate_all_objects(**options) -> dict | None:
    """With the true boxes as detections."""
    evaluator = LvisEvaluator(TRAIN, distributed=False, **options)
    evaluator.reset()
    for image in range(1, IMAGES + 1):
        classes = torch.tensor([1, 1202] if image == IMAGES else [1])
        found = Instances((48, 64), pred_boxes=Boxes(torch.tensor([[4.0, 6.0, 24.0, 16.0]] * len(classes))))
        found.scores, found.pred_classes = torch.full((len(classes),), 0.5), classes
        evaluator.process([{"image_id": image}], [{"instances": found}])
    return evaluator.evaluate()


def test_evaluation_may_use_names_that_numpy_removed(lvis_package, lvis_train, monkeypatch):
    """lvis 0.5.3 does, at the very end."""
    monkeypatch.setattr(StandIn, "get_ann_ids", lambda self: [1])
    was_there = "float" in vars(numpy)

    class Evaluation:
        def __init__(self, *args):
            self.ap = 0.0

        def run(self):
            self.ap = numpy.ones(1).astype(dtype=numpy.float)[0]

        def print_results(self):
            pass

        def get_results(self):
            return dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"), self.ap)

    monkeypatch.setattr(sys.modules["lvis"], "LVISEval", Evaluation)
    monkeypatch.setattr(sys.modules["lvis"], "LVISResults", lambda *args, **options: None)
    assert evaluate_all_objects()["bbox"]["AP"] == 100
    assert ("float" in vars(numpy)) == was_there


def test_true_boxes_have_an_ap_of_100_with_the_package(lvis_train):
    """But for class 1202, of whose two objects in one place one is found: precision is 1 up to a recall of 1/2, at 51
    of the 101 recalls. The mean with class 1, which is found in full, is (1 + 51 / 101) / 2."""
    pytest.importorskip("lvis")
    content = json.loads(lvis_train.read_text())
    for image in content["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    for category in content["categories"]:
        category["frequency"] = "f"
    lvis_train.write_text(json.dumps(content))
    assert evaluate_all_objects()["bbox"]["AP"] == pytest.approx(100 * (1 + 51 / 101) / 2)


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


def test_a_file_that_changes_is_counted_again(tmp_path):
    file = tmp_path / "counts.json"
    file.write_text(json.dumps([{"id": 1, "image_count": 5}]))
    counts = ClassImageCounts(source=str(file))
    assert counts() == (5,)
    file.write_text(json.dumps([{"id": 1, "image_count": 50}]))  # another size, should the clock stand still
    assert counts() == (50,)


def one_image(**sections) -> str:
    return json.dumps({"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}], "annotations": []} | sections)


ONE = {"id": 1, "image_id": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (one_image(categories=[{"name": "cat"}]), "'id': expected a number, got nothing"),
        (one_image(categories=["cat"]), "expected an object, got 'cat'"),
        (one_image(categories=[{"id": 1, "name": "a"}, {"id": "b", "name": "b"}]), "'id': expected a number, got 'b'"),
        (one_image(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "2 entries with the id 1"),
        (one_image(annotations=[ONE]), r"'category_id': expected the id of a category \(1\), got nothing"),
        (one_image(annotations=[{**ONE, "category_id": [1]}]), r"'category_id': expected .*, got \[1\]"),
        (one_image(annotations=[{"id": 1, "category_id": 1}]), "'image_id': expected the id of an image, got nothing"),
        (one_image(annotations=5), "'annotations': expected a list, got 5"),
        ('[{"id": 1, "image_count": 1}, {"id": "b", "image_count": 1}]', "expected objects with 'id' and .*'b'"),
        ('[{"id": 1, "image_count": 1}, {"id": 1, "image_count": 1}]', "each with an id of its own"),
        ("[]", "expected at least one class"),
    ],
)
def test_what_cannot_be_counted_is_an_error_that_names_the_file(tmp_path, content, message):
    file = tmp_path / "counts.json"
    file.write_text(content)
    with pytest.raises(DataError, match=rf"counts\.json: .*{message}"):
        ClassImageCounts(source=str(file))()


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
