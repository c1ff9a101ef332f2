"""Config files: finding them, loading them, and errors in them."""

import builtins
from pathlib import Path

import pytest
from detectron2.config import instantiate

from dinox.config import ConfigError, load_config, load_file

CONFIG = """
from detectron2.config import LazyCall as L
from .parts import model

model.out_channels = 3
train = dict(max_iter=10, amp=dict(enabled=False))
"""

PARTS = """
from detectron2.config import LazyCall as L
from torch.nn import Conv2d

model = L(Conv2d)(in_channels=1, out_channels=2, kernel_size=1)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "parts.py").write_text(PARTS)
    file = tmp_path / "my_config.py"
    file.write_text(CONFIG)
    return file


def test_config_is_loaded_with_overrides(config):
    cfg = load_config(config, ["model.kernel_size=3", "train.amp.enabled=True", "model.bias=False"])
    assert cfg.train.amp.enabled is True
    conv = instantiate(cfg.model)
    assert conv.weight.shape == (3, 1, 3, 3) and conv.bias is None


def test_config_is_loaded_from_inside_its_folder(config, monkeypatch):
    monkeypatch.chdir(config.parent)
    assert load_config(config.name).model.out_channels == 3


def test_loading_twice_gives_independent_configs(config):
    load_config(config, ["train.max_iter=1"])
    assert load_config(config).train.max_iter == 10


def test_override_error_names_the_file(config):
    with pytest.raises(ConfigError, match=rf"{config}.*unknown key 'train.max_itr'. Did you mean 'train.max_iter'"):
        load_config(config, ["train.max_itr=1"])


def test_missing_file_names_its_neighbours(config):
    with pytest.raises(ConfigError, match=rf"not found.*Did you mean '{config}'"):
        load_config(config.with_name("my_confg.py"))


def test_missing_zoo_name_names_the_nearest():
    with pytest.raises(ConfigError, match=r"not found.*Did you mean.*'dino/dino_r50_4scale_12ep'"):
        load_config("dino/dino_r50_4scale_12epochs")


def test_misspelt_argument_in_a_file_is_an_error(config):
    config.write_text(CONFIG + "model.kernel_sizes = 3\n")
    message = rf"{config}:7: unknown key 'model.kernel_sizes': Conv2d takes no argument.*Did you mean 'kernel_size'"
    with pytest.raises(ConfigError, match=message):
        load_config(config)


def test_syntax_error_names_file_and_line(config):
    config.write_text("train = dict(\n    a=1,\n    b=?,\n)\n")
    with pytest.raises(ConfigError, match=rf"{config}.*line 3"):
        load_config(config)


def test_missing_relative_import_is_named(config):
    config.write_text("\nfrom .prts import conv\n")
    with pytest.raises(ConfigError, match=rf"{config}:2: ImportError: .*prts"):
        load_config(config)


def test_exception_in_an_imported_config_names_its_line(config):
    config.with_name("parts.py").write_text("conv = None\nraise KeyError('oops')\n")
    with pytest.raises(ConfigError, match=r"parts.py:2: KeyError: 'oops'"):
        load_config(config)


def test_failing_config_leaves_import_as_it_was(config):
    before = builtins.__import__
    config.write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        load_config(config)
    assert builtins.__import__ is before


def test_yaml_of_plain_values_is_loaded(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("model: {_target_: torch.nn.Linear, in_features: 2, out_features: 3}\ntrain: {max_iter: 1}\n")
    cfg = load_config(file, ["model.out_features=5"])
    assert instantiate(cfg.model).weight.shape == (5, 2)


def test_yaml_that_could_run_code_is_refused(tmp_path):
    canary = tmp_path / "canary"
    file = tmp_path / "config.yaml"
    file.write_text(f"train: !!python/object/apply:os.mkdir [{canary}]\n")
    with pytest.raises(ConfigError, match=rf"{file}.*python/object/apply:os.mkdir.*could run code"):
        load_config(file)
    assert not canary.exists()


def test_yaml_target_that_does_not_exist_is_named(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("model: {_target_: torch.nn.Linaer}\n")
    with pytest.raises(
        ConfigError, match=r"'model._target_': expected the dotted name of a callable, got 'torch.nn.Linaer'"
    ):
        load_config(file)


@pytest.mark.parametrize(
    "content, message", [("a: [1\n", "not valid yaml"), ("- 1\n", "expected a mapping at the top, got list")]
)
def test_damaged_yaml_names_the_file(tmp_path, content, message):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=rf"{file}.*{message}"):
        load_file(file)


def test_other_endings_are_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("{}")
    with pytest.raises(ConfigError, match=r"expected a name that ends in .py or .yaml, got '.json'"):
        load_config(file)
