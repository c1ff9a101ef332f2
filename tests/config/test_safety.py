"""What a yaml config may call, and what it may not. Nothing is run: the canary is never written."""

import sys
from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate

from dinox import model_zoo
from dinox.config import ConfigError, load_config, parse_config
from dinox.config.yaml_text import MAX_NODES


def config(target: str, **arguments: str) -> str:
    lines = ["model:", f"  _target_: {target}", *(f"  {name}: {value}" for name, value in arguments.items())]
    return "\n".join(lines) + "\n"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


REFUSED = [
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "functools.partial",
    "hydra.utils.get_method",
    "detectron2.utils.registry.locate",
    "detectron2.config.instantiate",
    "detectron2.config.LazyConfig.load",
    "detectron2.data.build.load_proposals_into_dataset",
    "detectron2.modeling.mmdet_wrapper.MMDetDetector",
    "detectron2.layers.wrappers.torch.load",
    "dinox.x.os.system",
    "dinox.config.load_config",
    "dinox.modeling.meta_arch.from_yaml.arguments_from_yaml",
    "dinox.model_zoo.get",
    "dinox.engine.train",
    "dinox.cli.main",
    "dinox.config.overrides.OmegaConf.load",
    "torch.load",
    "torch.hub.load",
    "torch.nn.functional.torch.hub.load",
    "torch.optim.lr_scheduler.types.FunctionType",
    "torch.nn.modules.module.Module.register_module",
    "torch.nn",
    "torchvision.models.feature_extraction.create_feature_extractor",
    "timm.models.load_checkpoint",
    "timm.models.resnet.torch.load",
    # functions of modules whose classes are allowed
    "timm.models.repghost.repghost_model_convert",
    "timm.models.vision_transformer.checkpoint_filter_fn",
    "timm.models.register_model",
    "timm.layers.set_layer_config",
    "timm.layers.set_scriptable",
    "detectron2.evaluation.inference_on_dataset",
    "detectron2.evaluation.print_csv_format",
    "detectron2.evaluation.pascal_voc_evaluation.voc_eval",
    "detectron2.modeling.build_model",
    "detectron2.modeling.backbone.regnet.RegNet.forward",
    "dinox.data.images.read_image",
    "dinox.data.images.load_image",
    "dinox.evaluation.evaluate_model",
    "torch.nn.modules.module.register_module_forward_hook",
    "torch.optim.optimizer.register_optimizer_step_pre_hook",
    "torchvision.models.quantization.utils.quantize_model",
    "torchvision.ops.nms",
]


@pytest.mark.parametrize("target", REFUSED)
def test_a_target_that_is_no_part_is_refused_with_place_and_option(target):
    with pytest.raises(
        ConfigError, match=r"bad\.yaml:2: 'model\._target_': .* is refused: .*Nothing was run"
    ) as caught:
        parse_config(config(target), origin="bad.yaml")
    assert target in str(caught.value) and "--allow-target " in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "dinox.modeling.DetectionTransformer",
        "dinox.data.load_dataset_dicts",
        "detectron2.data.build_detection_train_loader",
        "detectron2.evaluation.COCOEvaluator",
        "detectron2.data.build_detection_test_loader",
        "detectron2.data.transforms.RandomFlip",
        "detectron2.solver.get_default_optimizer_params",
        "detectron2.modeling.ResNet.make_default_stages",
        "dinox.engine.cosine_schedule",
        "detectron2.modeling.backbone.ResNet",
        "fvcore.common.param_scheduler.CosineParamScheduler",
        "torch.nn.Linear",
        "torch.optim.AdamW",
        "torchvision.models.resnet50",
        "torchvision.ops.FrozenBatchNorm2d",
    ],
)
def test_parts_may_be_called(target):
    assert parse_config(config(target), origin="good.yaml").model._target_ == target


def test_timm_models_may_be_called_but_not_from_elsewhere():
    pytest.importorskip("timm")
    assert parse_config(config("timm.create_model", model_name="resnet18"), origin="good.yaml")
    for argument in ("checkpoint_path", "cache_dir"):
        with pytest.raises(ConfigError, match=rf"'model\.{argument}' is refused"):
            parse_config(config("timm.create_model", **{argument: "bad"}), origin="bad.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "'hf-hub:somebody/model'",
        "'local-dir:/somewhere'",
        "'${what}'",
        '"hf-hub:a/b\\n"',
        "'a/b'",
        "{_target_: torch.nn.Identity}",
        "[hf-hub:a/b]",
        "null",
        "3",
    ],
)
def test_the_name_of_a_timm_model_is_a_plain_name(name):
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"bad\.yaml:3: 'model\.model_name': .* is refused in a yaml config"):
        parse_config(config("timm.create_model", model_name=name), origin="bad.yaml")


def test_arguments_of_what_an_allowed_package_only_re_exports_are_checked(tmp_path, monkeypatch):
    (tmp_path / "re_exports.py").write_text("from detectron2.data import get_detection_dataset_dicts\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = config("re_exports.get_detection_dataset_dicts", names="a", proposal_files="[x.pkl]")
    with pytest.raises(ConfigError, match=r"'model\.proposal_files' is refused"):
        parse_config(text, origin="bad.yaml", allow_targets=["re_exports"])


def test_every_config_of_the_zoo_is_allowed_as_yaml(tmp_path):
    file = tmp_path / "config.yaml"
    for name in model_zoo.list_configs():
        LazyConfig.save(model_zoo.get_config(name), str(file))
        loaded, original = (cfg.dataloader.train.mapper for cfg in (load_config(file), model_zoo.get_config(name)))
        assert loaded.num_classes == original.num_classes  # of the model, by reference


def test_nothing_foreign_is_imported_before_it_is_refused(tmp_path, canary, monkeypatch):
    (tmp_path / "evil_part.py").write_text(f"open({str(canary)!r}, 'w')\ndef part(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"'evil_part\.part' is refused.*--allow-target evil_part"):
        parse_config(config("evil_part.part"), origin="bad.yaml")
    assert not canary.exists() and "evil_part" not in sys.modules


def test_one_refused_text_keeps_all_from_being_imported(monkeypatch):
    from dinox.config import safety

    monkeypatch.setattr(safety, "locate", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(ConfigError, match=r"os\.system"):
        parse_config(config("torch.nn.Linear") + "other: {_target_: os.system}\n", origin="bad.yaml")


def test_an_allowed_package_may_be_called(tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text("import os\ndef double(x): return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = parse_config(config("own_parts.double", x="3"), origin="own.yaml", allow_targets=["own_parts"])
    assert instantiate(cfg.model) == 6
    with pytest.raises(ConfigError, match=r"'own_parts\.os\.system' .*is refused"):
        parse_config(config("own_parts.os.system"), origin="own.yaml", allow_targets=["own_parts"])


@pytest.mark.parametrize("package", ["", "os;", "own parts", "../own"])
def test_an_allowed_package_has_to_be_a_name(package):
    with pytest.raises(ConfigError, match="--allow-target: expected the dotted name of a package"):
        parse_config(config("torch.nn.Linear"), origin="own.yaml", allow_targets=[package])


@pytest.mark.parametrize("target", ["[os.system]", "{_target_: os.system}", "'${train.what}'", "3", "system", "''"])
def test_a_target_has_to_be_spelt_out(target):
    with pytest.raises(ConfigError, match=r"bad\.yaml:2: .*expected the dotted name of a callable"):
        parse_config(config(target) + "train: {what: os.system}\n", origin="bad.yaml")


def test_a_misspelt_target_has_a_did_you_mean():
    with pytest.raises(ConfigError, match=r"x\.yaml:2: .*got 'torch\.nn\.Linaer'\. Did you mean 'torch\.nn\.Linear'"):
        parse_config(config("torch.nn.Linaer"), origin="x.yaml")


def test_a_call_inside_of_lists_is_seen():
    with pytest.raises(ConfigError, match=r"bad\.yaml:4: 'a\.0\.b\.1\._target_': 'os\.system' is refused"):
        parse_config("a:\n  - b:\n    - 1\n    - _target_: os.system\n", origin="bad.yaml")


@pytest.mark.parametrize("name, value", [("cfg", "{MODEL: {}}"), ("proposal_files", "[http://example.com/x.pkl]")])
def test_arguments_that_open_a_way_around_are_refused(name, value):
    text = config("detectron2.data.get_detection_dataset_dicts", names="a", **{name: value})
    with pytest.raises(ConfigError, match=rf"bad\.yaml:4: 'model\.{name}' is refused in a yaml config"):
        parse_config(text, origin="bad.yaml")


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "${ oc.env:HOME }",
        "${a.${oc.env:HOME}}",
        "${${b}:HOME}",
        "x${oc.env:HOME}",
        "${dinox.iterations:${oc.env:HOME},1,1}",
        "${oc.create:'[1]'}",
        "${oc.decode:'1'}",
        "${a",
    ],
)
def test_an_interpolation_that_is_no_reference_is_refused(value):
    with pytest.raises(ConfigError, match=r"bad\.yaml:1: 'a': .* is refused.*Nothing was evaluated"):
        parse_config(f'a: "{value}"\n', origin="bad.yaml")


def test_references_and_our_arithmetic_are_taken():
    text = "n: 8\nlist: [3]\na: ${n}\nb: {c: '${..n}', d: 'x${list[0]}'}\ne: '${dinox.iterations:2,${n},4}'\n"
    cfg = parse_config(text, origin="good.yaml")
    assert (cfg.a, cfg.b.c, cfg.b.d, cfg.e) == (8, 8, "x3", 4)


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.x"]
)
def test_a_tag_is_refused_with_its_line(canary, tag):
    with pytest.raises(ConfigError, match=r"bad\.yaml:2: .*could run code and is refused"):
        parse_config(f"a: 1\nb: {tag} [{canary}]\n", origin="bad.yaml")
    assert not canary.exists()


def test_anchors_that_stand_for_billions_are_refused():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match=rf"more than {MAX_NODES} values"):
        parse_config("\n".join(lines), origin="bad.yaml")


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: " + "[" * 500 + "]" * 500])
def test_endless_nesting_is_refused(text):
    with pytest.raises(ConfigError, match="nested deeper"):
        parse_config(text, origin="bad.yaml")


def test_a_key_given_twice_is_an_error_with_both_lines():
    with pytest.raises(ConfigError, match=r"x\.yaml:3: the key 'b' is given twice, before in line 2"):
        parse_config("a:\n  b: 1\n  b: 2\n", origin="x.yaml")


def test_numbers_with_exponents_are_numbers():
    cfg = parse_config("a: 1e-4\nb: 1E5\nc: -.5e+2\nd: e4\n", origin="x.yaml")
    assert (cfg.a, cfg.b, cfg.c, cfg.d) == (1e-4, 1e5, -50.0, "e4")


def test_detectron2s_other_kind_of_yaml_is_told_apart():
    with pytest.raises(ConfigError, match=r"x\.yaml:1: MODEL, VERSION are keys of detectron2's CfgNode.*DinoxTrainer"):
        parse_config("MODEL: {WEIGHTS: ''}\nVERSION: 2\n", origin="x.yaml")


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: !!bool x\n", r"x\.yaml:1: not valid yaml: expected a bool, got 'x'"),
        ("a: 1\nb: !!timestamp x\n", r"x\.yaml:2: not valid yaml: expected a timestamp, got 'x'"),
        ("a: 2020-13-41\n", r"x\.yaml:1: not valid yaml: expected a timestamp, got '2020-13-41'"),
        ("a: !!int x\n", r"x\.yaml:1: not valid yaml: expected a int, got 'x'"),
        ("[a]: 1\n", r"x\.yaml:1: not valid yaml: found unhashable key"),
        ("a: x\0\n", r"x\.yaml: not valid yaml: it holds NUL bytes"),
        ("", r"x\.yaml: expected a mapping at the top, got nothing: the file is empty"),
        ("a: {_target_: torch.nn.Linear, 3: 1}\n", r"x\.yaml:1: 'a\.3': expected the name of an argument of Linear"),
    ],
)
def test_damaged_values_are_told_in_one_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(text, origin="x.yaml")
