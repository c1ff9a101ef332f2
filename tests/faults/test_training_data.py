"""Crowds, empty images and too many objects."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from dinox.data import DetectionMapper, load_dataset_dicts

from ..data.coco_files import annotation, write_image
from ..modeling.test_distributed import free_port
from ..small_models import SMALL, assert_trains_one_step, build_small, loss_keys, make_input
from .own_data import HEIGHT, WIDTH, change_json, write_dataset

DEMO = str(Path(__file__).parents[2] / "projects" / "dino" / "configs" / "dino_demo.py")


@pytest.fixture
def config(tmp_path, forget_datasets):
    return write_dataset(tmp_path)


@pytest.fixture
def train(dinox, tmp_path, forget_datasets, output_dir):
    """Trains a small DINO."""
    config = write_dataset(tmp_path, base=DEMO)

    def run(*overrides):
        sizes = ["mapper.augmentations.short_edges=[64]", "total_batch_size=2"]
        settings = [*SMALL, "train.device=cpu", "train.log_period=1", f"train.output_dir={output_dir}"]
        loader = [f"dataloader.train.{size}" for size in sizes]
        return dinox("train", "--config-file", config, *settings, *loader, *overrides)

    return run


def crowd(content):
    content["annotations"][2].update(iscrowd=1, segmentation={"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]})


def test_row_23_crowds_are_counted_and_no_targets(dinox, config, output_dir, tmp_path):
    change_json(tmp_path / "train.json", crowd)
    code, out, err = dinox("train", "--config-file", config, f"train.output_dir={output_dir}", "train.max_iter=1")
    assert code == 0, err
    assert "own_train: 1 crowd region" in out
    records = load_dataset_dicts("own_train", filter_empty=False)
    mapper = DetectionMapper(is_train=True, augmentations=[])
    assert [len(mapper(record)["instances"]) for record in records] == [1, 1, 0, 1, 1, 1, 1, 1]


# The evaluator's side of crowds: tests/faults/test_evaluation.py.


def test_row_24_training_on_nothing_but_empty_images(train, output_dir, tmp_path):
    change_json(tmp_path / "train.json", lambda content: content.update(annotations=[]))
    code, _, err = train("train.max_iter=3")
    assert code == 0, err
    lines = map(json.loads, (output_dir / "metrics.json").read_text().splitlines())
    steps = [entry for entry in lines if "total_loss" in entry]
    assert len(steps) == 3
    for step in steps:
        assert loss_keys() <= step.keys()
        assert all(math.isfinite(step[key]) for key in loss_keys())


@pytest.mark.parametrize("objects", [(0, 0), (0, 3)])
def test_row_24_batches_with_empty_images_have_all_losses_and_gradients(objects):
    inputs = [make_input(64, 64, count, seed=seed) for seed, count in enumerate(objects)]
    assert assert_trains_one_step(build_small(), inputs).keys() == loss_keys()


def step_of_a_rank(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    model = DistributedDataParallel(build_small())  # without find_unused_parameters
    for step, objects in enumerate([(0, 3), (0, 0), (2, 0)]):
        losses = assert_trains_one_step(model, [make_input(64, 64, objects[rank], seed=step)])
        assert losses.keys() == loss_keys()
    gradients = {name: p.grad for name, p in model.module.named_parameters() if p.requires_grad}
    torch.save(gradients, folder / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.timeout(30)
def test_row_24_one_rank_of_two_without_objects(tmp_path):
    """More mixtures and detectors: tests/modeling/test_distributed.py."""
    mp.start_processes(step_of_a_rank, (free_port(), tmp_path), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    assert all(torch.equal(gradient, second[name]) for name, gradient in first.items())


def test_row_25_more_objects_than_queries():
    model = build_small()
    assert model.num_queries == 20
    losses = assert_trains_one_step(model, [make_input(64, 64, 50), make_input(64, 64, 2)])
    assert losses.keys() == loss_keys()


def test_row_25_a_thousand_objects_have_bounded_denoising_and_one_warning(tmp_path, caplog):
    file = write_image(tmp_path / "crowded.png", height=HEIGHT, width=WIDTH)
    boxes = [annotation(bbox=[i % 60, i % 40, 4, 5], bbox_mode=1, category_id=i % 80) for i in range(1000)]
    record = {"file_name": str(file), "image_id": 1, "height": HEIGHT, "width": WIDTH, "annotations": boxes}
    sample = DetectionMapper(is_train=True, augmentations=[])(record)
    assert len(sample["instances"]) == 1000
    model = build_small()
    sizes = []
    model.query_groups["denoising"].register_forward_hook(lambda module, context, group: sizes.append(group.size))
    with caplog.at_level(logging.WARNING, logger="dinox"):
        for _ in range(3):
            assert_trains_one_step(model, [sample])
    assert sizes == [model.query_groups["denoising"].max_queries] * 3
    warnings = [record.getMessage() for record in caplog.records if "1000 objects" in record.getMessage()]
    assert len(warnings) == 1
    assert "Raise max_queries of the denoising group" in warnings[0]
