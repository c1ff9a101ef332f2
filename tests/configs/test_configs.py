"""Every config of projects/: loads, builds small, trains a step, survives empty images, detects."""

import re
import shlex
from pathlib import Path

import pytest

from dinox import model_zoo
from dinox.config import load_config

from ..small_models import assert_trains_one_step, build_small, make_input

ROOT = Path(__file__).parents[2]
CONFIGS = model_zoo.list_configs()


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


def test_there_are_configs_and_commands():
    assert "dino/dino_r50_4scale_12ep" in CONFIGS
    assert len(readme_commands()) > 10


@pytest.mark.parametrize("name", CONFIGS)
def test_config_trains_and_detects(name):
    model = build_small(name, *deep_enough(name))
    num_classes = load_config(name).dataloader.train.mapper.num_classes
    inputs = [make_input(64, 96, 2, num_classes=num_classes), make_input(50, 40, 0)]
    keys = assert_trains_one_step(model, inputs).keys()
    without_objects = [make_input(64, 96, 0), make_input(50, 40, 0)]
    assert assert_trains_one_step(model, without_objects).keys() == keys
    model.eval()
    assert all(len(x["instances"]) > 0 for x in model(inputs))


@pytest.mark.parametrize("arguments", readme_commands(), ids=" ".join)
def test_commands_of_the_readmes_build_models_that_train(arguments):
    config = arguments[arguments.index("--config-file") + 1]
    overrides = [argument for argument in arguments if "=" in argument]
    cfg = load_config(str(ROOT / config), overrides)
    assert cfg.train.output_dir
    model = build_small(str(ROOT / config), *deep_enough(config), *overrides)
    assert_trains_one_step(model, [make_input(64, 64, 2, num_classes=cfg.dataloader.train.mapper.num_classes)])
