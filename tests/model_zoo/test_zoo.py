"""Names of configs, and models by name."""

import inspect
import shutil
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from omegaconf import DictConfig

from dinox import model_zoo
from dinox.checkpoint import CheckpointError
from dinox.config import ConfigError, files
from dinox.model_zoo import get_checkpoint_url

NAME = "dino/dino_r50_4scale_12ep"

PARTS = """
from detectron2.config import LazyCall as L
from torch.nn import Linear

model = L(Linear)(in_features=1, out_features=2)
"""

CONFIG = """
from ....configs.common.parts import model

train = dict(init_checkpoint="")
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch) -> Path:
    """A zoo of its own, of one config."""
    for file, content in (("configs/common/parts.py", PARTS), ("projects/line/configs/line_small.py", CONFIG)):
        path = tmp_path / file
        path.parent.mkdir(parents=True)
        path.write_text(content)
    monkeypatch.setattr(files, "_PACKAGED_COPY", tmp_path)
    return tmp_path


def test_all_configs_are_listed():
    names = model_zoo.list_configs()
    assert NAME in names and names == sorted(names)


@pytest.mark.parametrize("name", [NAME, NAME + ".py", "projects/dino/configs/dino_r50_4scale_12ep.py"])
def test_config_file_of_a_name(name):
    file = Path(model_zoo.get_config_file(name))
    assert file.is_file() and file.parts[-4:] == ("projects", "dino", "configs", "dino_r50_4scale_12ep.py")


def test_common_configs_have_names_too():
    cfg = model_zoo.get_config("common/data/coco_detr.py")
    assert cfg.dataloader.train.dataset.names == "coco_2017_train"


def test_config_of_a_name_is_not_instantiated():
    cfg = model_zoo.get_config(NAME)
    assert isinstance(cfg, DictConfig) and "_target_" in cfg.model


@pytest.mark.parametrize("name", ["dino/dino_r50_4scale_12eps", "dinno/dino_r50_4scale_12ep.py"])
def test_unknown_name_is_refused_with_the_nearest(name):
    with pytest.raises(ConfigError, match=rf"No config '{name}' in the model zoo. Did you mean .*'{NAME}'"):
        model_zoo.get_config(name)


@pytest.mark.parametrize("name", ["dino/../../setup", "/etc/passwd", "dino"])
def test_names_lead_nowhere_else(name):
    with pytest.raises(ConfigError, match="No config"):
        model_zoo.get_config_file(name)


def test_packaged_copy_comes_before_the_checkout(root):
    assert model_zoo.list_configs() == ["line/line_small"]
    assert Path(model_zoo.get_config_file("line/line_small")).is_relative_to(root)


def test_incomplete_installation_is_named(root, monkeypatch):
    shutil.rmtree(root / "projects")
    monkeypatch.setattr(files, "_CHECKOUT", root)
    with pytest.raises(
        ConfigError, match=rf"expected the folders 'configs' and 'projects' in {root}.*install it again"
    ):
        model_zoo.list_configs()


def test_model_of_a_name(root):
    model = model_zoo.get("line/line_small", device="cpu")
    assert model.weight.shape == (2, 1) and model.training


def test_trained_weights_are_loaded_and_have_to_be_of_this_model(root, tmp_path, monkeypatch):
    fitting, other = str(tmp_path / "fitting.pth"), str(tmp_path / "other.pth")
    torch.save({"weight": torch.full((2, 1), 7.0), "bias": torch.zeros(2)}, fitting)
    torch.save({"weight": torch.full((2, 1), 7.0)}, other)
    monkeypatch.setattr(model_zoo.zoo, "_CHECKPOINT_URLS", {"line/line_small": fitting})
    assert model_zoo.get("line/line_small", trained=True, device="cpu").weight.tolist() == [[7], [7]]
    monkeypatch.setattr(model_zoo.zoo, "_CHECKPOINT_URLS", {"line/line_small": other})
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        model_zoo.get("line/line_small", trained=True, device="cpu")


@pytest.mark.parametrize("ask", [model_zoo.get, model_zoo.get_config, lambda name, trained: get_checkpoint_url(name)])
def test_trained_weights_that_are_not_published_are_an_error(root, ask):
    with pytest.raises(ConfigError, match=r"No trained weights are published for 'line/line_small'.*trained=False"):
        ask("line/line_small", trained=True)


@pytest.mark.parametrize("name", ["line/line_small", "line/line_small.py", "projects/line/configs/line_small.py"])
def test_trained_weights_are_those_of_a_config_whatever_it_is_called(root, monkeypatch, name):
    monkeypatch.setattr(model_zoo.zoo, "_CHECKPOINT_URLS", {"line/line_small": "https://example.com/model.pth"})
    assert get_checkpoint_url(name) == "https://example.com/model.pth"


def test_a_part_of_configs_is_no_model():
    with pytest.raises(ConfigError, match=r"'common/data/coco_detr\.py' has no model, only dataloader"):
        model_zoo.get("common/data/coco_detr.py")


@pytest.mark.parametrize("name", ["get", "get_config", "get_config_file", "get_checkpoint_url"])
def test_functions_are_called_like_detectron2s(name):
    ours, theirs = (inspect.signature(getattr(zoo, name)).parameters.values() for zoo in (model_zoo, detectron2_zoo))
    assert [(p.kind, p.default) for p in ours] == [(p.kind, p.default) for p in theirs]


def test_trained_weights_are_put_into_the_config(root, monkeypatch):
    monkeypatch.setattr(model_zoo.zoo, "_CHECKPOINT_URLS", {"line/line_small": "https://example.com/model.pth"})
    cfg = model_zoo.get_config("line/line_small.py", trained=True)
    assert cfg.train.init_checkpoint == "https://example.com/model.pth"
