"""Parts of a batch, and the seeds of its images. That they are the batch: test_batch_invariance.py."""

import pytest
import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from dinox.engine import MicroBatches, Trainer
from dinox.engine import micro_batches as module
from dinox.structures.whole_batch import NOISE_SEED, WHOLE_BATCH
from tests.engine.tiny import TinyDetector
from tests.small_models import make_input


def split(batch, parts, *, seed=1, iteration=0):
    return list(MicroBatches(accumulation_steps=parts, seed=lambda: seed).split(batch, iteration))


def images(*ids):
    return [{"image_id": i} for i in ids]


def noise_seeds(batch, **options):
    return [x[NOISE_SEED] for part in split(batch, 1, **options) for x in part.inputs]


def run_step(model, batch, parts):
    trainer = Trainer(
        model=model,
        data_loader=[batch],
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        device="cpu",
        micro_batches=MicroBatches(accumulation_steps=parts),
    )
    trainer.iter, trainer.storage = 0, EventStorage()
    with trainer.storage:
        trainer.run_step()
    return trainer


@pytest.mark.parametrize(
    ("size", "parts", "sizes"), [(4, 1, [4]), (4, 2, [2, 2]), (5, 2, [3, 2]), (7, 3, [3, 2, 2]), (3, 3, [1, 1, 1])]
)
def test_parts_are_as_equal_as_possible_and_in_order(size, parts, sizes):
    found = split(images(*range(size)), parts)
    assert [len(part.inputs) for part in found] == sizes
    assert [x["image_id"] for part in found for x in part.inputs] == list(range(size))
    assert sum(part.share for part in found) == pytest.approx(1)
    assert [part.is_last for part in found] == [False] * (parts - 1) + [True]


def test_parts_know_the_whole_batch_and_their_place_in_it():
    batch = images(*range(5))
    start = 0
    for part in split(batch, 2):
        whole = part.inputs[0][WHOLE_BATCH]
        assert [x["image_id"] for x in whole.inputs] == list(range(5)) and whole.start == start
        start += len(part.inputs)
    assert not any(NOISE_SEED in x or WHOLE_BATCH in x for x in batch)  # the loader's dicts stay as they are


def test_parts_know_the_fullest_image_of_the_whole_batch(monkeypatch):
    told = []
    monkeypatch.setattr(module, "max_across_ranks", lambda own: told.append(own) or 9)
    parts = split([make_input(64, 64, objects) for objects in (1, 3, 0)], 3)
    assert told == [3] and [part.inputs[0][WHOLE_BATCH].max_objects for part in parts] == [9, 9, 9]


def test_a_batch_in_one_part_needs_no_further_keys():
    assert WHOLE_BATCH not in split(images(0, 1), 1)[0].inputs[0]
    (part,) = MicroBatches().split(batch := images(0, 1), 0)
    assert part.inputs is batch


def test_more_parts_than_images_are_an_error():
    with pytest.raises(ValueError, match=r"train.accumulation_steps=3: expected at most the 2 images"):
        split(images(0, 1), 3)


def test_noise_seeds_depend_on_seed_iteration_and_image_alone():
    seeds = noise_seeds(images(7, 8, 9))
    assert noise_seeds(images(9, 7)) == [seeds[2], seeds[0]]
    assert noise_seeds(images(7, 7)) == [seeds[0]] * 2
    others = [noise_seeds(images(7), seed=2), noise_seeds(images(7), iteration=1), noise_seeds(images("8"))]
    assert len({seeds[0], *(other[0] for other in others)}) == 4


def test_images_without_an_id_are_told_by_their_place_among_all_ranks(monkeypatch):
    (alone,) = split([{}, {}, {}, {}], 1)
    monkeypatch.setattr("dinox.engine.micro_batches.comm.get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("dinox.engine.micro_batches.comm.get_rank", lambda rank=rank: rank)
        (part,) = split([{}, {}], 1)
        assert [x[NOISE_SEED] for x in part.inputs] == [x[NOISE_SEED] for x in alone.inputs[rank::2]]


def test_ranks_exchange_gradients_once_a_step(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'ranks'}", rank=0, world_size=1)
    try:
        model, exchanged = DistributedDataParallel(TinyDetector(num_classes=6)), []

        def exchange(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            exchanged.append(bucket.index())
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        model.register_comm_hook(None, exchange)
        batch = [make_input(32, 32, 1, num_classes=6, seed=i) for i in range(3)]
        run_step(model, batch, parts=3)
    finally:
        dist.destroy_process_group()
    assert exchanged == [0]


def test_the_losses_of_other_models_are_means_over_images():
    """TinyDetector knows nothing of parts. Three images, two and one of them at a time; float32, 1e-5 for sums."""
    batch = [make_input(32, 32, n, num_classes=6, seed=n) for n in (1, 2, 3)]
    found = []
    for parts in (1, 2):
        torch.manual_seed(0)
        model = TinyDetector(num_classes=6)
        trainer = run_step(model, batch, parts)
        found.append((trainer.storage.latest()["loss_class"][0], [p.grad for p in model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-7)
