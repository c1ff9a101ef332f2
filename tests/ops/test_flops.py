from torch.utils.flop_counter import FlopCounterMode

from dinox.ops import ms_deform_attn, ms_deform_attn_fused, multiply_adds
from tests.ops import inputs as unfused
from tests.ops import test_fused


def test_torch_counts_both_forms_forward_and_backward():
    plain = unfused.make_inputs()
    raw = test_fused.make_raw()
    # 2 images, 3 queries, 2 heads, 5 levels, 4 points; 8 channels; 4 corners and a weight.
    expected = 2 * 3 * 2 * 5 * 4 * 8 * 5
    assert multiply_adds(plain.value.shape, plain.weights.shape) == expected
    for attend, inputs, sizes in (
        (ms_deform_attn, plain, plain.sizes),
        (lambda v, s, *rest: ms_deform_attn_fused(v, s, *rest), raw, test_fused.LEVELS),
    ):
        with FlopCounterMode(display=False) as counter:
            module = test_fused if inputs is raw else unfused
            module.gradients(attend, inputs, sizes)
        ours = sum(
            count for name, count in counter.get_flop_counts()["Global"].items() if "ms_deform_attn" in str(name)
        )
        assert ours == 2 * expected + 4 * expected


def test_torch_counts_only_gradients_that_are_asked_for():
    plain = unfused.make_inputs()
    forward = 2 * multiply_adds(plain.value.shape, plain.weights.shape)
    output = ms_deform_attn(plain.value.requires_grad_(), plain.sizes, plain.locations, plain.weights)
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == forward
