"""Outputs of one implementation against those of another."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dinox.checkpoint import CheckpointError, certificate
from dinox.checkpoint.certificate import compare, compute_dump, make_images, read_dump, write_dump

from ..small_models import build_small, randomise_heads

SIZE = (96, 128)


def make_model(*overrides):
    """With attention that looks at positions, which it does not do when training begins."""
    model = randomise_heads(build_small("dino/dino_r50_4scale_12ep", *overrides)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def dumped(model):
    return compute_dump(model, make_images(2, SIZE))


@pytest.mark.parametrize("name", ["dump.npz", "dump.safetensors"])
def test_a_model_agrees_with_its_own_dump(model, dumped, tmp_path, name):
    write_dump(tmp_path / name, dumped)
    found = compare(model, str(tmp_path / name))
    assert found.holds and found.logits == found.boxes == 0
    assert (found.num_images, found.num_layers, found.reordered) == (2, 3, 0)


def test_a_dump_is_what_its_description_says(model, dumped, tmp_path):
    write_dump(tmp_path / "dump.npz", dumped)
    with np.load(tmp_path / "dump.npz") as file:
        arrays = {name: (file[name].dtype, file[name].shape) for name in file.files}
        noise = np.random.default_rng(1).integers(0, 256, (3, *SIZE), dtype=np.uint8)
        np.testing.assert_array_equal(file["image_1"], noise)
    for i in range(2):
        assert arrays.pop(f"image_{i}") == (np.uint8, (3, *SIZE))
        assert arrays.pop(f"logits_{i}") == (np.float32, (3, 20, 80))
        assert arrays.pop(f"boxes_{i}") == (np.float32, (3, 20, 4))
        assert arrays.pop(f"anchors_{i}") == (np.float32, (20, 4))
    assert not arrays


def test_outputs_are_those_of_evaluation_and_the_mode_stays(model, dumped):
    model.train()
    again = compute_dump(model, make_images(1, SIZE))[0]
    assert model.training
    model.eval()
    assert torch.equal(again.logits, dumped[0].logits)


def test_another_setting_shows(dumped, tmp_path):
    write_dump(tmp_path / "dump.npz", dumped)
    other = make_model("model.memory_builder.position_embedding.temperature=10000")
    found = compare(other, str(tmp_path / "dump.npz"))
    assert not found.holds
    with pytest.raises(CheckpointError, match=r"dump\.npz: the outputs differ by up to .* than 0\.001.*temperature"):
        found.require()


def test_nan_is_a_difference(model, dumped, tmp_path):
    dumped[0].boxes[0, 0, 0] = torch.nan
    write_dump(tmp_path / "dump.npz", dumped)
    assert not compare(model, str(tmp_path / "dump.npz")).holds


def test_the_last_layer_alone_will_do(model, dumped, tmp_path):
    last = [dataclasses.replace(dump, logits=dump.logits[-1:], boxes=dump.boxes[-1:]) for dump in dumped]
    write_dump(tmp_path / "dump.npz", last)
    found = compare(model, str(tmp_path / "dump.npz"))
    assert found.holds and found.num_layers == 1


def swapping_ranks(model):
    """The same model, but for two proposals that come in the other order."""

    def swap(module, inputs, proposals):
        order = torch.arange(proposals.boxes.shape[1])
        order[[3, 4]] = order[[4, 3]]
        names = ("features", "anchors", "logits", "boxes")
        return dataclasses.replace(proposals, **{name: getattr(proposals, name)[:, order] for name in names})

    return model.query_selection.register_forward_hook(swap)


def test_swapped_ranks_are_put_in_order_by_the_anchors(model, tmp_path):
    hook = swapping_ranks(model)
    try:
        dumped = compute_dump(model, make_images(1, SIZE))
    finally:
        hook.remove()
    write_dump(tmp_path / "with.npz", dumped)
    write_dump(tmp_path / "without.npz", [dataclasses.replace(dump, anchors=None) for dump in dumped])
    found = compare(model, str(tmp_path / "with.npz"))
    assert found.holds and found.reordered == 2
    assert not compare(model, str(tmp_path / "without.npz")).holds


def test_rows_of_classes_are_taken_from_a_dump_that_has_more(model, dumped, tmp_path):
    rows = [2 * i + 1 for i in range(80)]
    logits = torch.zeros(3, 20, 161)
    logits[..., rows] = dumped[0].logits
    write_dump(tmp_path / "dump.npz", [dataclasses.replace(dumped[0], logits=logits)])
    assert compare(model, str(tmp_path / "dump.npz"), rows=rows).holds


def test_another_number_of_queries_is_an_error(dumped, tmp_path):
    write_dump(tmp_path / "dump.npz", dumped)
    with pytest.raises(CheckpointError, match=r"logits_0 has the shape \(3, 20, 80\), the model's have \(3, 30, 80\)"):
        compare(make_model("model.num_queries=30"), str(tmp_path / "dump.npz"))


def test_static_queries_have_no_anchors_to_order(tmp_path):
    model = randomise_heads(build_small("dino/ablation_static_queries")).eval()
    write_dump(tmp_path / "dump.npz", compute_dump(model, make_images(1, SIZE)))
    assert read_dump(tmp_path / "dump.npz")[0].anchors is None
    assert compare(model, tmp_path / "dump.npz").holds


WHOLE = {
    "image_0": np.zeros((3, 8, 8), np.uint8),
    "logits_0": np.zeros((1, 20, 80), np.float32),
    "boxes_0": np.zeros((1, 20, 4), np.float32),
}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "expected image_0, logits_0, boxes_0, ...; got nothing"),
        ({"image_0": WHOLE["image_0"]}, "logits_0 is missing"),
        (WHOLE | {"image_0": WHOLE["boxes_0"]}, r"image_0: expected uint8 \(3, height, width\), got torch.float"),
        (WHOLE | {"boxes_0": WHOLE["boxes_0"][0]}, r"boxes_0: expected \(layers, queries, 4\), got \(20, 4\)"),
        (WHOLE | {"logits_0": np.array([None])}, "not a readable dump"),
    ],
)
def test_what_is_no_dump_is_refused_by_name(tmp_path, arrays, message):
    np.savez(tmp_path / "dump.npz", **arrays)
    with pytest.raises(CheckpointError, match=rf"dump\.npz: {message}"):
        read_dump(tmp_path / "dump.npz")


def test_a_dump_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"dump\.npz: no such file"):
        read_dump(tmp_path / "dump.npz")


class DetrexLike(nn.Module):
    """What the docstring's snippet relies on: ``transformer`` gives the initial anchors second, and in evaluation
    ``inference`` gets logits and boxes of the last layer and returns what forward goes through."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.transformer = nn.Module()
        self.transformer.forward = lambda anchors: (None, anchors)

    def inference(self, logits, boxes, sizes):
        raise NotImplementedError

    def forward(self, batched_inputs):
        raw = self.model.raw_predictions(batched_inputs)
        self.transformer(raw.encoder_boxes)
        results = self.inference(raw.logits[-1], raw.boxes[-1], [x["image"].shape[-2:] for x in batched_inputs])
        return [{"instances": result} for result in results]


def test_the_snippet_in_the_description_writes_a_dump_that_holds(model, tmp_path, monkeypatch):
    lines = certificate.__doc__.splitlines()
    start = next(i for i, line in enumerate(lines) if "import numpy" in line)
    code = "\n".join(line.removeprefix("    ") for line in lines[start:] if line.startswith("    ") or not line)
    code = re.sub(r"(?s)\n\ncfg = .*?\.load\(.*?\)\n(?=dump)", "\n", code).replace("480", "96").replace("640", "128")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(line for line in code.splitlines() if "detectron2" not in line), {"model": DetrexLike(model)})
    found = compare(model, Path("dump.npz"))
    assert found.holds and found.num_images == 2 and found.num_layers == 1
