"""detectron2's own training script runs the configs unchanged."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = "tools/lazyconfig_train_net.py"
CONFIG = ROOT / "projects" / "dino" / "configs" / "dino_demo.py"

# Runs the script as `python SCRIPT ...` would, but with datasets of 8 images.
RUN = """
import os, runpy, sys
from dinox.data import register_shapes
for seed, name in enumerate(("dinox_tiny_train", "dinox_tiny_val")):
    register_shapes(name, seed=100 + seed, num_images=8, size=96, root=os.environ["DINOX_TEST_DATASETS"])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

SMALL = [
    "dataloader.train.dataset.names=dinox_tiny_train",
    "dataloader.test.dataset.names=dinox_tiny_val",
    "dataloader.train.mapper.augmentations.short_edges=[64]",
    "dataloader.test.mapper.augmentations.short_edge=64",
    "dataloader.train.total_batch_size=2",
    "model.embed_dim=32",
    "model.num_queries=10",
    "train.device=cpu",
    "train.checkpointer.period=2",
]


@pytest.fixture
def stock_script(tmp_path):
    """The file, from the source archive of detectron2 that `make setup` keeps where it installed it."""
    for archive in sorted((ROOT / ".setup" / "detectron2").glob("*.tar.gz")):
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                if member.name.endswith(SCRIPT):
                    file = tmp_path / "lazyconfig_train_net.py"
                    file.write_bytes(tar.extractfile(member).read())
                    return file
    pytest.skip(f"no {SCRIPT}: `make setup` installed no detectron2 here")


@pytest.mark.slow
def test_detectron2s_own_training_script_trains_resumes_and_evaluates(stock_script, tmp_path):
    output = tmp_path / "run"

    def run(*arguments):
        command = [sys.executable, "-c", RUN, stock_script, "--config-file", CONFIG, *arguments, *SMALL]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*map(str, command), f"train.output_dir={output}"], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run("train.max_iter=2")
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 1
    run("--resume", "train.max_iter=4", "train.log_period=1")
    saved = torch.load(output / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 3
    assert {int(state["step"]) for state in saved["optimizer"]["state"].values()} == {4}
    last = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    assert last["iteration"] == 4 or "total_loss" in last
    assert "bbox/AP" in (output / "metrics.json").read_text()
    assert "Evaluation results for bbox" in run("--eval-only", f"train.init_checkpoint={output / 'model_final.pth'}")
