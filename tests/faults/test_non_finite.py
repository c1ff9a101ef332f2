"""NaN or infinity in a loss, a cost or a gradient: row 26 (see also tests/engine/test_non_finite.py)."""

import csv

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import instantiate
from torch.nn.parallel import DistributedDataParallel

from dinox.analysis import rerun_non_finite
from dinox.checkpoint.run_files import last_whole
from dinox.config import load_config
from dinox.engine import ClippedAdamW, Trainer
from dinox.engine.non_finite import NonFiniteSteps
from tests.modeling.test_distributed import free_port
from tests.small_models import build_small, make_input

from .own_data import write_dataset

_MODEL = """
from detectron2.config import LazyCall as L
from tests.faults.trapped_detector import TrappedDetector

model = L(TrappedDetector)(num_classes=2, poison=[{poison}], of_gradient={of_gradient})
train.max_iter, train.checkpointer.period, train.eval_period = 6, 1, 0
dataloader.train.total_batch_size = 2
"""


@pytest.fixture
def train(dinox, tmp_path, output_dir, forget_datasets):
    """Train with poisoned images -> (exit code, stdout, stderr)."""
    config = write_dataset(tmp_path)
    plain = config.read_text()

    def run(*overrides, poison=(), of_gradient=False):
        names = ", ".join(repr(name) for name in poison)
        lines = _MODEL.format(poison=names, of_gradient=of_gradient)
        config.write_text(plain + lines)
        return dinox("train", "--config-file", config, f"train.output_dir={output_dir}", *overrides)

    return run


def skipped_steps(folder):
    with open(folder / "non_finite_steps.csv", newline="") as file:
        return list(csv.reader(file))[1:]


def assert_one_line(code, err, *texts):
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("dinox: error")]
    assert len(lines) == 1, err
    for text in texts:
        assert text in lines[0]


@pytest.mark.parametrize("of_gradient", [False, True])
def test_row_26_a_batch_ends_training_with_its_cause_and_can_be_run_again(train, output_dir, tmp_path, of_gradient):
    code, _, err = train(poison=["/5.png"], of_gradient=of_gradient)
    cause = "the gradient of box_head.weight" if of_gradient else "the output of backbone.3 (Trap)"
    term = "grad_norm = nan" if of_gradient else "loss_class = nan"
    assert_one_line(code, err, term, cause, "5.png (id 105)", "(lr 0.000", str(output_dir / "non_finite_"))
    # Nothing is lost: the checkpoint of the step before is whole, and training goes on from it.
    last = last_whole(output_dir)
    weights = torch.load(last, weights_only=True)["model"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    # What was written is the batch, and it does again what it did.
    (file,) = output_dir.glob("non_finite_*_rank0.pth")
    dump = torch.load(file, weights_only=True)
    assert any("5.png (id 105)" in name for name in dump["passes"][0]["images"])
    assert f"at iteration {dump['iteration']}: " in err
    model = instantiate(load_config(str(tmp_path / "own.py")).model)
    (again,) = rerun_non_finite(model, file)
    assert again.first.startswith(cause)
    if not of_gradient:
        assert [name for name, value in again.losses.items() if value != value] == dump["terms"]
    code, _, err = train("--resume")
    assert code == 0, err


def test_row_26_steps_are_skipped_and_listed_up_to_the_bound(train, output_dir):
    code, out, err = train("train.non_finite.most_skipped=9", "train.max_iter=8", poison=["/5.png"])
    assert code == 0, err
    assert "STEP SKIPPED (1 of at most 9): non-finite loss" in out + err
    rows = skipped_steps(output_dir)
    assert rows
    assert all("5.png (id 105)" in row[3] and "Trap" in row[4] for row in rows)
    final = torch.load(output_dir / "model_final.pth", weights_only=True)
    assert final["trainer"]["non_finite"] == {"skipped": len(rows)}


def test_row_26_more_than_the_bound_is_the_error(train, output_dir):
    everything = [f"/{i}.png" for i in range(8)]
    code, _, err = train("train.non_finite.most_skipped=2", poison=everything)
    assert_one_line(code, err, "at iteration 2", "2 steps were skipped before it")
    assert [row[0] for row in skipped_steps(output_dir)] == ["0", "1"]


@pytest.mark.parametrize(
    "override, text",
    [
        ("train.non_finite.most_skipped=-1", "train.non_finite.most_skipped: expected a whole number of at least 0"),
        ("train.non_finite.most_skiped=1", "most_skiped"),
    ],
)
def test_row_26_a_wrong_setting_shows_before_anything_is_written(train, output_dir, override, text):
    assert_one_line(*train(override)[::2], text)
    assert not output_dir.exists()


def two_steps_with_nan_costs_on_one_rank(rank: int, port: int, folder: str) -> None:
    """A small DINO, whose criterion and denoising ask the other rank. Only rank 1 has costs that are NaN."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    model = build_small()
    costs = model.criterion.matcher.costs_on_host

    def spoilt(predictions, targets):
        (logits, boxes), *others = predictions
        if rank == 1 and targets.max_count == 3:
            boxes = boxes.clone()
            boxes[0, 0, 0] = float("nan")
        return costs([(logits, boxes), *others], targets)

    model.criterion.matcher.costs_on_host = spoilt
    batches = [
        [make_input(64, 64, objects, seed=10 * step + rank) | {"file_name": f"{step}_{rank}.png"}]
        for step, objects in enumerate([1, 3, 2, 3])
    ]
    trainer = Trainer(
        model=DistributedDataParallel(model),
        data_loader=batches,
        optimizer=ClippedAdamW(model.parameters(), lr=1e-3),
        device="cpu",
        non_finite=NonFiniteSteps(most_skipped=1, output_dir=folder),
    )
    updated, message = [], ""
    trainer.after_step = lambda: updated.append(trainer.updated)
    try:
        trainer.train(0, 4)
    except FloatingPointError as error:
        message = str(error)
    torch.save({"message": message, "updated": updated, "model": model.state_dict()}, f"{folder}/end{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.timeout(60)
def test_row_26_ranks_skip_together_and_stop_together(tmp_path):
    mp.start_processes(
        two_steps_with_nan_costs_on_one_rank, (free_port(), str(tmp_path)), nprocs=2, start_method="fork"
    )
    first, second = (torch.load(tmp_path / f"end{rank}.pth", weights_only=True) for rank in range(2))
    assert first["updated"] == second["updated"] == [True, False, True]
    assert first["message"] == second["message"]
    for text in ("at iteration 3", "rank 1: images: 3_1.png", "matching needs finite costs", "_rank1.pth"):
        assert text in first["message"]
    assert "3_0.png" not in first["message"]
    assert "runs them again) and the batch is in" in first["message"] and ". The weights are in" in first["message"]
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name
    assert [row[:2] for row in skipped_steps(tmp_path)] == [["1", "1"]]
    written = sorted(path.name for path in tmp_path.glob("non_finite*.pth"))
    assert written == ["non_finite_0000003_rank1.pth", "non_finite_0000003_weights.pth"]
