"""A batch in parts, on ranks, or both: the losses and gradients of the batch at once.

In float64, on images of one size. What remains is the order of sums, and single numbers that are float32 in any
precision (boxes of the ground truth, embeddings of them): 1e-6 of the largest element of each gradient. Logged losses
travel in float32, whose rounding is 6e-8.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from dinox.engine import MicroBatches, Trainer
from tests.modeling.test_distributed import TIME_LIMIT, free_port
from tests.small_models import DINO, build_small, make_input, randomise_heads

CONFIGS = [
    "dn_detr/dn_detr_r50_50ep",
    DINO,
    "stable_dino/stable_dino_r50_4scale_12ep",
    "h_detr/h_deformable_detr_r50_12ep",
    "dn_detr/dn_vanilla_detr_r50_300ep",  # the sum of the weights of a softmax is the divisor
    "dn_detr/known_labels_10ep",  # each group learns other objects, some of them drawn
]
CO_DETR = "co_detr/co_deformable_detr_r50_12ep"
OBJECTS = {  # of each image; two ranks have every second one
    "all full": (3, 1, 5, 2),
    "a part is empty": (3, 5, 0, 0),
    "a rank is empty": (3, 0, 5, 0),
    "one object in all": (0, 1, 0, 0),
}
ON_RANKS = [
    *((config, "a rank is empty", 2) for config in CONFIGS[:4]),
    *((config, "all full", 1) for config in CONFIGS[:4]),
    (DINO, "one object in all", 2),
    (DINO, "a rank is empty", 1),
]
SEED, ITERATION = 11, 5


def make_batch(objects):
    return [make_input(64, 96, n, num_classes=6, seed=i) | {"image_id": 100 + i} for i, n in enumerate(objects)]


def make_model(config):
    smaller = ["model.encoder.num_layers=1", "model.decoder.num_layers=2"]
    if config == CO_DETR:
        smaller.append("model.auxiliary_heads.roi.hidden_dims=[16,16]")
    model = randomise_heads(build_small(config, *smaller)).double()
    for module in model.modules():  # dropout draws for all images of a part at once
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return model


def step(config, batch, parts):
    """({key: logged loss}, {name: gradient}) of one step of the trainer."""
    model = make_model(config)
    trainer = Trainer(
        model=create_ddp_model(model, broadcast_buffers=False, device_ids=None),
        data_loader=[batch],
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        device="cpu",
        micro_batches=MicroBatches(accumulation_steps=parts, seed=lambda: SEED),
    )
    trainer.iter, trainer.storage = ITERATION, EventStorage()
    with trainer.storage:
        trainer.run_step()
    losses = {name: value for name, (value, _) in trainer.storage.latest().items() if name.startswith("loss")}
    return losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_same_step(actual, expected):
    assert actual[0] == pytest.approx(expected[0], rel=1e-6, abs=1e-9)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(actual[1][name], gradient, rtol=0, atol=1e-6 * largest + 1e-12, msg=name)


@pytest.fixture(scope="module")
def whole():
    """(config, objects) -> the step of one process with the whole batch at once."""
    made = {}

    def run(config, objects):
        if (config, objects) not in made:
            made[config, objects] = step(config, make_batch(objects), 1)
        return made[config, objects]

    return run


@pytest.mark.parametrize(("objects", "parts"), [("all full", 4), ("a part is empty", 2)])
@pytest.mark.parametrize("config", CONFIGS)
def test_parts_of_a_batch_are_the_batch(config, objects, parts, whole):
    assert_same_step(step(config, make_batch(OBJECTS[objects]), parts), whole(config, OBJECTS[objects]))


@pytest.mark.parametrize(("objects", "parts"), [("all full", 3), ("one object in all", 4)])
def test_parts_may_be_of_several_sizes_and_empty(objects, parts, whole):
    assert_same_step(step(DINO, make_batch(OBJECTS[objects]), parts), whole(DINO, OBJECTS[objects]))


def test_a_gradient_that_is_not_the_batchs_is_noticed(whole):
    """The comparison's own test: another noise seed for one image."""
    batch = make_batch((3, 1, 5, 2))
    batch[2]["image_id"] += 1
    with pytest.raises(AssertionError):
        assert_same_step(step(DINO, batch, 2), whole(DINO, (3, 1, 5, 2)))


def steps_on_a_rank(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    comm._LOCAL_PROCESS_GROUP = dist.new_group([0, 1])
    found = {}
    for config, name, parts in ON_RANKS:
        found[config, name, parts] = step(config, make_batch(OBJECTS[name])[rank::2], parts)
    torch.save(found, Path(folder) / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(steps_on_a_rank, (free_port(), str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@pytest.mark.timeout(TIME_LIMIT)
@pytest.mark.parametrize(("config", "objects", "parts"), ON_RANKS)
def test_two_ranks_are_one_with_the_whole_batch(config, objects, parts, on_two_ranks, whole):
    first, second = (found[config, objects, parts] for found in on_two_ranks)
    assert_same_step(first, whole(config, OBJECTS[objects]))
    for name, gradient in first[1].items():
        assert torch.equal(gradient, second[1][name]), name


def test_the_decoder_of_co_detr_is_that_of_the_batch_and_its_heads_are_averages(whole):
    """What predictions decide is normalised part by part: one image in each is the mean over the images alone."""
    objects = (3, 1)
    together, (parts, _) = whole(CO_DETR, objects)[0], step(CO_DETR, make_batch(objects), 2)
    alone = [step(CO_DETR, [x], 1)[0] for x in make_batch(objects)]
    for name, loss in parts.items():
        if name.startswith(("loss_roi", "loss_atss")):
            assert loss == pytest.approx(sum(each[name] for each in alone) / 2, rel=1e-5), name
        elif "positive" not in name:  # of the decoder's matching group, and of the encoder
            assert loss == pytest.approx(together[name], rel=1e-6), name
    assert {"loss_class", "loss_class_enc", "loss_roi_class", "loss_atss_giou"} <= parts.keys()
