import dataclasses

import pytest
import torch

from dinox.structures import Targets


def make_whole() -> Targets:
    """Images of 2, 0, 3 and 1 objects of classes 0, 1, 2, ..., with seeds."""
    counts = (2, 0, 3, 1)
    labels = torch.arange(6).split(counts)
    boxes = (torch.arange(24.0).view(6, 4) / 24).split(counts)
    return dataclasses.replace(Targets.from_lists(labels, boxes), seeds=(10, 11, 12, 13))


def test_a_part_has_its_own_images_and_knows_the_whole_batch():
    whole = make_whole()
    part = whole.part(1, 2)
    assert part.counts == (0, 3) and part.seeds == (11, 12)
    assert part.labels.tolist() == [[0, 0, 0], [2, 3, 4]]  # as wide as the whole batch, padded with 0
    assert part.valid.tolist() == [[False] * 3, [True] * 3]
    assert part.batch is whole and part.share == 0.5
    assert whole.batch is whole and whole.share == 1


@pytest.mark.parametrize(
    "view",
    [
        lambda targets: targets.of_classes([0, 4, 5]),
        lambda targets: targets.select(make_whole().labels % 2 == 1),
        lambda targets: targets.as_one_class(),
        lambda targets: targets.of_classes([1, 2, 3]).as_one_class(),
    ],
)
def test_a_view_of_a_part_is_the_part_of_the_view(view):
    whole = make_whole()
    for start, size in ((0, 1), (1, 2), (2, 2)):
        actual, expected = view(whole.part(start, size)), view(whole).part(start, size)
        assert actual.counts == expected.counts and actual.seeds == expected.seeds
        assert actual.batch.counts == view(whole).counts
        for name in ("labels", "boxes", "valid"):
            assert torch.equal(getattr(actual, name), getattr(expected, name))
            assert torch.equal(getattr(actual.batch, name), getattr(view(whole), name))
