"""The deformable-attention module against recorded outputs, with 2-d and 4-d references and padding."""

import dataclasses

import numpy as np
import pytest
import torch

from dinox.layers import DeformableAttention

from ..small_models import make_memory
from .golden import fill, load_json, load_npz

ATOL = 2e-5  # float32, as the recording suggests


@pytest.mark.parametrize("name", ["module_ref2", "module_ref4"])
def test_module_output(name):
    arrays, facts = load_npz("case1_msda", name), load_json("case1_msda", "meta")[name]
    module = DeformableAttention(
        embed_dim=facts["embed_dim"],
        num_heads=facts["heads"],
        num_levels=facts["levels"],
        num_points=facts["points"],
    )
    module.load_state_dict({key: fill(key, entry["shape"]) for key, entry in facts["state_dict"].items()})
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    shapes = [tuple(hw) for hw in tensors["spatial_shapes"].tolist()]
    memory = make_memory(tensors["value"], shapes)
    # The recorded mask is any mask, not that of an image smaller than its batch.
    padding = tensors["key_padding_mask"]
    memory = dataclasses.replace(memory, padding_mask=padding, token_counts=tuple((~padding).sum(1).tolist()))
    attended = module(tensors["query"] + tensors["query_pos"], tensors["reference_points"], memory)
    # The recording adds the residual; ours is the caller's.
    np.testing.assert_allclose((tensors["query"] + attended).detach(), arrays["output"], rtol=0, atol=ATOL)
