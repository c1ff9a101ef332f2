import torch
from torch import nn

from dinox.analysis import watch_parts
from tests.small_models import build_small, make_input


def sequence_of_parts(model, inputs):
    seen = []
    with watch_parts(model, seen.append):
        model(inputs)
    return seen


def test_parts_are_at_work_in_the_order_of_the_model():
    seen = sequence_of_parts(build_small().eval(), [make_input(64, 96, 0)])
    firsts = list(dict.fromkeys(part for part in seen if part))
    assert firsts == ["backbone", "memory_builder", "encoder", "query_selection", "query_groups", "decoder", "heads"]


def test_a_part_that_another_one_asks_gives_the_work_back():
    seen = sequence_of_parts(build_small().eval(), [make_input(64, 96, 0)])
    first = seen.index("heads")  # the box heads, asked by the decoder
    assert seen[first - 1 : first + 2] == ["decoder", "heads", "decoder"]


def test_between_parts_nobody_is_at_work():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert sequence_of_parts(model, torch.zeros(1, 2)) == ["0", None, "1", None]


def test_nothing_is_left_on_the_model():
    model = build_small().eval()
    sequence_of_parts(model, [make_input(64, 96, 0)])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
