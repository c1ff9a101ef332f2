"""What is found out about a loss, a cost or a gradient that is not finite, and steps that are skipped."""

import csv
import math
import os
import re

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils import comm
from torch import nn

from dinox.analysis import rerun_non_finite
from dinox.engine import ClippedAdamW, Trainer
from dinox.engine.batch_dump import plain, restored
from dinox.engine.micro_batches import MicroBatches
from dinox.engine.non_finite import BadStep, NonFiniteSteps, RankReport, check_non_finite, explanation
from dinox.utils.distributed import average_across_ranks
from tests.modeling.test_distributed import free_port
from tests.small_models import build_small, make_input


class Root(nn.Module):
    """Its gradient at 0 is infinite, and NaN after a multiplication by 0."""

    def forward(self, x):
        return x.sqrt()


class Trap(nn.Module):
    """Gives NaN for images that are full of 7, and else what it is given."""

    def forward(self, x):
        return torch.where((x == 7).all(), x * float("nan"), x)


class Chain(nn.Module):
    """Linear layers with parts between them, to be replaced by parts that make NaN."""

    def __init__(self, *, before=None, between=None, after=None):
        super().__init__()
        torch.manual_seed(0)
        self.before = before or nn.Identity()
        self.first, self.between = nn.Linear(4, 4), between or nn.Identity()
        self.norm = nn.BatchNorm1d(4)
        self.last, self.after = nn.Linear(4, 1), after or nn.Identity()

    def forward(self, batch):
        x = self.norm(self.between(self.first(self.before(torch.stack([item["image"] for item in batch])))))
        x = self.last(nn.functional.dropout(x, 0.5)) + torch.rand(())
        return {"loss_class": self.after(x).square().mean(), "loss_bbox": self.first.weight.abs().mean()}


def batches(bad=()):
    for i in range(100):
        value = 7.0 if i in bad else 0.1 * i
        yield [
            {"image": torch.full((4,), value) + k * (value != 7), "file_name": f"{i}_{k}.jpg", "image_id": 10 * i + k}
            for k in range(2)
        ]


def make_trainer(model, *, bad=(), data=None, most_skipped=0, folder=None, **options):
    optimizer = ClippedAdamW(model.parameters(), lr=0.01)
    steps = NonFiniteSteps(most_skipped=most_skipped, output_dir=folder)
    data = batches(bad) if data is None else data
    return Trainer(model=model, data_loader=data, optimizer=optimizer, device="cpu", non_finite=steps, **options)


def error_of(trainer, steps=4):
    with pytest.raises(FloatingPointError) as error:
        trainer.train(0, steps)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------- what is found


def test_the_module_that_made_it_is_named_with_iteration_images_term_rate_and_norm():
    text = error_of(make_trainer(Chain(before=Trap()), bad=[2]))
    assert text.startswith("non-finite loss at iteration 2: loss_class = nan (lr 0.01, gradient norm nan; images: ")
    assert "images: 2_0.jpg (id 20), 2_1.jpg (id 21))" in text
    assert "Where it began: the output of before (Trap): 8 NaN of 8 values" in text
    assert "loss_bbox" not in text
    assert "weights were not updated and saved checkpoints are intact" in text


def test_the_innermost_of_modules_in_each_other_is_named():
    assert "the output of between.1.0 (Trap)" in error_of(
        make_trainer(Chain(between=nn.Sequential(Seven(), nn.Sequential(Trap()))))
    )


class Seven(nn.Module):
    def forward(self, x):
        return x * 0 + 7


def test_code_that_is_no_module_is_told_by_the_module_that_comes_next():
    class Divided(Chain):
        def forward(self, batch):
            return {"loss_class": self.last(torch.ones(1, 4) / 0).sum()}

    assert "Where it began: the input of last (Linear) (0): 4 infinite of 4 values" in error_of(make_trainer(Divided()))


def test_a_weight_is_named_before_what_comes_of_it():
    model = Chain()
    model.last.weight.data[0, 2] = float("inf")
    assert "Where it began: the weight last.weight: 1 infinite of 4 values" in error_of(make_trainer(model))


def test_an_input_is_named_before_what_comes_of_it():
    batch = [{"image": torch.tensor([1.0, float("nan"), 2.0, 3.0]), "file_name": "a.jpg"}] * 2
    assert "Where it began: the input a.jpg (image): 1 NaN of 4 values" in error_of(make_trainer(Chain(), data=[batch]))


def test_a_loss_alone_is_told_by_the_model():
    class Logarithm(Chain):
        def forward(self, batch):
            return {"loss_class": -(super().forward(batch)["loss_class"] * 0).log()}

    text = error_of(make_trainer(Logarithm()))
    assert "loss_class = inf" in text
    assert "Where it began: the output of the model (Logarithm) (loss_class): 1 infinite of 1 values" in text


@pytest.mark.parametrize("optimizer", [ClippedAdamW, torch.optim.SGD])
def test_of_gradients_the_first_in_backward_is_named(optimizer):
    class Rooted(Chain):
        def forward(self, batch):
            x = self.first(torch.stack([item["image"] for item in batch]))
            return {"loss_class": self.last(torch.zeros(2, 4) + (x * 0).sqrt()).sum()}

    trainer = make_trainer(Rooted())
    trainer.optimizer = optimizer(trainer.model.parameters(), lr=0.01)
    text = error_of(trainer)
    assert text.startswith("non-finite gradient at iteration 0: grad_norm = nan (lr 0.01; images: 0_0.jpg")
    # last.weight's is finite; of first's two, autograd is free to give either before the other
    assert "Where it began: the gradient of first." in text


def test_what_does_not_happen_again_is_said():
    class Once(Chain):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            return {"loss_class": super().forward(batch)["loss_class"] * (float("nan") if self.calls == 1 else 1)}

    assert "not found, run again the same batch gave finite numbers only" in error_of(make_trainer(Once()))


def test_an_error_of_the_second_run_does_not_hide_the_first():
    class Fragile(Chain):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("out of memory")
            return {"loss_class": super().forward(batch)["loss_class"] * float("nan")}

    text = error_of(make_trainer(Fragile()))
    assert "loss_class = nan" in text
    assert "not to be found (RuntimeError: out of memory)" in text


def test_modules_inside_of_what_was_compiled_are_found():
    model = Chain(between=nn.Sequential(Seven(), Trap()))
    model.between.compile(backend="eager")
    assert "the output of between.1 (Trap)" in error_of(make_trainer(model))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_it_runs_again_as_it_did(precision):
    class Large(Chain):
        def forward(self, batch):
            x = self.last(self.first(torch.full((2, 4), 1e36 if precision == "bf16" else 6e4)) * 1e3)
            return {"loss_class": x.float().square().mean()}

    text = error_of(make_trainer(Large(), precision=precision))
    assert "loss_class = " in text
    assert ("loss scale 65536" in text) == (precision == "fp16")
    assert "Where it began: the " in text


def test_costs_alone_end_training_too_and_are_named():
    """A box that is NaN of a query that nothing is matched to is in no loss."""
    model = build_small()
    trainer = make_trainer(model, data=[[make_input(64, 64, 2), make_input(64, 64, 1, seed=1)]])
    assign = model.criterion.matcher.costs_on_host

    def spoilt(predictions, targets):
        (logits, boxes), *others = predictions
        boxes = boxes.clone()
        boxes[1, 1, 3] = float("nan")
        return assign([(logits, boxes), *others], targets)

    model.criterion.matcher.costs_on_host = spoilt
    text = error_of(trainer)
    assert re.match(r"non-finite loss at iteration 0: (loss_\w+ = nan, ){5}loss_\w+ = nan and 15 more \(", text), text
    assert "matching needs finite costs" in text


@pytest.mark.parametrize("bad", [0, 1])
def test_costs_of_any_part_of_a_step_are_named(bad):
    """Spoilt are those of the part that starts with the image ``2 * bad``."""
    model = build_small()
    batch = [make_input(64, 64, 1, seed=i) for i in range(4)]
    trainer = make_trainer(model, data=[batch], micro_batches=MicroBatches(accumulation_steps=2))
    assign = model.criterion.matcher.costs_on_host

    def spoilt(predictions, targets):
        (logits, boxes), *others = predictions
        return assign([(logits, boxes * (float("nan") if targets.start == 2 * bad else 1)), *others], targets)

    model.criterion.matcher.costs_on_host = spoilt
    assert "matching needs finite costs" in error_of(trainer)


class FailsOnRankOne(Chain):
    """Its losses are NaN; and when the second rank runs again, it has no memory."""

    calls = 0

    def forward(self, batch):
        self.calls += 1
        if self.calls > 1 and dist.get_rank() == 1:
            raise torch.OutOfMemoryError("out of memory")
        losses = super().forward(batch)
        return {name: average_across_ranks(loss) * float("nan") for name, loss in losses.items()}


def run_again_on_a_rank(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    comm._LOCAL_PROCESS_GROUP = dist.group.WORLD
    trainer = make_trainer(FailsOnRankOne(), most_skipped=1)
    trainer._compute_gradients = lambda batch: trainer._forward(batch)
    try:
        trainer.train(0, 2)
    except Exception as error:
        (folder / str(rank)).write_text(f"{type(error).__name__}: {error}")
        os._exit(0)  # as the processes of a run that failed, none of which waits for another


@pytest.mark.timeout(60)
def test_a_rank_whose_second_run_fails_ends_and_leaves_no_other_waiting(tmp_path):
    mp.start_processes(run_again_on_a_rank, (free_port(), tmp_path), nprocs=2, start_method="fork")
    assert (tmp_path / "1").read_text() == "OutOfMemoryError: out of memory"
    assert re.search(r"RuntimeError: .*(closed|reset|gloo)", (tmp_path / "0").read_text())


# --------------------------------------------------------------------------------------------------------- the file


def test_what_was_written_runs_again_with_the_same_end(tmp_path):
    """Dropout and a random number are drawn, and batch norm had other statistics: losses are those of the step."""

    class Late(Chain):
        def forward(self, batch):
            losses = super().forward(batch)
            return losses | {"loss_giou": losses["loss_class"] / (batch[0]["image_id"] != 20)}

    trainer = make_trainer(Late(), folder=tmp_path)
    text = error_of(trainer)
    file = tmp_path / "non_finite_0000002_rank0.pth"
    assert str(file) in text
    assert str(tmp_path / "non_finite_0000002_weights.pth") in text
    dump = torch.load(file, weights_only=True)
    assert dump["passes"][0]["images"] == ["2_0.jpg (id 20)", "2_1.jpg (id 21)"]
    assert (dump["iteration"], dump["lr"], dump["terms"], dump["precision"]) == (2, 0.01, ["loss_giou"], "fp32")
    torch.manual_seed(99)
    (again,) = rerun_non_finite(Late().requires_grad_(True), file)
    assert again.losses["loss_class"] == dump["values"]["loss_class"]
    assert again.losses["loss_giou"] == float("inf")
    assert again.first == "the output of the model (Late) (loss_giou): 1 infinite of 1 values"


def test_running_again_leaves_random_numbers_and_mode_alone(tmp_path):
    error_of(make_trainer(Chain(before=Trap()), bad=[1], folder=tmp_path))
    model = Chain(before=Trap()).eval()
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    rerun_non_finite(model, tmp_path / "non_finite_0000001_rank0.pth")
    assert torch.rand(()) == expected
    assert not model.training


def test_what_ranks_say_of_costs_comes_once_where_it_is_the_same():
    step = BadStep(3, [{"loss_class": math.nan}] * 2, ["loss_class"], lr=0.1, loss_scale=1, precision="fp32")

    def told(*costs):
        reports = [
            RankReport(True, {"loss_class": math.nan}, f"images: {rank}.png", f"module {rank}", [], text)
            for rank, text in enumerate(costs)
        ]
        return explanation(step, reports).partition("Where it began: ")[2]

    assert told(None, None) == "rank 0: module 0; rank 1: module 1"
    assert told("costs of a", "costs of a") == "rank 0: module 0; rank 1: module 1 (costs of a)"
    assert told(None, "costs of a") == "rank 0: module 0; rank 1: module 1 (rank 1: costs of a)"
    assert told("of a", "of b") == "rank 0: module 0; rank 1: module 1 (rank 0: of a; rank 1: of b)"


def test_a_disk_that_is_full_does_not_hide_the_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dinox.engine.non_finite.save", full)
    text = error_of(make_trainer(Chain(before=Trap()), bad=[0], folder=tmp_path))
    assert "loss_class = nan" in text
    assert "Not written: [Errno 28] No space left on device" in text
    assert list(tmp_path.iterdir()) == []


def test_batches_are_plain_in_the_file_and_the_same_afterwards(tmp_path):
    instances = Instances((4, 6), gt_boxes=Boxes(torch.rand(2, 4)), gt_classes=torch.tensor([1, 0]))
    instances.gt_masks = BitMasks(torch.rand(2, 4, 6) > 0.5)
    polygons = Instances((4, 6), gt_masks=PolygonMasks([[torch.tensor([0.0, 0, 1, 0, 1, 1]).numpy()]]))
    batch = [
        {"image": torch.rand(9, 4, 6)[:3], "instances": instances, "image_id": 7, "size": (4, 6), "object": print},
        {"instances": polygons, "known_boxes": Boxes(torch.rand(1, 4)), "flag": True},
    ]
    torch.save(plain(batch), tmp_path / "batch.pth")
    assert (tmp_path / "batch.pth").stat().st_size < 4000  # not the storage behind a view
    first, second = restored(torch.load(tmp_path / "batch.pth", weights_only=True))
    assert torch.equal(first["image"], batch[0]["image"])
    assert first["instances"].image_size == (4, 6)
    assert torch.equal(first["instances"].gt_boxes.tensor, instances.gt_boxes.tensor)
    assert torch.equal(first["instances"].gt_masks.tensor, instances.gt_masks.tensor)
    assert torch.equal(first["instances"].gt_classes, instances.gt_classes)
    assert (first["image_id"], first["size"]) == (7, [4, 6])
    assert second["instances"].gt_masks.polygons[0][0].tolist() == [0, 0, 1, 0, 1, 1]
    assert torch.equal(second["known_boxes"].tensor, batch[1]["known_boxes"].tensor)
    assert second["flag"] is True


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_of_a_step_in_parts_the_part_is_named_and_runs_again_as_a_part(tmp_path, precision):
    """A small DINO, whose normalisers and denoising know the whole batch; 3 of its 4 images in two parts are good."""
    batch = [make_input(64, 64, objects, seed=i) | {"image_id": i} for i, objects in enumerate([2, 5, 1, 0])]
    batch[2]["image"] = torch.full((3, 64, 64), 7, dtype=torch.uint8)
    model = spoilt_dino()
    parts = MicroBatches(accumulation_steps=2, seed=lambda: 3)
    trainer = make_trainer(model, data=[batch], folder=tmp_path, micro_batches=parts, precision=precision)
    text = error_of(trainer)
    assert "images: 2.png (id 2), 3.png (id 3))" in text
    assert "Where it began: the output of backbone.spoiler (Spoiler)" in text
    file = tmp_path / "non_finite_0000000_rank0.pth"
    assert file.stat().st_size < 4 * 64 * 64 * 10 + 60_000  # each image once
    first, second = rerun_non_finite(spoilt_dino(), file)
    assert first.first is None
    assert second.first.startswith("the output of backbone.spoiler (Spoiler)")
    dump = torch.load(file, weights_only=True)
    assert {name for name, value in second.losses.items() if value != value} == set(dump["terms"])


class Spoiler(nn.Module):
    """Gives NaN for images of one colour."""

    def forward(self, image):
        return torch.where(image.flatten(2).std(2).amin() < 1e-3, image * float("nan"), image)


def spoilt_dino():
    model = build_small()
    model.backbone.spoiler = Spoiler()
    forward = model.backbone.forward
    model.backbone.forward = lambda image: forward(model.backbone.spoiler(image))
    return model


# ------------------------------------------------------------------------------------------------------- skipped steps


def rows_of(folder):
    with open(folder / "non_finite_steps.csv", newline="") as file:
        return list(csv.reader(file))


def state_of(trainer):
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in trainer.optimizer.state.values()]
    return weights, moments


def test_a_skipped_step_changes_nothing_and_is_listed(tmp_path, caplog):
    trainer = make_trainer(Chain(before=Trap()), bad=[1], most_skipped=1, folder=tmp_path)
    states, updated = [], []
    trainer.before_step = lambda: None
    trainer.after_step = lambda: (states.append(state_of(trainer)), updated.append(trainer.updated))
    with caplog.at_level("WARNING", "dinox"):
        trainer.train(0, 3)
    assert updated == [True, False, True]
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)  # batch norm's statistics among them
    assert not torch.equal(states[2][0]["first.weight"], states[1][0]["first.weight"])
    (line,) = [record.getMessage() for record in caplog.records if "SKIPPED" in record.getMessage()]
    assert line.startswith("STEP SKIPPED (1 of at most 1): non-finite loss at iteration 1: loss_class = nan")
    assert line.endswith("The weights stay as they were")
    rows = rows_of(tmp_path)
    assert rows == [
        ["iteration", "rank", "terms", "images", "cause"],
        [
            "1",
            "0",
            "loss_class=nan",
            "images: 1_0.jpg (id 10), 1_1.jpg (id 11)",
            "the output of before (Trap): 8 NaN of 8 values",
        ],
    ]
    assert not list(tmp_path.glob("non_finite*.pth"))


def test_one_more_than_may_be_skipped_is_the_error(tmp_path):
    text = error_of(make_trainer(Chain(before=Trap()), bad=[0, 1, 2], most_skipped=2, folder=tmp_path))
    assert "at iteration 2" in text
    assert "2 steps were skipped before it" in text


def test_in_fp16_a_skipped_step_scales_less_as_the_scaler_would():
    trainer = make_trainer(Chain(before=Trap()), bad=[0], most_skipped=1, precision="fp16")
    trainer.train(0, 1)
    assert trainer.grad_scaler.get_scale() == 2.0**15


def test_the_steps_after_a_skipped_one_draw_what_they_would_have():
    """The second run of the batch draws nothing: dropout in the next step is as if there had been none."""
    ends = []
    for most_skipped in (5, 5):
        torch.manual_seed(3)
        trainer = make_trainer(Chain(before=Trap()), bad=[1] if not ends else [], most_skipped=most_skipped)
        torch.manual_seed(3)
        trainer.train(0, 2)
        ends.append(torch.rand(()))
    assert ends[0] == ends[1]


def test_the_count_goes_through_checkpoints(tmp_path):
    trainer = make_trainer(Chain(before=Trap()), bad=[0, 2], most_skipped=2, folder=tmp_path)
    states = []
    trainer.after_step = lambda: states.append(trainer.state_dict())  # where checkpoints are written
    trainer.train(0, 2)
    state = states[-1]
    assert state["non_finite"] == {"skipped": 1}
    trainer.train(2, 3)  # which the resumed run does again
    resumed = make_trainer(Chain(before=Trap()), bad=[0, 1], most_skipped=2, folder=tmp_path)
    resumed.load_state_dict(state)
    with pytest.raises(FloatingPointError, match=r"at iteration 3: .* 2 steps were skipped before it"):
        resumed.train(2, 4)
    rows = rows_of(tmp_path)
    assert [row[0] for row in rows] == ["iteration", "0", "2"]


@pytest.mark.parametrize("options", ["skip", 3, True, [1]])
def test_settings_that_are_none_are_an_error(options):
    with pytest.raises(ValueError, match=r"train\.non_finite: expected most_skipped, such as .*, got "):
        check_non_finite(options)
    check_non_finite(None)


@pytest.mark.parametrize("value", [-1, 1.5, True, "2", None])
def test_a_bound_that_is_none_is_an_error(value):
    with pytest.raises(ValueError, match=r"train\.non_finite\.most_skipped: expected a whole number of at least 0"):
        NonFiniteSteps(most_skipped=value)
