"""Positions in the stream of images: exact on as many ranks, and without losing or repeating an image on others."""

import itertools

import pytest
from detectron2.data.samplers import TrainingSampler

from dinox.data import build_train_loader
from dinox.data.position import VISIT, Position, PositionCounter
from dinox.data.sampling import NumberedSampler
from tests.data.coco_files import annotation


@pytest.fixture
def as_rank(monkeypatch):
    """as_rank(r, W): what is built from now on takes this process for rank r of W."""

    def be(rank, ranks):
        for module in ("dinox.data.position", "dinox.data.sampling", "dinox.data.loader"):
            monkeypatch.setattr(f"{module}.comm.get_rank", lambda: rank)
            monkeypatch.setattr(f"{module}.comm.get_world_size", lambda: ranks)
        monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: ranks)
        monkeypatch.setattr("dinox.data.skipping.SkippingLoader.report", lambda self: None)  # to the others

    return be


def test_images_that_wait_are_told_by_their_numbers():
    counter = PositionCounter(Position())
    counter.count([0, 2])  # 1 waits for another one of its kind
    assert counter.position() == Position(3, frozenset({1}))
    counter.count([3, 5])
    assert counter.position() == Position(6, frozenset({1, 4}))
    counter.count([1, 4])  # both were read before the last batch was complete
    assert counter.position() == Position(6)
    assert counter.position().images == 6


def test_positions_of_ranks_are_put_together():
    # Rank 0 has 0, 2, 4, ...; it took 0 and 4. Rank 1 took 1.
    ranks = [Position(5, frozenset({2})), Position(2)]
    assert Position.of_all(ranks) == Position(5, frozenset({2, 3}))
    assert Position.from_state(Position.of_all(ranks).state_dict()) == Position.of_all(ranks)


def test_the_rest_of_the_stream_begins_with_what_waits():
    sampler = NumberedSampler(TrainingSampler(10, seed=3))
    whole = list(itertools.islice(sampler, 30))
    sampler.start = Position(12, frozenset({4, 9}))
    rest = list(itertools.islice(sampler, 10))
    assert [visit.number for visit in rest] == [4, 9, *range(12, 20)]
    assert rest == [whole[visit.number] for visit in rest]


def records(total):
    """A third of them upright."""
    sizes = [(64, 48) if number % 3 == 1 else (48, 64) for number in range(total)]
    return [
        {"file_name": f"{number}.png", "image_id": number, "height": height, "width": width}
        | {"annotations": [annotation(bbox=[1, 1, 9, 9], bbox_mode=1, category_id=0)]}
        for number, (height, width) in enumerate(sizes)
    ]


def make_loader(total=13, *, batch=4, **options):
    return build_train_loader(
        dataset=records(total), mapper=dict, total_batch_size=batch, sampler=TrainingSampler(total, seed=7), **options
    )


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("before, after", [(2, 2), (1, 2), (2, 1), (4, 2)])
def test_no_image_is_lost_or_repeated_on_another_number_of_ranks(as_rank, grouping, before, after):
    """The images of each epoch of 13, whatever the ranks are when it begins and ends."""
    trained, states = [], []
    for rank in range(before):
        as_rank(rank, before)
        loader = make_loader(aspect_ratio_grouping=grouping)
        for batch in itertools.islice(loader, 5):
            trained += [image["image_id"] for image in batch]
        states.append(loader.state_dict())
    assert len(trained) == 5 * 4
    for rank in range(after):
        as_rank(rank, after)
        loader = make_loader(aspect_ratio_grouping=grouping)
        assert loader.load_state_dict(states) == []
        # Until every image up to number 5 * 13 was trained on; grouping may leave some of the last ones waiting.
        number, images = 0, []
        for visit in loader._sampler:
            number = visit.number
            if number >= 5 * 13:
                break
            images.append(int(visit))
        trained += images
    assert sorted(trained) == sorted([*range(13)] * 5)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("grouping", [True, False])
def test_batches_do_not_depend_on_the_number_of_workers(grouping, workers):
    def batches(num_workers):
        loader = make_loader(aspect_ratio_grouping=grouping, num_workers=num_workers)
        return [[image["image_id"] for image in batch] for batch in itertools.islice(loader, 8)]

    assert batches(workers) == batches(0)


def test_the_number_of_an_image_does_not_reach_the_model():
    assert VISIT not in next(iter(make_loader()))[0]


def test_other_data_and_unknown_samplers_are_told():
    state = make_loader(13).state_dict()
    (problem,) = make_loader(14).load_state_dict([state])
    assert "had 13 images and has 14" in problem

    class Own(TrainingSampler):
        pass

    loader = build_train_loader(dataset=records(13), mapper=dict, total_batch_size=4, sampler=Own(13))
    (problem,) = loader.load_state_dict([state])
    assert "whether the sampler Own repeats its order is up to it" in problem
