"""Configs with mistakes in them, and yaml that wants to run something."""

import os
import sys

import pytest
from detectron2.config import LazyConfig

from dinox.config import load_config
from tests.cli.conftest import TINY_CONFIG

USER_ERROR = 2

OWN = """from detectron2.config import LazyCall as L
from dinox import model_zoo

globals().update(model_zoo.get_config("dino/dino_demo"))
dataloader.train.total_batch_size = 2
{line}
"""


def assert_one_line(err, *parts):
    assert err.startswith("dinox: error: ") and err.count("\n") == 1, err
    for part in map(str, parts):
        assert part in err, (part, err)


@pytest.fixture
def own(tmp_path):
    """Writes a config whose line 6 is the given one -> its file."""

    def write(line):
        file = tmp_path / "own.py"
        file.write_text(OWN.format(line=line))
        return file

    return write


@pytest.fixture
def train(dinox, output_dir):
    """Train into a folder that must not come into being -> the error message."""

    def run(file, *arguments):
        code, out, err = dinox("train", "--config-file", file, *arguments, f"train.output_dir={output_dir}")
        assert code == USER_ERROR, (out, err)
        assert not output_dir.exists()
        return err

    return run


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "line, parts",
    [
        ("model.num_clases = 3", ["unknown key 'model.num_clases'", "Did you mean 'num_classes'"]),
        ("model.encoder.update(num_layer=2)", ["'model.encoder.num_layer'", "Did you mean 'num_layers'"]),
        ("model.num_queries = 'many'", ["'model.num_queries': expected an integer, got 'many' (text)"]),
        ("optimizer.lr = 'fast'", ["'optimizer.lr': expected a number, got 'fast' (text)"]),
        ("model.backbone.bottom_up.norm = 'FrozenBM'", ["bottom_up.norm'", "Did you mean 'FrozenBN'"]),
        ("model.neck = L('torch.nn.Linaer')()", ["unknown key 'model.neck'"]),
        ("head = L('torch.nn.Linaer')()", ["'head._target_'", "Did you mean 'torch.nn.Linear'"]),
        ("model.num_queries = nmu", ["NameError: name 'nmu' is not defined"]),
        ("import nowhere_to_be_found", ["ModuleNotFoundError: No module named 'nowhere_to_be_found'"]),
        ("model.num_queries = = 3", ["syntax error"]),
    ],
)
def test_row_28_a_mistake_in_a_config_is_told_with_its_line(train, own, line, parts):
    file = own(line)
    place = f"{file}" if "syntax" in parts[0] else f"{file}:6: "
    assert_one_line(train(file), place, *parts)


@pytest.mark.parametrize(
    "line, parts",
    [
        ("train.accumulation_step = 2", ["train.accumulation_step: ", "Did you mean 'accumulation_steps'"]),
        ("train.early_stoping = dict(enabled=True)", ["train.early_stoping: ", "Did you mean 'early_stopping'"]),
        ("train.amp.enabled = 'no'", ["train.amp.enabled: expected true or false, got 'no'"]),
        ("train.amp = {'enabled': True, 'dtpe': 'fp16'}", ["train.amp.dtpe: ", "Did you mean 'dtype'"]),
        ("train.amp.dtype = 'bf17'", ["train.amp.dtype: expected one of fp32, bf16, fp16, got 'bf17'"]),
        ("train.amp = True", ["train.amp: expected a section with enabled, dtype, max_skips_in_a_row, got True"]),
        ("train.allow_partial = 'no'", ["train.allow_partial: expected true or false, got 'no'"]),
        ("train.deterministic = 1", ["train.deterministic: expected true or false, got 1"]),
        ("train.ddp = {'find_unused': True}", ["train.ddp.find_unused: ", "Did you mean 'find_unused_parameters'"]),
        ("train.ddp.static_graph = 'no'", ["train.ddp.static_graph: expected true or false, got 'no'"]),
        ("train.ddp.sharding = True", ["train.ddp.sharding: there is no such key"]),
        ("train.checkpointer.keep = 5", ["train.checkpointer.keep: there is no such key"]),
        ("train.checkpointer.max_to_keep = 0", ["max_to_keep: expected a whole number of at least 1, got 0"]),
        ("train.matching_metrics.enabled = 'no'", ["train.matching_metrics.enabled: expected true or false"]),
        ("train.log_period = None", ["train.log_period: expected a whole number of at least 1, got None"]),
        ("train.output_dir = 3", ["train.output_dir: expected a folder, got 3"]),
        ("train.init_checkpoint = 3", ["train.init_checkpoint: expected a file, a URL or '', got 3"]),
        ("train.device = 0", ["train.device: expected 'cpu' or 'cuda', got 0"]),
        ("train.seed = 'abc'", ["train.seed: expected a whole number", "got 'abc'"]),
        ("train.seed = 99999999999999999999", ["train.seed: expected a whole number below 4294967295, or -1"]),
        ("train.ema.decya = 0.9", ["train.ema.decya: ", "Did you mean 'decay'"]),
        ("train.early_stopping.patience = 'long'", ["patience: expected a whole number, got 'long'"]),
        ("optimizer.lr = -1", ["optimizer.lr: expected a number of at least 0, got -1"]),
    ],
)
def test_row_28_a_mistake_in_the_loops_settings_is_told_with_its_line(dinox, own, tmp_path, line, parts):
    file = own(f"train.output_dir = {str(tmp_path / 'run')!r}; {line}")
    code, _, err = dinox("train", "--config-file", file)
    assert code == USER_ERROR and os.listdir(tmp_path) == ["own.py"]
    assert_one_line(err, f"{file}:6: ", *parts)


def test_row_28_an_evaluation_knows_the_same_mistakes(dinox, own):
    file = own("train.use_ema_weight = False")
    code, _, err = dinox("eval", "--config-file", file)
    assert code == USER_ERROR
    assert_one_line(err, f"{file}:6: train.use_ema_weight: there is no such key. Did you mean 'use_ema_weights'")


@pytest.mark.parametrize(
    "override, parts",
    [
        ("model.num_clases=3", ["Did you mean 'model.num_classes'"]),
        ("model.num_queries=many", ["'model.num_queries': expected an integer, got 'many'"]),
        ("model.backbone.bottom_up.norm=FrozenBM", ["expected one of", "Did you mean 'FrozenBN'"]),
        (
            "dataloader.train.dataset.names=dinox_shapes_trian",
            ["is not registered", "Did you mean 'dinox_shapes_train'"],
        ),
        ("train.amp.dtype=bf17", ["override 'train.amp.dtype=bf17'", "expected one of fp32, bf16, fp16"]),
        ("optimizer.lr=-1", ["override 'optimizer.lr=-1'", "expected a number of at least 0, got -1"]),
        ("schedule.epochs=0", ["expected schedule.epochs to be a number above 0, got 0"]),
    ],
)
def test_row_28_a_mistake_in_an_override_is_told_with_the_override(train, override, parts):
    assert_one_line(train("dino/dino_demo", override), override.partition("=")[2], *parts)


def test_row_28_the_line_of_a_setting_in_a_yaml_config_is_told(train, tmp_path):
    file = tmp_path / "own.yaml"
    LazyConfig.save(load_config("dino/dino_demo"), str(file))
    file.write_text(file.read_text().replace("  log_period:", "  log_perido:").replace(", ", ",\n    "))
    number = next(i for i, line in enumerate(file.read_text().splitlines(), start=1) if "log_perido" in line)
    assert_one_line(train(file), f"{file}:{number}: train.log_perido: ", "Did you mean 'log_period'")


@pytest.mark.parametrize(
    "old, new, parts",
    [
        ("num_queries:", "num_querys:", ["unknown key 'model.num_querys'", "Did you mean 'num_queries'"]),
        ("num_queries: 60", "num_queries: sixty", ["'model.num_queries': expected an integer, got 'sixty' (text)"]),
        ("dinox.modeling.PredictionHeads", "dinox.modeling.PredictionHead", ["Did you mean 'dinox.modeling.Predicti"]),
        ("num_queries: 60", "num_queries: [60", ["not valid yaml"]),
    ],
)
def test_row_28_a_mistake_in_a_yaml_config_is_told_with_its_line(train, tmp_path, old, new, parts):
    file = tmp_path / "own.yaml"
    LazyConfig.save(load_config("dino/dino_demo"), str(file))
    lines = file.read_text().replace(", ", ",\n    ").splitlines()  # one argument in a line
    number = next(i for i, line in enumerate(lines) if old in line)
    lines[number] = lines[number].replace(old, new)
    file.write_text("\n".join(lines))
    place = file if "not valid" in parts[0] else f"{file}:{number + 1}: "
    assert_one_line(train(file), place, *parts)


# ------------------------------------------------------------------------------------------------ yaml that runs things


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that comes into being if a config gets anything of its own to run."""
    file = tmp_path / "canary"
    package = tmp_path / "packages" / "evil_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"import os\nos.mkdir({str(file)!r})\ndef part(**arguments): pass\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    yield file
    assert not file.exists() and "evil_package" not in sys.modules


@pytest.fixture
def bad_yaml(tmp_path):
    """A config that is good but for one line, its last -> (file, number of the line)."""

    def write(line):
        file = tmp_path / "bad.yaml"
        LazyConfig.save(load_config("dino/dino_demo"), str(file))
        text = file.read_text() + line + "\n"
        file.write_text(text)
        return file, text.count("\n")

    return write


@pytest.mark.parametrize(
    "line, parts",
    [
        ("extra: !!python/object/apply:os.mkdir [{canary}]", ["python/object/apply:os.mkdir", "could run code"]),
        ("extra: {{_target_: os.mkdir, path: {canary}}}", ["'extra._target_': 'os.mkdir' is refused"]),
        ("extra: {{_target_: evil_package.part}}", ["'evil_package.part' is refused", "--allow-target evil_package"]),
        ("extra: {{_target_: dinox.x.os.mkdir, path: {canary}}}", ["'dinox.x.os.mkdir' is refused"]),
        (
            "extra: {{_target_: torch.nn.functional.torch.hub.load}}",
            ["'torch.nn.functional.torch.hub.load' is refused"],
        ),
        ("extra: {{_target_: detectron2.config.LazyConfig.load}}", ["'detectron2.config.LazyConfig.load' is refused"]),
        ("extra: [{{a: {{_target_: torch.load, f: x}}}}]", ["'extra.0.a._target_': 'torch.load'", "is refused"]),
        ("extra: {{_target_: {{_target_: functools.partial}}}}", ["'extra._target_': expected the dotted name"]),
        ("extra: {{_target_: dinox.modeling.DetectionTransformer, cfg: {{}}}}", ["'extra.cfg' is refused"]),
        (
            "extra: {{_target_: timm.models.repghost.repghost_model_convert, model: {{_target_: torch.nn.Identity}}, "
            "save_path: {canary}}}",
            ["'timm.models.repghost.repghost_model_convert' is refused"],
        ),
        ('extra: {{_target_: timm.create_model, model_name: "local-dir:/x\\n"}}', ["'extra.model_name'", "is refused"]),
        (
            "extra: {{_target_: torch.nn.Linear, 3: 1}}",
            ["'extra.3': expected the name of an argument of Linear"],
        ),
        ("extra: !!bool x", ["expected a bool, got 'x'"]),
        ("extra: ${{oc.env:HOME}}", ["'${oc.env:HOME}' is refused", "Nothing was evaluated"]),
    ],
)
def test_row_29_a_malicious_yaml_is_refused_and_runs_nothing(train, bad_yaml, canary, line, parts):
    file, number = bad_yaml(line.format(canary=canary))
    assert_one_line(train(file), f"{file}:{number}: ", *parts)


def test_row_29_what_is_allowed_by_the_user_may_be_called(dinox, bad_yaml, tmp_path, monkeypatch, output_dir):
    package = tmp_path / "own_package.py"
    package.write_text("def part(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    file, _ = bad_yaml("extra: {_target_: own_package.part}")
    arguments = ["train", "--config-file", file, f"train.output_dir={output_dir}", "train.max_iter=0"]
    assert_one_line(dinox(*arguments)[2], "--allow-target own_package")
    code, _, err = dinox(*arguments, "--allow-target", "own_package")
    assert code == USER_ERROR
    assert_one_line(err, "train.max_iter: expected a whole number of at least 1")  # that far it came


def test_row_29_an_override_typed_by_the_user_is_free(train):
    err = train(TINY_CONFIG, "model._target_=os.mkdir")
    assert_one_line(err, "mkdir takes no argument 'num_classes'")
    assert "refused" not in err


def test_row_29_the_tiny_config_of_the_tests_is_no_part(train, tmp_path):
    """What a run of one's own saves is read by the same rules as anybody's."""
    file = tmp_path / "config.yaml"
    LazyConfig.save(load_config(TINY_CONFIG), str(file))
    assert_one_line(train(file), "'tests.engine.tiny.TinyDetector' is refused", "--allow-target tests")
    assert os.listdir(tmp_path) == ["config.yaml"]
