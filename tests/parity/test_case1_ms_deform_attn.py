"""Recorded case 1: outputs and gradients of multi-scale deformable attention, in float64 and float32."""

import pytest
import torch

from dinox.ops import ms_deform_attn, ms_deform_attn_reference
from tests.parity.golden import load_npz

CASE = "case1_msda"
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
LOCATION_GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["a_3lvl", "b_hd30_5lvl", "c_4lvl"])
@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference], ids=["operator", "reference"])
def test_recorded_outputs_and_gradients(function, name, dtype):
    recorded = {key: torch.from_numpy(array) for key, array in load_npz(CASE, name).items()}
    inputs = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = (recorded[key].to(dtype).requires_grad_() for key in inputs)
    output = function(value, recorded["spatial_shapes"], locations, weights)
    gradients = torch.autograd.grad(output, (value, locations, weights), recorded["grad_output"].to(dtype))

    suffix = "f64" if dtype == torch.float64 else "f32"
    tolerance, location_tolerance = TOLERANCE[dtype], LOCATION_GRADIENT_TOLERANCE[dtype]
    torch.testing.assert_close(output, recorded[f"output_{suffix}"], rtol=0, atol=tolerance)
    for key, gradient in zip(inputs, gradients, strict=True):
        atol = location_tolerance if key == "sampling_locations" else tolerance
        torch.testing.assert_close(gradient, recorded[f"grad_{key}_{suffix}"], rtol=0, atol=atol)
