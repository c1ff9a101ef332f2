"""Every config of projects/: loads, builds small, trains a step, survives empty images, detects.

Of configs and commands with the same parts, the first one is trained; the others are built in full size, without memory
for them.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf

from dinox import model_zoo
from dinox.config import load_config

from ..small_models import assert_trains_one_step, build_small, load_small, make_input

ROOT = Path(__file__).parents[2]
CONFIGS = model_zoo.list_configs()
TRAINED: set[str] = set()
"""Parts of the models that were trained, detected and survived empty images so far."""
TRAINED_BY_COMMAND: set[str] = set()
"""Parts of those that were trained for a step."""


def readme_commands() -> list[list[str]]:
    """The arguments of every training command in the projects' READMEs."""
    pattern = re.compile(r"(?:projects/train_net\.py|dinox train) ([^`\n]*--config-file[^`\n]*)")
    return [
        shlex.split(found)
        for readme in sorted(ROOT.glob("projects/*/README.md"))
        for found in pattern.findall(readme.read_text())
    ]


def deep_enough(config: str) -> list[str]:
    """Shallow backbones cannot be dilated."""
    return ["model.backbone.bottom_up.depth=50"] if "dc5" in config else []


def parts_of(model: DictConfig) -> str:
    """The same for models that a test of one step cannot tell apart: all references followed, they say the same but for
    strengths, which are numbers with a fraction, and the number of classes."""

    def without_strengths(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: without_strengths(each) for key, each in node.items() if key != "num_classes"}
        if isinstance(node, list):
            return [without_strengths(each) for each in node]
        return "number" if isinstance(node, float) else node

    return repr(without_strengths(OmegaConf.to_container(model, resolve=True)))


def build_on_meta(model: DictConfig) -> None:
    """In full size: sizes that do not fit together are an error."""
    with torch.device("meta"):
        instantiate(model)


def test_there_are_configs_and_commands():
    assert "dino/dino_r50_4scale_12ep" in CONFIGS
    assert len(readme_commands()) > 10


@pytest.mark.parametrize("name", CONFIGS)
def test_config_trains_and_detects(name):
    overrides = deep_enough(name)
    parts = parts_of(load_small(name, *overrides).model)
    if parts in TRAINED:
        build_on_meta(load_config(name).model)
        return
    model = build_small(name, *overrides)
    num_classes = load_config(name).dataloader.train.mapper.num_classes
    inputs = [make_input(64, 96, 2, num_classes=num_classes), make_input(50, 40, 0)]
    keys = assert_trains_one_step(model, inputs).keys()
    without_objects = [make_input(64, 96, 0), make_input(50, 40, 0)]
    assert assert_trains_one_step(model, without_objects).keys() == keys
    model.eval()
    assert all(len(x["instances"]) > 0 for x in model(inputs))
    TRAINED.add(parts)


@pytest.mark.parametrize("arguments", readme_commands(), ids=" ".join)
def test_commands_of_the_readmes_build_models_that_train(arguments):
    config = str(ROOT / arguments[arguments.index("--config-file") + 1])
    overrides = [argument for argument in arguments if "=" in argument]
    cfg = load_config(config, overrides)
    assert cfg.train.output_dir
    overrides = [*deep_enough(config), *overrides]
    parts = parts_of(load_small(config, *overrides).model)
    if parts in TRAINED | TRAINED_BY_COMMAND:
        build_on_meta(cfg.model)
        return
    model = build_small(config, *overrides)
    assert_trains_one_step(model, [make_input(64, 64, 2, num_classes=cfg.dataloader.train.mapper.num_classes)])
    TRAINED_BY_COMMAND.add(parts)


def test_models_that_differ_in_strengths_and_classes_have_the_same_parts():
    parts = parts_of(load_small("dino/dino_r50_4scale_12ep").model)
    for same in ("model.criterion.weights.bbox=2.5", "model.num_classes=7"):
        assert parts_of(load_small("dino/dino_r50_4scale_12ep", same).model) == parts
    for other in ("model.decoder.look_forward=once", "model.encoder.num_points=2", "model.query_groups.denoising=null"):
        assert parts_of(load_small("dino/dino_r50_4scale_12ep", other).model) != parts
