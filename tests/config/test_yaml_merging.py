"""Reading yaml files and overrides into a CfgNode."""

import pytest
from detectron2.config import get_cfg

import dinox
from dinox.config import ConfigError, merge_yaml
from tests.engine.yaml_run import YAML


def test_a_misspelt_key_has_a_did_you_mean(tmp_path):
    cfg = get_cfg()
    dinox.add_dinox_config(cfg)
    file = tmp_path / "own.yaml"
    file.write_text("VERSION: 2\nSOLVER:\n  BASE_LRR: 0.1\n")
    with pytest.raises(
        ConfigError, match=r"own\.yaml:3: Non-existent config key: SOLVER\.BASE_LRR\..*'SOLVER\.BASE_LR"
    ):
        merge_yaml(cfg, str(file))
    with pytest.raises(ConfigError, match=r"Did you mean 'MODEL\.DINOX\.CONFIG'"):
        merge_yaml(cfg, str(YAML / "dino_shapes.yaml"), ["MODEL.DINOX.CONFG", "x"])


def test_a_yaml_that_could_run_code_is_refused(tmp_path):
    cfg, canary, file = get_cfg(), tmp_path / "canary", tmp_path / "bad.yaml"
    file.write_text(f"VERSION: 2\nOUTPUT_DIR: !!python/object/apply:os.mkdir [{canary}]\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml:2: .*python/object/apply:os\.mkdir.*could run code"):
        merge_yaml(cfg, str(file))
    assert not canary.exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"own\.yaml: expected a mapping at the top, got nothing"),
        ("3\n", r"own\.yaml: expected a mapping at the top, got int"),
        ("- a\n", r"own\.yaml: expected a mapping at the top, got list"),
        ("VERSION: 2\nMODEL: null\n", r"own\.yaml:2: MODEL: expected keys below it, such as MODEL\.\w+, got None"),
        ("SOLVER: {CLIP_GRADIENTS: 3}\n", r"own\.yaml:1: SOLVER\.CLIP_GRADIENTS: expected keys below it"),
        ("OUTPUT_DIR: a\0b\n", r"own\.yaml: not valid yaml: it holds NUL bytes"),
        ("OUTPUT_DIR: !!bool x\n", r"own\.yaml:1: not valid yaml: expected a bool"),
        ("_BASE_: own.yaml\n", r"own\.yaml: _BASE_ leads in a circle: .*own\.yaml -> .*own\.yaml"),
        ("_BASE_: [3]\n", r"own\.yaml:1: _BASE_: expected a file, got 3"),
        ("_BASE_: no.yaml\n", r"/no\.yaml, the _BASE_ of .*own\.yaml: No such file or directory"),
    ],
)
def test_a_damaged_yaml_is_told_in_one_line(tmp_path, text, message):
    cfg, file = get_cfg(), tmp_path / "own.yaml"
    dinox.add_dinox_config(cfg)
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        merge_yaml(cfg, str(file))


def test_files_are_based_on_others(tmp_path):
    cfg = get_cfg()
    dinox.add_dinox_config(cfg)
    (tmp_path / "base.yaml").write_text("SOLVER:\n  MAX_ITER: 7\n  STEPS: (5,)\n")
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml\nVERSION: 2\nSOLVER:\n  STEPS: (6,)\n")
    merge_yaml(cfg, str(tmp_path / "own.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (7, (6,))


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SOLVER.MAX_ITER.X", "3"], r"SOLVER\.MAX_ITER\.X: SOLVER\.MAX_ITER is 1600 and has no keys below it"),
        (["SOLVER.MAX_ITER"], r"overrides SOLVER\.MAX_ITER: Override list has odd length"),
        (["MODEL", "3"], r"overrides MODEL 3: MODEL: expected a key below it, such as MODEL\.\w+"),
    ],
)
def test_damaged_overrides_are_told_in_one_line(opts, message):
    cfg = get_cfg()
    dinox.add_dinox_config(cfg)
    with pytest.raises(ConfigError, match=message):
        merge_yaml(cfg, str(YAML / "dino_shapes.yaml"), opts)
