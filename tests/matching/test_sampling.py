"""Random choice of places to learn from."""

import torch

from dinox.matching import sample_balanced

ASSIGNED = torch.tensor([-1, 4, -2, 0, -1, -1, 2, -2, -1])  # three objects, four background, two ignored


def test_all_positives_are_chosen_where_there_is_room():
    sampled = sample_balanced(ASSIGNED, num_samples=8, positive_fraction=0.5)
    assert sampled.positive.tolist() == [1, 3, 6]
    assert sampled.background.tolist() == [0, 4, 5, 8]
    assert sampled.index.tolist() == [1, 3, 6, 0, 4, 5, 8]


def test_positives_keep_to_their_fraction_and_background_fills_up():
    sampled = sample_balanced(
        ASSIGNED, num_samples=4, positive_fraction=0.5, generator=torch.Generator().manual_seed(0)
    )
    assert len(sampled.positive) == 2 and set(sampled.positive.tolist()) < {1, 3, 6}
    assert len(sampled.background) == 2 and set(sampled.background.tolist()) < {0, 4, 5, 8}


def test_missing_positives_leave_their_room_to_background():
    sampled = sample_balanced(torch.full((50,), -1), num_samples=8, positive_fraction=0.5)
    assert len(sampled.positive) == 0 and len(set(sampled.background.tolist())) == 8


def test_the_choice_is_that_of_the_generator():
    many = torch.arange(1000)

    def draw(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return sample_balanced(many, num_samples=20, positive_fraction=0.5, generator=generator).positive.tolist()

    assert draw(0) == draw(0) != draw(1)
