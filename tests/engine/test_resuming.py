"""A run that was stopped anywhere and resumed is the one that was not stopped, bit for bit: rows 35 and 36."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from dinox.config import load_config
from dinox.data import CopyPaste, RepeatFactorSampling, large_scale_jitter
from dinox.data.position import Position
from dinox.engine import Trainer, TrainingStopped, train
from dinox.engine.run_state import changed_settings, plain_settings
from tests.data.coco_files import write_image
from tests.engine.conftest import TINY_CONFIG, TINY_DINO_CONFIG
from tests.engine.tiny import TinyDetector
from tests.modeling.test_distributed import TIME_LIMIT, free_port

MIXED = "dinox_tiny_mixed"
STEPS = 7


class DrawingDetector(TinyDetector):
    """Draws from all generators that a model may draw from; one of them is its own."""

    def __init__(self, *, num_classes: int):
        super().__init__(num_classes=num_classes)
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, batched_inputs):
        losses = super().forward(batched_inputs)
        if not self.training:
            return losses
        factor = 1 + torch.rand(()) + torch.rand((), generator=self.generator) + np.random.rand()
        return {name: loss * factor for name, loss in losses.items()}


@pytest.fixture(scope="module", autouse=True)
def mixed_images(tmp_path_factory):
    """Nine images, some of them upright, with one or two objects that have masks."""
    folder = tmp_path_factory.mktemp("mixed")
    records = []
    for number in range(9):
        height, width = (64, 48) if number % 3 == 1 else (48, 64)
        file = write_image(folder / f"{number}.png", height=height, width=width)
        objects = [
            {
                "bbox": [4 + 6 * i, 5, 20, 16],
                "bbox_mode": 1,
                "category_id": (number + i) % 6,
                "segmentation": [[4 + 6 * i, 5, 24 + 6 * i, 5, 24 + 6 * i, 21, 4 + 6 * i, 21]],
            }
            for i in range(1 + number % 2)
        ]
        record = {"file_name": str(file), "image_id": number, "height": height, "width": width}
        records.append({**record, "annotations": objects})
    DatasetCatalog.register(MIXED, lambda: records)
    MetadataCatalog.get(MIXED).thing_classes = ["disk", "ring", "square", "triangle", "star", "cross"]
    yield
    DatasetCatalog.remove(MIXED)
    MetadataCatalog.remove(MIXED)


def mixed_cfg(folder, *, config=TINY_CONFIG, overrides=()):
    """Training on the mixed images with crops and resizes, batches of 2, without evaluation."""
    cfg = load_config(config, [f"train.output_dir={folder}"])
    cfg.train.max_iter, cfg.train.checkpointer.period, cfg.train.matching_metrics.enabled = STEPS, 100, False
    cfg.dataloader.train.dataset.names = MIXED
    cfg.dataloader.train.total_batch_size = 2
    cfg.dataloader.train.mapper.augmentations.update(short_edges=[48, 64], max_size=80, crop_probability=0.5)
    if config == TINY_CONFIG:
        cfg.model = L(DrawingDetector)(num_classes=6)
    del cfg.dataloader["evaluator"]
    return LazyConfig.apply_overrides(cfg, list(overrides))


def with_copy_paste(cfg):
    train_data = cfg.dataloader.train
    train_data.mapper.augmentations = L(large_scale_jitter)(size=64)
    train_data.mapper.masks = "bitmask"
    train_data.copy_paste = L(CopyPaste)()
    train_data.aspect_ratio_grouping = False
    return cfg


def with_repeat_factors(cfg):
    cfg.dataloader.train.sampler = L(RepeatFactorSampling)(threshold=0.9)
    return cfg


@pytest.fixture
def stop_in(monkeypatch):
    """stop_in(k): SIGTERM arrives in iteration k (once)."""

    def plan(iteration, number=signal.SIGTERM):
        run_step = Trainer.run_step

        def interrupted(self):
            if self.iter == iteration:
                monkeypatch.setattr(Trainer, "run_step", run_step)
                signal.raise_signal(number)
            run_step(self)

        monkeypatch.setattr(Trainer, "run_step", interrupted)

    return plan


def final(cfg):
    return torch.load(Path(cfg.train.output_dir) / "model_final.pth", weights_only=True)


def assert_same(one, other, where="", *, besides=("RunClock", "settings")):
    """Equal to the bit. What may differ: the wall time, and settings such as the number of workers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - set(besides):
            assert_same(one[key], other[key], f"{where}.{key}", besides=besides)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other)):
            assert_same(*pair, f"{where}[{i}]", besides=besides)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


VARIANTS = {
    "grouped": (lambda cfg: cfg),
    "copy-paste": with_copy_paste,
    "repeat factors": with_repeat_factors,
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """variant -> what the run without an interruption and without workers ends with."""
    made = {}

    def run(variant):
        if variant not in made:
            cfg = VARIANTS[variant](mixed_cfg(tmp_path_factory.mktemp("whole")))
            train(cfg, console="off")
            made[variant] = final(cfg)
        return made[variant]

    return run


@pytest.mark.parametrize("stopped", [0, 2, 4, 5])  # an epoch is 4.5 batches
@pytest.mark.parametrize("variant", VARIANTS)
def test_row_35_stopped_and_resumed_is_uninterrupted(tmp_path, stop_in, uninterrupted, variant, stopped):
    cfg = VARIANTS[variant](mixed_cfg(tmp_path / "run"))
    stop_in(stopped)
    with pytest.raises(TrainingStopped) as stop:
        train(cfg, console="off")
    assert stop.value.code == 143
    assert not (tmp_path / "run" / "model_final.pth").exists()
    train(cfg, resume=True, console="off")
    assert_same(final(cfg), uninterrupted(variant))


@pytest.mark.parametrize("variant", ["grouped", "copy-paste"])
@pytest.mark.parametrize("workers", [(2, 2), (2, 1)])
def test_row_35_with_any_number_of_workers_before_and_after(tmp_path, stop_in, uninterrupted, variant, workers):
    cfg = VARIANTS[variant](mixed_cfg(tmp_path / "run"))
    cfg.dataloader.train.num_workers = workers[0]
    stop_in(2)
    with pytest.raises(TrainingStopped):
        train(cfg, console="off")
    cfg.dataloader.train.num_workers = workers[1]
    train(cfg, resume=True, console="off")
    assert_same(final(cfg), uninterrupted(variant))


def train_with_two_stops(cfg, stop_in):
    for iteration in (1, 4):
        stop_in(iteration)
        with pytest.raises(TrainingStopped):
            train(cfg, resume=True, console="off")
    train(cfg, resume=True, console="off")


def test_row_35_stopped_twice_and_in_fp16(tmp_path, stop_in):
    cfg, whole = (
        mixed_cfg(tmp_path / name, overrides=["train.amp={enabled:true,dtype:fp16}"]) for name in ("run", "whole")
    )
    train(whole, console="off")
    train_with_two_stops(cfg, stop_in)
    assert final(cfg)["trainer"]["grad_scaler"]["_growth_tracker"] == STEPS
    assert_same(final(cfg), final(whole))


@pytest.mark.parametrize("workers", [0, 2])
def test_row_35_the_averaged_weights_go_on_with_their_warm_up(tmp_path, stop_in, uninterrupted, workers):
    ema = ["train.ema={enabled:true,decay:0.9,warmup:3}", f"dataloader.train.num_workers={workers}"]
    cfg, whole = (mixed_cfg(tmp_path / name, overrides=ema) for name in ("run", "whole"))
    train(whole, console="off")
    train_with_two_stops(cfg, stop_in)
    assert_same(final(cfg), final(whole))
    assert final(cfg)["trainer"]["hooks"]["WeightAverage"] == {"steps": STEPS}
    assert_same(final(cfg)["model"], uninterrupted("grouped")["model"])  # averaging changes nothing in training
    assert not torch.equal(final(cfg)["ema"]["class_head.weight"], final(cfg)["model"]["class_head.weight"])


@pytest.mark.parametrize("parts", [1, 2])
def test_row_35_with_denoising_and_without_a_seed(tmp_path, stop_in, parts):
    """The seed that was drawn is that of the resumed run; a step is saved when all of its parts are done."""
    overrides = ["train.max_iter=4", f"train.accumulation_steps={parts}"]
    cfg = mixed_cfg(tmp_path / "run", config=TINY_DINO_CONFIG, overrides=["train.seed=-1", *overrides])
    stop_in(1)
    with pytest.raises(TrainingStopped):
        train(cfg, console="off")
    stopped = torch.load(tmp_path / "run" / "model_0000001.pth", weights_only=True)
    seed = stopped["trainer"]["hooks"]["RunCheckpoints"]["seed"]
    train(cfg, resume=True, console="off")
    whole = mixed_cfg(tmp_path / "whole", config=TINY_DINO_CONFIG, overrides=[f"train.seed={seed}", *overrides])
    train(whole, console="off")
    assert_same(final(cfg), final(whole))


def test_row_35_evaluation_draws_nothing_from_the_numbers_of_training(tmp_path, tiny_cfg):
    """It begins with a DataLoader, which draws one: a run resumed behind the evaluation has not had it."""
    cfg, evaluating = mixed_cfg(tmp_path / "run"), mixed_cfg(tmp_path / "evaluating")
    evaluating.dataloader.evaluator = tiny_cfg.dataloader.evaluator
    evaluating.dataloader.evaluator.output_dir = None
    evaluating.train.eval_period = 2
    for each in (cfg, evaluating):
        train(each, console="off")
    assert_same(final(cfg), final(evaluating), besides=("RunClock", "settings", "Evaluations"))


def stop_second_rank(rank, stopped):
    run_step = Trainer.run_step

    def interrupted(self):
        if rank == 1 and self.iter == stopped:
            signal.raise_signal(signal.SIGTERM)
        run_step(self)

    Trainer.run_step = interrupted


def train_on_a_rank(rank, port, cfg, resume, stopped):
    """SIGTERM reaches the second rank only."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    comm._LOCAL_PROCESS_GROUP = dist.new_group([0, 1])
    stop_second_rank(rank, stopped)
    try:
        train(cfg, resume=resume, console="off")
    except TrainingStopped as stop:
        (Path(cfg.train.output_dir) / f"stopped.{rank}").write_text(stop.message)


def on_two_ranks(cfg, *, resume=False, stopped=None):
    mp.start_processes(train_on_a_rank, (free_port(), cfg, resume, stopped), nprocs=2, start_method="fork")


@pytest.mark.timeout(TIME_LIMIT)
def test_row_35_two_ranks_stop_together_and_go_on_together(tmp_path, capfd):
    whole, cfg = (mixed_cfg(tmp_path / name, overrides=["dataloader.train.total_batch_size=4"]) for name in ("a", "b"))
    on_two_ranks(whole)
    on_two_ranks(cfg, stopped=3)
    for rank in range(2):
        message = (tmp_path / "b" / f"stopped.{rank}").read_text()
        assert message == "stopped by SIGTERM after 4 iterations; --resume continues"
    shutil.copytree(tmp_path / "b", tmp_path / "alone")
    on_two_ranks(cfg, resume=True)
    ranks = final(cfg)["trainer"]["hooks"]["RunCheckpoints"]["ranks"]
    assert not torch.equal(ranks[0]["random"]["torch"], ranks[1]["random"]["torch"])
    assert_same(final(cfg), final(whole))
    # Row 36: one rank takes over.
    cfg.train.output_dir = str(tmp_path / "alone")
    capfd.readouterr()
    train(cfg, resume=True)
    out = capfd.readouterr().out
    assert ["number", "of", "processes", "2", "1"] in [line.split() for line in out.splitlines()]
    assert "Random numbers are seeded anew from (seed 1, iteration, rank)" in out
    (alone,) = final(cfg)["trainer"]["hooks"]["RunCheckpoints"]["ranks"]
    assert Position.from_state(alone["data"]["position"]).images == STEPS * 4


def test_row_36_a_checkpoint_without_the_state_says_so_and_passes_over_the_images(tmp_path, stop_in, capsys):
    cfg = mixed_cfg(tmp_path / "run")
    stop_in(3)
    with pytest.raises(TrainingStopped):
        train(cfg, console="off")
    file = tmp_path / "run" / "model_0000003.pth"
    content = torch.load(file, weights_only=True)
    before = content["trainer"]["hooks"].pop("RunCheckpoints")
    torch.save(content, file)
    train(cfg, resume=True)
    assert "neither a position in the data nor states of random numbers" in capsys.readouterr().out
    after = final(cfg)["trainer"]["hooks"]["RunCheckpoints"]["ranks"][0]["data"]
    assert after["seed"] == before["ranks"][0]["data"]["seed"]
    # Of 4 steps, and of 3 more.
    assert after["position"]["end"] - len(after["position"]["waiting"]) == 4 * 2 + 3 * 2


def test_row_36_another_batch_size_goes_on_after_as_many_images(tmp_path, stop_in, capsys):
    cfg = mixed_cfg(tmp_path / "run")
    stop_in(3)
    with pytest.raises(TrainingStopped):
        train(cfg, console="off")
    cfg.dataloader.train.total_batch_size = 4
    cfg.dataloader.train.max_bad = 0.5
    train(cfg, resume=True)
    out = capsys.readouterr().out
    assert "Batches are of 4 images instead of 2: 4 iterations count as 2" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["dataloader.train.total_batch_size", "2", "4"] in lines and [
        "dataloader.train.max_bad",
        "0.01",
        "0.5",
    ] in lines
    position = final(cfg)["trainer"]["hooks"]["RunCheckpoints"]["ranks"][0]["data"]["position"]
    assert position["end"] - len(position["waiting"]) == 4 * 2 + (STEPS - 2) * 4


def test_unchanged_settings_are_not_printed(tmp_path, stop_in, capsys):
    cfg = mixed_cfg(tmp_path / "run")
    stop_in(3)
    with pytest.raises(TrainingStopped):
        train(cfg, console="off")
    train(cfg, resume=True)
    assert "other settings" not in capsys.readouterr().out


BEFORE = ("amp.enabled", "amp.dtype", "checkpointer", "ddp", "device", "eval_period", "init", "log", "max_iter", "seed")
"""Settings of ``train``, or how they begin, that checkpoints of the first versions have."""


def test_a_setting_that_a_checkpoint_does_not_know_counts_as_changed_only_in_use():
    now = plain_settings(load_config(TINY_CONFIG, ["train.amp.enabled=true"]))
    known = tuple(f"train.{name}" for name in BEFORE)
    before = {name: value for name, value in now.items() if not name.startswith("train.") or name.startswith(known)}
    assert len(now) - len(before) > 20
    (own,) = changed_settings(before, now)
    assert own == ("train.amp.max_skips_in_a_row", "-", "20")  # mixed precision is on
    in_use = {"train.ema.enabled": True, "train.accumulation_steps": 2, "train.lr_scaling.rule": "sqrt", "model.new": 0}
    rows = list(changed_settings(before, now | in_use | {"optimizer.lr": 2.0}))
    assert [name for name, _, _ in rows] == [
        "model.new",
        "optimizer.lr",
        "train.accumulation_steps",
        "train.amp.max_skips_in_a_row",
        "train.ema.decay",
        "train.ema.enabled",
        "train.ema.warmup",
        "train.lr_scaling.reference_batch_size",
        "train.lr_scaling.rule",
    ]
    # As well where the checkpoint has what the config lacks.
    assert [name for name, *_ in changed_settings(now | in_use, before)] == [
        name for name, *_ in rows if name != "optimizer.lr"
    ]


def test_settings_are_told_as_plain_values(tmp_path):
    settings = plain_settings(mixed_cfg(tmp_path))
    assert settings["model._target_"] == f"{__name__}.DrawingDetector"
    assert settings["optimizer.lr"] == 1e-4
    assert settings["dataloader.train.mapper.augmentations.short_edges"] == "[48, 64]"
    assert all(value is None or isinstance(value, (bool, int, float, str)) for value in settings.values())
