import json
import logging
import os
from pathlib import Path

import pytest
import torch

from dinox.config import load_config
from dinox.engine import determinism, train
from dinox.engine.determinism import deterministic_algorithms, deterministic_seed
from tests.engine.conftest import TINY_DINO_CONFIG
from tests.engine.test_resuming import assert_same

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture
def no_cublas(monkeypatch):
    """The environment says nothing of cuBLAS, now and after the test."""
    monkeypatch.setenv(CUBLAS, "")
    monkeypatch.delenv(CUBLAS)


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.backends.cuda.mem_efficient_sdp_enabled(),
    )


def run(folder, *overrides):
    """(checkpoint, metrics without times) of 3 iterations, started from another random state each time."""
    torch.seed()
    cfg = load_config(TINY_DINO_CONFIG, [f"train.output_dir={folder}", *overrides])
    cfg.train.matching_metrics.enabled, cfg.train.max_iter = False, 3
    del cfg.dataloader["evaluator"]
    train(cfg, console="off")
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    timed = ("time", "data_time", "wall_time", "eta_seconds", "rank_data_time")
    return checkpoint, [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.mark.parametrize("workers", [0, 2])
def test_two_runs_are_the_same_bit_for_bit(tmp_path, workers):
    overrides = ["train.deterministic=true", "train.seed=-1", f"dataloader.train.num_workers={workers}"]
    one, other = (run(tmp_path / name, *overrides) for name in ("one", "other"))
    assert_same(one[0], other[0])
    assert one[1] == other[1] and "total_loss" in one[1][0]
    assert torch.are_deterministic_algorithms_enabled() is False


def test_without_the_setting_runs_differ(tmp_path):
    one, other = (run(tmp_path / name, "train.seed=-1") for name in ("one", "other"))
    assert not torch.equal(*(next(iter(each[0]["model"].values())) for each in (one, other)))


@pytest.mark.parametrize(("given", "seed", "said"), [(-1, 0, True), (7, 7, False)])
def test_a_run_without_a_seed_takes_zero_and_says_so(given, seed, said, caplog):
    caplog.set_level(logging.INFO, "dinox")
    logging.getLogger("dinox").propagate = True
    assert deterministic_seed(given) == seed
    assert ("train.deterministic without train.seed: the seed is 0" in caplog.text) == said


def test_on_the_cpu_an_operator_without_a_deterministic_kernel_is_an_error():
    before = settings()
    with deterministic_algorithms(True, CPU) as enabled:
        assert enabled and settings()[:4] == (True, False, True, False)
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1), accumulate=False)
    assert settings() == before


def test_on_cuda_it_warns_and_says_in_one_line_which_do_not_repeat(no_cublas, caplog, monkeypatch):
    logging.getLogger("dinox").propagate = True
    monkeypatch.setattr(determinism, "backend", lambda device: "reference")
    before = settings()
    with deterministic_algorithms(True, CUDA):
        assert settings() == (True, True, True, False, False)
        assert os.environ[CUBLAS] == ":4096:8"
    assert settings() == before
    (line,) = caplog.messages
    for text in ("bilinear interpolation (finer maps", "cumsum", "grid_sample (deformable attention without its"):
        assert text in line
    caplog.clear()
    monkeypatch.setattr(determinism, "backend", lambda device: "extension")
    with deterministic_algorithms(True, CUDA):
        assert "grid_sample" not in caplog.text


def test_cublas_keeps_a_setting_that_repeats_itself(monkeypatch):
    monkeypatch.setenv(CUBLAS, ":16:8")
    with deterministic_algorithms(True, CUDA):
        assert os.environ[CUBLAS] == ":16:8"


def test_cublas_with_another_setting_is_an_error(monkeypatch):
    monkeypatch.setenv(CUBLAS, ":0:0")
    with (
        pytest.raises(ValueError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0.*expected :4096:8 or :16:8"),
        deterministic_algorithms(True, CUDA),
    ):
        pass


def test_cuda_that_was_in_use_before_is_told(no_cublas, monkeypatch, caplog):
    logging.getLogger("dinox").propagate = True
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with deterministic_algorithms(True, CUDA):
        assert "CUDA was in use before CUBLAS_WORKSPACE_CONFIG could be set" in caplog.text


@pytest.mark.parametrize("setting", [None, False])
def test_off_changes_nothing(setting):
    before = settings()
    with deterministic_algorithms(setting, CUDA) as enabled:
        assert enabled is False and settings() == before


def test_a_setting_that_is_neither_is_an_error_before_there_is_a_folder(tiny_cfg):
    tiny_cfg.train.deterministic = "yes"
    with pytest.raises(ValueError, match=r"train\.deterministic: expected true or false, got 'yes'"):
        train(tiny_cfg, console="off")
    assert not Path(tiny_cfg.train.output_dir).exists()
