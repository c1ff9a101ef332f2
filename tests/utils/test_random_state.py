import random

import numpy as np
import pytest
import torch

from dinox.utils.random_state import unchanged_random_state


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_what_is_drawn_inside_has_not_been_drawn_afterwards():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with pytest.raises(KeyError), unchanged_random_state():
        inside = draw()
        raise KeyError
    assert draw() == inside
