import re

import pytest
import torch
from omegaconf import OmegaConf
from torch._dynamo.utils import counters

from dinox.engine.activation_checkpointing import checkpoint_activations
from dinox.engine.compilation import CompileOptions, compile_parts
from dinox.engine.model_settings import apply_model_settings, check_model_settings
from tests.small_models import DINO, RCNN, build_small, make_input

# The graphs of one decoder layer serve for all.
ONE_LAYER = ("model.encoder.num_layers=1", "model.decoder.num_layers=2")


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def step(model, *sizes):
    """Losses and gradients by name. sizes: (height, width, objects) of every image."""
    torch.manual_seed(3)
    model.zero_grad()
    losses = model([make_input(*size, seed=i) for i, size in enumerate(sizes)])
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def assert_same_step(model, compiled, *sizes):
    """These backends run torch's own kernels, in another order at most, so that sums are rounded otherwise."""
    for ours, theirs in zip(step(model, *sizes), step(compiled, *sizes), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_batches_of_all_sizes_and_numbers_of_objects_share_graphs():
    """Two graphs each for encoder and decoder, with padding and without; the number of denoising queries follows that
    of the objects."""
    model, compiled = build_small(DINO, *ONE_LAYER), build_small(DINO, *ONE_LAYER)
    compile_parts(compiled, CompileOptions(backend="eager"))
    assert list(compiled.state_dict()) == list(model.state_dict())
    padded = [((64, 96, 3), (50, 40, 2)), ((96, 64, 9), (64, 64, 2)), ((70, 90, 30), (90, 61, 0))]
    unpadded = [((64, 64, 1), (64, 64, 0)), ((96, 64, 7), (96, 64, 7))]
    for sizes in (padded[0], unpadded[0]):
        assert_same_step(model, compiled, *sizes)
    first = graphs()
    assert 2 <= first <= 4
    for sizes in (*padded[1:], *unpadded[1:]):
        assert_same_step(model, compiled, *sizes)
    assert graphs() == first
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    "config",
    [
        "detr/detr_r50_500ep",
        "dn_detr/dn_detr_r50_50ep",
    ],
)
def test_families_compute_the_same(config):
    still = ("model.encoder.dropout=0.0", "model.decoder.dropout=0.0")
    model, compiled = build_small(config, *ONE_LAYER, *still), build_small(config, *ONE_LAYER, *still)
    compile_parts(compiled, CompileOptions(backend="eager"))
    assert_same_step(model, compiled, (64, 96, 3), (50, 40, 2))
    assert graphs() >= 2 and not counters["graph_break"]


def test_detection_goes_through_compiled_layers():
    model, compiled = build_small(DINO, *ONE_LAYER), build_small(DINO, *ONE_LAYER)
    compile_parts(compiled, CompileOptions(backend="eager"))
    inputs = [make_input(64, 96, 0)]
    with torch.no_grad():
        expected, found = model.eval().raw_predictions(inputs), compiled.eval().raw_predictions(inputs)
    torch.testing.assert_close(found.logits, expected.logits)
    assert graphs() == 2


def test_together_with_checkpointed_activations():
    model, compiled = build_small(DINO, *ONE_LAYER), build_small(DINO, *ONE_LAYER)
    checkpoint_activations(compiled, ["encoder"])
    compile_parts(compiled, CompileOptions(parts=["encoder"], backend="aot_eager"))
    assert_same_step(model, compiled, (64, 96, 3), (50, 40, 2))
    assert graphs() == 1 and not counters["graph_break"]


def test_only_the_named_part_is_compiled():
    model = build_small()
    apply_model_settings(
        model, OmegaConf.create({"compile": {"enabled": True, "parts": ["encoder"], "backend": "eager"}})
    )
    compiled = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert compiled == ["encoder.layers.0", "encoder.layers.1"]


@pytest.mark.parametrize("settings", [{}, {"compile": None}, {"compile": {"enabled": False, "parts": ["decoder"]}}])
def test_off_by_default(settings):
    model = build_small()
    check_model_settings(OmegaConf.create(settings))
    apply_model_settings(model, OmegaConf.create(settings))
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_a_part_without_segments_is_compiled_whole():
    model = build_small()
    model.encoder = torch.nn.Sequential(torch.nn.Linear(2, 2))
    compile_parts(model, CompileOptions(parts=["encoder"], backend="eager"))
    assert model.encoder._compiled_call_impl is not None


def test_a_model_without_the_part_is_an_error():
    with pytest.raises(ValueError, match=r"train\.compile\.parts: this model has no part 'encoder'"):
        compile_parts(build_small(RCNN), CompileOptions(backend="eager"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"compile": {"parts": ["encodr"]}},
            "got 'encodr'. Did you mean 'encoder'",
        ),
        ({"compile": {"parts": "encoder"}}, "train.compile.parts: expected a list of some of encoder, decoder, got"),
        ({"compile": {"parts": ["encoder", "encoder"]}}, "train.compile.parts: expected every part once"),
        ({"compile": {"backend": "inductr"}}, "got 'inductr'. Did you mean 'inductor'?"),
        ({"compile": {"dynamic": "yes"}}, "train.compile.dynamic: expected true, false or null, got 'yes'"),
        ({"compile": {"enabled": "yes"}}, "train.compile.enabled: expected true or false, got 'yes'"),
        ({"compile": {"dynamics": True}}, "got 'dynamics'. Did you mean 'dynamic'?"),
        ({"compile": True}, "train.compile: expected enabled, parts, backend and dynamic, got True"),
        ({"activation_checkpointing": ["neck"]}, "train.activation_checkpointing: expected some of backbone, encoder"),
        ({"activation_checkpointing": "encoder"}, "train.activation_checkpointing: expected a list of some of"),
        ({"activation_checkpointing": True}, "train.activation_checkpointing: expected a list of some of backbone"),
    ],
)
def test_settings_that_are_none_are_errors(settings, message):
    if isinstance(settings.get("compile"), dict):
        settings["compile"] = {"enabled": True, **settings["compile"]}
    with pytest.raises(ValueError, match=re.escape(message)):
        check_model_settings(OmegaConf.create(settings))
