import torch
from torch import nn

from dinox.analysis import count_parameters, count_parameters_by_part, parameters_read_in_detection
from tests.small_models import build_small, make_input

INPUTS = [make_input(64, 96, 0)]


def test_the_label_embedding_of_denoising_is_for_training_only():
    model = build_small()
    counts = count_parameters_by_part(model, INPUTS)
    assert counts["query_groups"].training_only == 80 * 32
    assert counts[""].training_only == 80 * 32


def test_every_parameter_has_a_gradient_or_is_frozen():
    counts = count_parameters_by_part(build_small(), INPUTS)
    assert counts["backbone"].frozen > 0  # the stem
    assert counts["encoder"].frozen == 0
    for part, count in counts.items():
        assert count.total == count.trainable + count.frozen, part
    assert counts[""].total == count_parameters(build_small())


def test_all_uses_of_a_parameter_are_seen():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
            self.scale, self.indexed, self.unused = (nn.Parameter(torch.ones(2)) for _ in range(3))

        def forward(self, x):
            return self.norm(self.linear(x)) * self.scale + torch.stack([self.indexed[:1]] * 2).squeeze(-1)

    model = Model()
    read = parameters_read_in_detection(model, torch.zeros(3, 2))
    assert {name for name, parameter in model.named_parameters() if parameter not in read} == {"unused"}


def test_the_mode_of_the_model_stays():
    model = build_small()
    parameters_read_in_detection(model, INPUTS)
    assert model.training
