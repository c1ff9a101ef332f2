"""With and without the compiled extension."""

import importlib
import logging

import pytest
import torch

from dinox.ops import backend, library, ms_deform_attn
from tests.ops.inputs import run_python


def test_without_the_extension_the_reference_runs_and_one_line_says_so():
    code = """
import logging, torch
logging.basicConfig(format="%(name)s|%(levelname)s|%(message)s")
from dinox.ops import backend, ms_deform_attn, ms_deform_attn_reference
from tests.ops.inputs import assert_all_close, gradients, make_inputs
from tests.ops import test_registration
assert backend("cpu") == backend("cuda") == "reference"
inputs = make_inputs()
expected = gradients(ms_deform_attn_reference, inputs, inputs.shapes)
assert_all_close(gradients(ms_deform_attn, inputs, inputs.shapes), expected, 1e-12)
assert_all_close(gradients(ms_deform_attn, inputs, inputs.sizes), expected, 1e-12)
test_registration.test_opcheck(torch.float32)
test_registration.test_autocast_keeps_values_and_raises_coordinates_to_float32()
test_registration.test_compiles_without_graph_break_with_shapes_in_a_tensor()
print("works")
"""
    result = run_python(code, DINOX_DISABLE_EXTENSION="1")
    assert "works" in result.stdout, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("dinox")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("dinox.ops.library|WARNING|ms_deform_attn on cpu runs as the PyTorch reference")
    assert "disabled by DINOX_DISABLE_EXTENSION" in lines[0]
    assert "make setup" in lines[0]


def test_an_extension_that_does_not_load_is_named_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.delenv("DINOX_DISABLE_EXTENSION", raising=False)
    monkeypatch.setattr(library, "PACKAGE_FOLDER", tmp_path)
    load = library.load_extension.__wrapped__
    assert load() == (None, f"no compiled extension (_C*.so) in {tmp_path}")
    (tmp_path / "_C.so").write_bytes(b"not a library")
    path, reason = load()
    assert path is None
    assert "_C.so does not load" in reason


def test_a_device_that_the_extension_has_no_kernels_for_runs_the_reference(caplog):
    if backend("cpu") != "extension":
        pytest.skip(f"no compiled kernel: {library.why_reference('cpu')}")
    assert backend("xpu") == "reference"
    with caplog.at_level(logging.WARNING, logger="dinox.ops.library"):
        library.log_reference("xpu")
        library.log_reference("xpu")
    assert len(caplog.records) == 1
    assert "built without kernels for xpu" in caplog.text


def test_schemas_of_the_extension_and_of_python_agree():
    for name, schema in library.SCHEMAS.items():
        assert str(getattr(torch.ops.dinox, name).default._schema) == f"dinox::{schema}"
    assert importlib.import_module("dinox.ops.ms_deform_attn").ms_deform_attn is ms_deform_attn
