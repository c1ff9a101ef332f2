"""The bridges to both detectron2 versions, against stand-ins with their signatures."""

import pytest
from detectron2.utils.events import EventStorage

from dinox.utils import compat


def train_loader_v06(dataset, *, mapper, sampler=None, total_batch_size, num_workers=0):
    pass


def train_loader_main(
    dataset, *, mapper, sampler=None, total_batch_size, num_workers=0, prefetch_factor=None, seed=None
):
    pass


def anything(**kwargs):
    pass


@pytest.mark.parametrize(
    "function, kept",
    [
        (train_loader_v06, {"num_workers"}),
        (train_loader_main, {"num_workers", "prefetch_factor"}),
        (anything, {"num_workers", "prefetch_factor"}),
    ],
)
def test_unknown_keywords_are_dropped(function, kept):
    assert set(compat.supported_kwargs(function, num_workers=2, prefetch_factor=2)) == kept


def test_keyword_named_function_is_no_problem():
    assert compat.supported_kwargs(anything, function=1) == {"function": 1}


def test_event_storage_exists_only_in_training():
    assert compat.event_storage() is None
    with EventStorage() as storage:
        assert compat.event_storage() is storage
