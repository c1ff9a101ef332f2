"""The embedded dataset "shapes": what it promises about its images, its files and its registration."""

import contextlib
import fcntl
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from dinox.data import register_shapes
from dinox.data.shapes import files
from dinox.data.shapes.files import ShapesSpec, ensure_dataset, generate_scene
from dinox.data.shapes.registration import DEFAULT_DATASETS
from dinox.data.shapes.scene import CLASS_NAMES, MAX_OBJECTS, MIN_VISIBLE_PIXELS

NAME = "shapes_for_tests"
NUM_IMAGES, SEED = 300, 2
TINY = ShapesSpec(seed=5, num_images=4, size=96)


@dataclass(frozen=True)
class Dataset:
    dicts: list[dict]
    coco: COCO
    json: dict

    @property
    def objects(self) -> list[dict]:
        return [annotation for annotation in self.json["annotations"] if not annotation["iscrowd"]]

    @property
    def object_counts(self) -> np.ndarray:
        return np.bincount([item["image_id"] for item in self.objects], minlength=len(self.json["images"]) + 1)[1:]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """The first 300 images of seed 2, that is `dinox_shapes_val`, through the public door."""
    register_shapes(NAME, seed=SEED, num_images=NUM_IMAGES, root=tmp_path_factory.mktemp("datasets"))
    dicts = DatasetCatalog.get(NAME)
    json_file = Path(MetadataCatalog.get(NAME).json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(json_file))
    return Dataset(dicts, coco, json.loads(json_file.read_text()))


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its 4-neighbours."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


# What is in the images


def test_at_least_six_classes_are_about_equally_frequent(dataset):
    names = [dataset.coco.cats[item["category_id"]]["name"] for item in dataset.objects]
    counts = np.array([names.count(name) for name in CLASS_NAMES])
    assert len(CLASS_NAMES) >= 6
    assert counts.min() > 0.75 * counts.mean()


def test_images_have_1_to_12_objects_and_at_least_5_on_average(dataset):
    counts = dataset.object_counts
    assert counts.max() == MAX_OBJECTS == 12
    assert counts.mean() >= 5


def test_5_percent_of_the_images_have_no_object(dataset):
    annotated = {annotation["image_id"] for annotation in dataset.json["annotations"]}
    assert NUM_IMAGES - len(annotated) == 0.05 * NUM_IMAGES
    assert np.count_nonzero(dataset.object_counts == 0) == 0.05 * NUM_IMAGES


def test_30_percent_of_the_boxes_are_smaller_than_32_by_32(dataset):
    sides = np.array([item["bbox"][2:] for item in dataset.objects])
    assert 0.30 <= (sides < 32).all(axis=1).mean() <= (sides.prod(axis=1) < 32**2).mean() <= 0.45


def test_20_percent_of_the_objects_have_more_than_a_quarter_hidden(dataset):
    visible = np.array([item["area"] / item["full_area"] for item in dataset.objects])
    assert 0.20 <= (visible < 0.75).mean() <= 0.28


def test_objects_are_hidden_exactly_where_something_hides_them(dataset):
    for index in range(40):
        objects = generate_scene(ShapesSpec(SEED, NUM_IMAGES), index).objects
        for item in objects:
            # A frame of one pixel around the image shows where the object touches the border.
            touched = _grown(np.pad(item.visible, 1))
            at_border = touched[0].any() or touched[-1].any() or touched[:, 0].any() or touched[:, -1].any()
            at_objects = any((touched[1:-1, 1:-1] & other.visible).any() for other in objects if other is not item)
            area = item.visible.sum()
            assert area <= item.full_area
            assert area == item.full_area or at_border or at_objects


def test_objects_with_too_few_visible_pixels_are_neither_annotated_nor_drawn(dataset):
    assert min(item["area"] for item in dataset.json["annotations"]) >= MIN_VISIBLE_PIXELS
    for index in range(40):
        scene = generate_scene(ShapesSpec(SEED, NUM_IMAGES), index)
        drawn = (scene.image != scene.background).any(axis=2)
        annotated = np.zeros_like(drawn)
        for item in scene.objects:
            annotated |= item.visible
        # Soft edges reach one pixel beyond the mask.
        assert not (drawn & ~_grown(_grown(annotated))).any()


def test_masks_of_one_image_are_disjoint(dataset):
    for image_id in range(1, 41):
        masks = [dataset.coco.annToMask(annotation) for annotation in dataset.coco.imgToAnns[image_id]]
        assert not masks or np.sum(masks, axis=0).max() == 1


def test_boxes_and_areas_are_those_of_the_visible_pixels(dataset):
    for annotation in dataset.json["annotations"][:400]:
        rows, columns = np.nonzero(dataset.coco.annToMask(annotation))
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["bbox"] == box
        assert annotation["area"] == len(rows)


def test_crowds_are_clusters_of_many_tiny_shapes(dataset):
    crowds = [annotation for annotation in dataset.json["annotations"] if annotation["iscrowd"]]
    assert len(crowds) == NUM_IMAGES // 20
    assert all(isinstance(crowd["segmentation"]["counts"], str) for crowd in crowds)
    for crowd in crowds:
        x, y, width, height = crowd["bbox"]
        assert 30 <= width <= 70
        assert 30 <= height <= 70
        mask = dataset.coco.annToMask(crowd)[y : y + height, x : x + width].astype(bool)
        assert 0.1 < mask.mean() < 0.6  # gaps between the shapes
        assert np.count_nonzero(np.diff(mask.astype(int), axis=0)) > 100  # many edges


def test_images_have_the_size_asked_for(dataset):
    """All of one size: then a batch needs no padding, and a detector trains on just what it is evaluated on."""
    assert {(image["height"], image["width"]) for image in dataset.json["images"]} == {(192, 192)}


def test_objects_stand_out_from_the_background():
    distances = []
    for index in range(40):
        scene = generate_scene(ShapesSpec(SEED, NUM_IMAGES), index)
        for item in scene.objects:
            pixels = (image[item.visible].mean(axis=0) for image in (scene.image, scene.background))
            distances.append(np.linalg.norm(np.subtract(*pixels)))
    assert np.percentile(distances, 5) > 70  # of 255 * sqrt(3)


# Colour says nothing about the class


@dataclass(frozen=True)
class Colours:
    """Of M objects: mean colours over the visible pixels and over the box, (M, 3) each, and classes (M,)."""

    mask: np.ndarray
    box: np.ndarray
    classes: np.ndarray


@pytest.fixture(scope="module")
def colours(dataset) -> tuple[Colours, Colours]:
    """To learn from, and to predict for."""
    other = [generate_scene(ShapesSpec(SEED + 100, NUM_IMAGES), index) for index in range(NUM_IMAGES)]
    learned = ((scene.image, item.visible, item.class_index) for scene in other for item in scene.objects)
    predicted = (
        (np.asarray(Image.open(image["file_name"])), mask_util.decode(item["segmentation"]) > 0, item["category_id"])
        for image in dataset.dicts
        for item in image["annotations"]
    )
    return _mean_colours(learned), _mean_colours(predicted)


def _mean_colours(objects: Iterable[tuple[np.ndarray, np.ndarray, int]]) -> Colours:
    """Objects are image (H, W, 3), mask (H, W) and class."""
    rows = []
    for image, mask, class_index in objects:
        ys, xs = np.nonzero(mask)
        box = image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        rows.append((image[ys, xs].mean(axis=0), box.mean(axis=(0, 1)), class_index))
    return Colours(*(np.array(column) for column in zip(*rows, strict=True)))


def _nearest_centroid(train: np.ndarray, classes: np.ndarray, test: np.ndarray) -> np.ndarray:
    centroids = np.stack([train[classes == index].mean(axis=0) for index in range(len(CLASS_NAMES))])
    return np.linalg.norm(test[:, None] - centroids, axis=2).argmin(axis=1)


def _gaussians(train: np.ndarray, classes: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Quadratic discriminant analysis: sees differences of spread as well as of means."""
    scores = []
    for index in range(len(CLASS_NAMES)):
        own = train[classes == index]
        covariance, offsets = np.cov(own.T), test - own.mean(axis=0)
        distances = np.einsum("ni,ij,nj->n", offsets, np.linalg.inv(covariance), offsets)
        scores.append(-0.5 * (distances + np.linalg.slogdet(covariance)[1]))
    return np.argmax(scores, axis=0)


def _nearest_neighbours(train: np.ndarray, classes: np.ndarray, test: np.ndarray, number: int = 25) -> np.ndarray:
    distances = ((test[:, None] - train) ** 2).sum(axis=2)
    nearest = classes[np.argpartition(distances, number, axis=1)[:, :number]]
    return (nearest[:, :, None] == np.arange(len(CLASS_NAMES))).sum(axis=1).argmax(axis=1)


@pytest.mark.parametrize("classifier", [_nearest_centroid, _gaussians, _nearest_neighbours])
@pytest.mark.parametrize("where", ["mask", "box"])
def test_mean_colour_predicts_the_class_no_better_than_chance(colours, where, classifier):
    train, test = colours
    predictions = classifier(getattr(train, where), train.classes, getattr(test, where))
    accuracy = (predictions == test.classes).mean()
    assert accuracy <= 1 / len(CLASS_NAMES) + 0.05


# Determinism


_FRESH_PROCESS = f"""
import json, os, pathlib
import dinox.data
from detectron2.data import DatasetCatalog
from dinox.data.shapes.files import ShapesSpec, ensure_dataset
print(json.dumps(dict(names=DatasetCatalog.list(), entries=os.listdir())))
ensure_dataset({TINY!r}, pathlib.Path("shapes"))
"""


@dataclass(frozen=True)
class FreshProcess:
    """What a new process saw right after importing dinox.data, and the files of the tiny dataset that it wrote."""

    names: list[str]
    entries: list[str]
    contents: dict[str, bytes]


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory) -> FreshProcess:
    folder = tmp_path_factory.mktemp("fresh")
    # The package may be found through the current folder only, which the new process leaves.
    search_path = os.pathsep.join([str(Path(files.__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": search_path, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("DETECTRON2_DATASETS", None)
    command = [sys.executable, "-c", _FRESH_PROCESS]
    result = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return FreshProcess(**json.loads(result.stdout), contents=_contents(folder / "shapes"))


def test_one_spec_gives_the_same_files_in_another_process(tmp_path, fresh_process):
    ensure_dataset(TINY, tmp_path / "shapes")
    assert _contents(tmp_path / "shapes") == fresh_process.contents


def test_seeds_give_different_images():
    first, second = (generate_scene(ShapesSpec(seed, 1), 0).image for seed in (1, 2))
    assert first.shape != second.shape or (first != second).any()


def test_a_smaller_dataset_is_the_beginning_of_a_larger_one():
    smaller, larger = (generate_scene(ShapesSpec(SEED, number), 3).image for number in (4, 400))
    np.testing.assert_array_equal(smaller, larger)


def test_train_and_val_have_different_seeds_and_val_has_300_images():
    train, val = DEFAULT_DATASETS["dinox_shapes_train"], DEFAULT_DATASETS["dinox_shapes_val"]
    assert train.seed != val.seed
    assert val.num_images >= 300


# COCO format and detectron2


def test_category_ids_have_gaps_and_map_to_contiguous_classes(dataset):
    ids = sorted(dataset.coco.cats)
    assert np.diff(ids).max() > 1
    assert [dataset.coco.cats[category_id]["name"] for category_id in ids] == list(CLASS_NAMES)
    metadata = MetadataCatalog.get(NAME)
    assert metadata.thing_classes == list(CLASS_NAMES)
    assert metadata.thing_dataset_id_to_contiguous_id == {category_id: index for index, category_id in enumerate(ids)}
    classes = {annotation["category_id"] for image in dataset.dicts for annotation in image["annotations"]}
    assert classes == set(range(len(CLASS_NAMES)))


def test_the_true_boxes_score_ap_100_in_the_stock_coco_evaluator(dataset, tmp_path):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOEvaluator(NAME, tasks=("bbox",), distributed=False, output_dir=str(tmp_path))
        evaluator.reset()
        for image in dataset.dicts:
            objects = [annotation for annotation in image["annotations"] if not annotation["iscrowd"]]
            instances = Instances((image["height"], image["width"]))
            boxes = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in objects]
            instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
            instances.scores = torch.ones(len(objects))
            instances.pred_classes = torch.tensor([item["category_id"] for item in objects], dtype=torch.int64)
            evaluator.process([{"image_id": image["image_id"]}], [{"instances": instances}])
        results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_importing_registers_the_datasets_and_writes_nothing(fresh_process):
    assert {"dinox_shapes_train", "dinox_shapes_val"} <= set(fresh_process.names)
    assert fresh_process.entries == []


def test_registering_again_is_fine_and_another_dataset_of_the_name_is_an_error(dataset, tmp_path):
    root = Path(MetadataCatalog.get(NAME).json_file).parents[2]
    register_shapes(NAME, seed=SEED, num_images=NUM_IMAGES, root=root)
    with pytest.raises(ValueError, match=f"{NAME}.*already registered"):
        register_shapes(NAME, seed=SEED, num_images=10, root=root)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"num_images": 0}, {"size": 50}, {"size": 192.5}])
def test_an_argument_out_of_range_is_an_error_that_names_it(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        register_shapes("never_registered", **{"seed": 1, "num_images": 2, "size": 96, **wrong})
    assert "never_registered" not in DatasetCatalog.list()


# Writing


def test_what_is_written_is_not_written_again(tmp_path, monkeypatch):
    ensure_dataset(TINY, tmp_path / "shapes")
    monkeypatch.setattr(files, "generate_scene", None)
    ensure_dataset(TINY, tmp_path / "shapes")


def test_an_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(spec, index):
        if index == 2:
            raise KeyboardInterrupt
        return generate_scene(spec, index)

    monkeypatch.setattr(files, "generate_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ensure_dataset(TINY, tmp_path / "shapes")
    assert list(tmp_path.iterdir()) == []


def _write_and_be_killed(folder: Path) -> None:
    files.generate_scene = lambda spec, index: (
        os.kill(os.getpid(), signal.SIGKILL) if index == 2 else generate_scene(spec, index)
    )
    ensure_dataset(TINY, folder)


def _start(target, *arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def test_a_killed_writing_leaves_no_dataset_and_the_next_one_cleans_up(tmp_path):
    process = _start(_write_and_be_killed, tmp_path / "shapes")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "shapes").exists()
    ensure_dataset(TINY, tmp_path / "shapes")
    assert [entry.name for entry in tmp_path.iterdir()] == ["shapes"]


def test_two_processes_at_a_time_write_one_whole_dataset(tmp_path):
    processes = [_start(ensure_dataset, TINY, tmp_path / "shapes") for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    ensure_dataset(TINY, tmp_path / "alone")
    assert _contents(tmp_path / "shapes") == _contents(tmp_path / "alone")
    assert {entry.name for entry in tmp_path.iterdir()} == {"shapes", "alone"}


def test_without_file_locks_the_first_of_two_writers_wins(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError("no locks available")

    def be_overtaken(spec, index):
        if index == 2:
            monkeypatch.setattr(files, "generate_scene", generate_scene)
            ensure_dataset(spec, tmp_path / "shapes")
        return generate_scene(spec, index)

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(files, "generate_scene", be_overtaken)
    ensure_dataset(TINY, tmp_path / "shapes")
    assert [entry.name for entry in tmp_path.iterdir()] == ["shapes"]
    assert len(_contents(tmp_path / "shapes")) == TINY.num_images + 1


def test_a_folder_of_the_name_that_is_no_dataset_is_an_error_and_stays(tmp_path):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="move it away"):
        ensure_dataset(TINY, tmp_path / "shapes")
    assert list(_contents(tmp_path)) == ["shapes/mine.txt"]


def test_a_root_that_cannot_be_written_to_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"DETECTRON2_DATASETS.*file/shapes"):
        ensure_dataset(TINY, tmp_path / "file" / "shapes")
