"""Overrides: what they change, and what they refuse."""

import os

import pytest
from detectron2.config import LazyCall as L
from omegaconf import DictConfig, OmegaConf

from dinox.config import ConfigError, apply_overrides


class Neck:
    def __init__(self, *, channels: int = 256, names=("p3",)):
        pass


class Detector:
    def __init__(
        self,
        *,
        num_classes: int,
        weight: float = 1.0,
        shared: bool = True,
        neck: Neck | None = None,
        freeze_at=2,
        weights: dict[str, float] | None = None,
    ):
        pass


class Groups:
    def __init__(self, **groups):
        pass


@pytest.fixture
def cfg() -> DictConfig:
    model = L(Detector)(num_classes=80, weight=2, neck=L(Neck)(channels="${..num_classes}"), freeze_at=1, weights={})
    groups = L(Groups)(denoising=L(Neck)(), matching=L(Neck)())
    train = {
        "max_iter": 100,
        "lr": 1e-4,
        "amp": False,
        "output_dir": "./output",
        "edges": (480, 512),
        "steps": [L(Neck)()],
    }
    return OmegaConf.create({"model": model, "groups": groups, "train": train}, flags={"allow_objects": True})


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("model.num_classes=3", "model.num_classes", 3),
        ("train.lr=1e-3", "train.lr", 1e-3),
        ("train.lr=1", "train.lr", 1),  # an int for a float
        ("train.max_iter=1e4", "train.max_iter", 10000),  # a whole float for an int
        ("train.amp=True", "train.amp", True),
        ("train.output_dir=./a/b", "train.output_dir", "./a/b"),
        ("train.output_dir='1'", "train.output_dir", "1"),
        ("train.output_dir=null", "train.output_dir", None),
        ("train.output_dir=my runs (2)", "train.output_dir", "my runs (2)"),  # hydra's grammar has no parentheses
        ("train.output_dir=https://x/y?download=true", "train.output_dir", "https://x/y?download=true"),
        ("train.output_dir=~/runs/a", "train.output_dir", os.path.expanduser("~/runs/a")),
        ("train.edges=[320]", "train.edges", [320]),  # a list may change its length
        ("train.edges=(320, 352, 384)", "train.edges", [320, 352, 384]),
        ("train.edges.1=640", "train.edges", [480, 640]),
        ("train.edges[1]=640", "train.edges", [480, 640]),
        ("train.steps[0].channels=64", "train.steps.0.channels", 64),
        ("model.weight=0.5", "model.weight", 0.5),  # spelt as an int, annotated as a float
        ("model.shared=False", "model.shared", False),  # an argument that the config does not spell
        ("model.neck.channels=64", "model.neck.channels", 64),  # in place of an interpolation
        ("model.neck=null", "model.neck", None),  # a part may be absent
        ("model.neck=None", "model.neck", None),
        ("model.weights.giou=2.0", "model.weights.giou", 2.0),  # an empty mapping is open
        ("model.weights={giou: 2.0, bbox: 5}", "model.weights", {"giou": 2.0, "bbox": 5}),
        ("model={weights: {backbone.bottom_up: 0.1}}", "model.weights", {"backbone.bottom_up": 0.1}),
        ("groups.denoising=null", "groups.denoising", None),
        ("train={max_iter: 5, lr: 0.1}", "train.max_iter", 5),
        ("train.max_iter=${model.num_classes}", "train.max_iter", 80),
    ],
)
def test_override_changes_its_key(cfg, override, key, value):
    assert apply_overrides(cfg, [override]) is cfg
    assert OmegaConf.select(cfg, key) == value


def test_mapping_leaves_other_keys_alone(cfg):
    assert apply_overrides(cfg, ["train={max_iter: 5}"]).train.lr == 1e-4


def test_whole_float_becomes_an_int(cfg):
    assert type(apply_overrides(cfg, ["train.max_iter=1e4"]).train.max_iter) is int


def test_target_replaces_a_part(cfg):
    name = f"{Detector.__module__}.Detector"
    cfg = apply_overrides(cfg, [f"train.steps.0={{_target_: {name}, num_classes: 1}}"])
    assert cfg.train.steps[0].num_classes == 1 and "channels" not in cfg.train.steps[0]


@pytest.mark.parametrize(
    "override, meant",
    [
        ("model.num_clases=3", "model.num_classes"),
        ("modle.num_classes=3", "model.num_classes"),
        ("num_classes=3", "model.num_classes"),
        ("Train.LR=1", "train.lr"),
        ("model.share=False", "model.shared"),  # known from the signature only
        ("model.nek.channels=3", "model.neck.channels"),
        ("groups.denoisng=null", "groups.denoising"),  # although the callable takes **kwargs
        ("train={max_itr: 5}", "train.max_iter"),
    ],
)
def test_unknown_key_is_refused_with_the_one_that_was_meant(cfg, override, meant):
    with pytest.raises(ConfigError, match=r"some\.py: override '.*': unknown key '.*Did you mean") as caught:
        apply_overrides(cfg, [override], file="some.py")
    assert f"'{meant}'" in str(caught.value)


def test_unknown_key_without_a_near_one_lists_what_is_there(cfg):
    with pytest.raises(ConfigError, match=r"unknown key 'SOLVER'.*The config has: groups, model, train"):
        apply_overrides(cfg, ["SOLVER.BASE_LR=0.1"])


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.lr=fast", r"'train.lr': expected a number, got 'fast' \(text\)\. It is 0.0001 now"),
        ("train.max_iter=1.5", "expected an integer, got 1.5"),
        ("train.max_iter=true", "expected an integer, got True"),
        ("train.max_iter=null", "expected an integer, got None"),
        ("train.amp=1", "expected true/false, got 1"),
        ("train.output_dir=5", r"expected text or None, got 5.*Put it into quotes.*train.output_dir=\"'5'\""),
        ("train.edges=480", r"expected a list.*Write train.edges=\[480\]"),
        ("train.edges=[a]", "expected a list of numbers, got 'a' at index 0"),
        ("train.steps=[3]", "expected a list of parts, got 3 at index 0"),
        ("model.num_classes=null", "expected an integer, got None"),
        ("model.num_classes=three", "expected an integer, got 'three'"),
        ("model.shared=3", "expected true/false, got 3"),  # from the annotation: the config does not spell it
        ("model.neck=resnet", r"expected a part .* or None, got 'resnet' \(text\)\. It is Neck now"),
        ("model.neck._target_=no.such.Thing", "expected the dotted name of a callable, got 'no.such.Thing'"),
        ("train.max_iter=${train.max_itr}", "nothing to take the value from.*train.max_itr"),
    ],
)
def test_value_of_another_kind_is_refused(cfg, override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(cfg, [override])


@pytest.mark.parametrize(
    "override, message",
    [
        ("lr 0.1", "expected key=value, got no '='. Write lr=0.1"),
        ("train.lr", "Write train.lr=VALUE"),
        ("", "expected key=value"),
        ("train.lr=", "no value after '='.*train.lr=null for None"),
        ("=3", "expected a dotted key before '=', got ''"),
        ("a..b=3", "expected a dotted key before '='"),
        ("train.edges=1,2", r"has several values. Write train.edges=\[1,2\]"),
        ("train.lr=a=b", "cannot read the value 'a=b'.*quotes"),
        ("train.output_dir=[a", r"cannot read the value '\[a'"),
        ("+train.lr=1", r"'\+' is not supported"),
        ("~train.lr", "'~' is not supported"),
    ],
)
def test_wrong_syntax_is_refused_with_the_right_one(cfg, override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(cfg, [override])


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.edges.2=640", "'train.edges' is a list of 2: expected an index from 0, got '2'"),
        ("train.edges.first=640", "got 'first'"),
        ("train.lr.x=1", "'train.lr' is 0.0001 and has no keys below it"),
        ("train.lr={x: 1}", "'train.lr': expected a number, got {'x': 1}"),
    ],
)
def test_keys_below_lists_and_values(cfg, override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(cfg, [override])


def test_key_below_an_interpolated_part_names_its_origin(cfg):
    cfg.model.neck = "${groups.matching}"
    with pytest.raises(ConfigError, match=r"'model.neck' is '\$\{groups.matching\}': it takes its value from there"):
        apply_overrides(cfg, ["model.neck.channels=3"])
    assert "channels" not in cfg.groups.matching


def test_new_target_has_to_take_the_arguments_that_are_there(cfg):
    cfg.model.neck.channels = 3
    with pytest.raises(ConfigError, match=r"unknown key 'model.neck.channels': Detector takes no argument 'channels'"):
        apply_overrides(cfg, [f"model.neck._target_={Detector.__module__}.Detector"])
