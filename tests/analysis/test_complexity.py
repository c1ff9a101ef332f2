import pytest
from detectron2.config import instantiate

from dinox import model_zoo
from dinox.analysis import count_parameters, measure_complexity

from ..small_models import build_small


@pytest.mark.parametrize("config", ["dino/dino_r50_4scale_12ep", "dino/dino_r50_5scale_12ep"])
def test_parameters_are_the_papers(config):
    """Table 1: 47 M for both."""
    assert count_parameters(instantiate(model_zoo.get_config(config).model)) == pytest.approx(47e6, rel=0.01)


@pytest.mark.slow
def test_gflops_are_the_papers():
    """Table 1: 279 for 4 scales at 800x1333. (5 scales, published as 860, take too long for a test.)"""
    model = instantiate(model_zoo.get_config("dino/dino_r50_4scale_12ep").model)
    assert measure_complexity(model).gflops[""] == pytest.approx(279, rel=0.05)


def test_parts_add_up_to_the_whole():
    complexity = measure_complexity(build_small(), size=(64, 96))
    for by_part in (complexity.parameters, complexity.gflops):
        parts = sum(value for part, value in by_part.items() if part)
        assert parts == pytest.approx(by_part[""], rel=1e-6)


def test_denoising_costs_nothing_at_inference():
    with_denoising = measure_complexity(build_small(), size=(64, 96))
    without = build_small("dino/dino_r50_4scale_12ep", "model.query_groups.denoising=null")
    assert measure_complexity(without, size=(64, 96)).gflops[""] == with_denoising.gflops[""]
