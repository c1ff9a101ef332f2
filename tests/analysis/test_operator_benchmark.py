import dataclasses

import pytest
import torch

from dinox.analysis.operators import CASES, Case, benchmark_operator
from dinox.analysis.operators import benchmark as benchmark_module
from dinox.analysis.operators.cases import make_inputs
from dinox.analysis.operators.contenders import Contender, find_contenders


@pytest.fixture
def tiny_cases(monkeypatch):
    monkeypatch.setitem(CASES, "encoder", Case("encoder", "", ((6, 8), (3, 4)), None, 1))
    monkeypatch.setitem(CASES, "decoder", Case("decoder", "", ((6, 8), (3, 4)), 5, 2))


def test_every_implementation_is_measured_in_every_phase(tiny_cases):
    report = benchmark_operator(["encoder", "decoder"], dtypes=[torch.float32, torch.bfloat16], rounds=2)
    assert not report.refused
    measured = {(m.case, m.dtype, m.phase, m.contender) for m in report.measurements}
    for case in ("encoder", "decoder"):
        for phase in ("forward", "forward+backward"):
            for contender in ("dinox", "dinox fused"):
                assert {(case, dtype, phase, contender) for dtype in ("float32", "bfloat16")} <= measured
            assert (case, "float32", phase, "grid_sample") in measured
    for m in report.measurements:
        assert 0 < m.min_ms <= m.median_ms
        assert (m.speedup is None) == (m.contender == "grid_sample")
        assert (m.speedup_over_own_float32 is None) == (m.dtype == "float32")
    assert len(measured) == len(report.measurements) - 2 * 2  # grid_sample in float32 beside bfloat16, too
    assert set(report.missing) <= {"mmcv", "deformops", "transformers"}


def test_an_implementation_with_wrong_numbers_is_not_timed(tiny_cases, monkeypatch):
    contenders, _ = find_contenders()
    wrong = Contender("wrong", lambda inputs: contenders[0].attend(inputs) * 1.01, contenders[0].leaves)
    monkeypatch.setattr(benchmark_module, "find_contenders", lambda: ([*contenders, wrong], {}))
    report = benchmark_operator(["encoder"], rounds=1)
    assert "output differs by" in report.refused["wrong encoder"]
    assert "wrong" not in {m.contender for m in report.measurements}


@pytest.mark.parametrize("scaled", [0, 1, 2])
def test_an_implementation_with_wrong_gradients_is_not_timed(tiny_cases, monkeypatch, scaled):
    contenders, _ = find_contenders()

    def attend(inputs):
        leaves = list(contenders[1].leaves(inputs))
        leaf = leaves[scaled]
        leaves[scaled] = leaf.detach() + (leaf - leaf.detach()) * 1.01  # the same number, another gradient
        value, offsets, logits = leaves
        return contenders[1].attend(dataclasses.replace(inputs, value=value, offsets=offsets, logits=logits))

    wrong = Contender("wrong", attend, contenders[1].leaves)
    monkeypatch.setattr(benchmark_module, "find_contenders", lambda: ([*contenders, wrong], {}))
    report = benchmark_operator(["encoder"], rounds=1)
    assert f"gradient {scaled} differs by" in report.refused["wrong encoder"]
    assert "wrong" not in {m.contender for m in report.measurements}


def test_the_encoder_at_the_papers_size_has_22223_tokens():
    assert CASES["E4"].tokens == 22223
    assert CASES["E5"].tokens == 89023
    assert CASES["E480"].tokens == 6380


def test_inputs_of_both_forms_are_the_same_samples():
    inputs = make_inputs(Case("c", "", ((6, 8), (3, 4)), 5, 2), near=False)
    cells = torch.tensor(inputs.sizes).flip(-1)[:, None]
    locations = inputs.references[:, :, None, :, None] + inputs.offsets / cells
    torch.testing.assert_close(locations, inputs.locations)
    assert locations.min() >= -1e-6  # anywhere in the image
    assert locations.max() <= 1 + 1e-6


def test_an_unknown_case_is_named():
    with pytest.raises(ValueError, match="unknown case 'E9': expected some of E4"):
        benchmark_operator(["E9"])
