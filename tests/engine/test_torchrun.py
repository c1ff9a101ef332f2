"""The real torchrun, from the command line, with two processes on the CPU."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinox.config import load_config
from dinox.engine import train
from tests.engine.conftest import TINY_CONFIG
from tests.engine.test_parallel import on_two_ranks
from tests.engine.test_resuming import assert_same, final

ROOT = Path(__file__).parents[2]
OVERRIDES = ["train.max_iter=150", "train.eval_period=0", "train.checkpointer.period=1000", "train.timeout=30"]


def torchrun(folder, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "projects/train_net.py"]
    command += ["--config-file", TINY_CONFIG, *arguments, f"train.output_dir={folder}", *OVERRIDES]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def train_here(rank, folder, resume):
    train(load_config(TINY_CONFIG, [f"train.output_dir={folder}", *OVERRIDES]), resume=resume, console="off")


@pytest.mark.timeout(90)
def test_torchrun_trains_stops_at_sigterm_and_is_resumed_exactly(tmp_path):
    """Its exit code is 1 after a signal, whatever the processes' is: 143."""
    process = torchrun(tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.json"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0].decode()
    assert process.returncode == 1, output
    (name,) = (file.name for file in (tmp_path / "run").glob("model*"))
    steps = int(re.fullmatch(r"model_(\d{7}).pth", name)[1]) + 1
    assert 2 <= steps < 150
    assert output.count(f"dinox: stopped by SIGTERM after {steps} iterations; --resume continues") == 1
    on_two_ranks(train_here, tmp_path / "run", True)
    on_two_ranks(train_here, tmp_path / "whole", False)
    assert_same(final_of(tmp_path / "run"), final_of(tmp_path / "whole"))


def final_of(folder):
    return final(load_config(TINY_CONFIG, [f"train.output_dir={folder}"]))


@pytest.mark.timeout(90)
def test_an_error_is_in_torchruns_last_words(tmp_path):
    process = torchrun(tmp_path / "run", "optimizer.lr=-1")
    output = process.communicate()[0].decode()
    assert process.returncode == 1
    last = output[output.index("Root Cause") :]
    assert "optimizer.lr: expected a number of at least 0, got -1" in last, output
