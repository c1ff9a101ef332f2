"""A checkpoint says of which model it is, in plain texts that anything can read."""

import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from omegaconf import OmegaConf
from torch import nn

from dinox.checkpoint import (
    CheckpointDescription,
    Checkpointer,
    CheckpointError,
    describe,
    load_weights,
    read_description,
)
from dinox.checkpoint.description import differences
from dinox.config import ConfigError, parse_config
from dinox.model_zoo import get_config, list_configs


def save(folder, cfg, class_names=None, *, model=None):
    checkpointer = Checkpointer(nn.Linear(2, 2) if model is None else model, str(folder))
    checkpointer.description = describe(cfg, class_names)
    checkpointer.save("model", iteration=3)
    return str(folder / "model.pth")


def config(**parts):
    return OmegaConf.create(
        {"model": L(nn.Linear)(in_features=2, out_features=2), **parts}, flags={"allow_objects": True}
    )


def test_a_file_gives_back_config_classes_and_version(tmp_path):
    description = read_description(save(tmp_path, get_config("dino/dino_demo"), ["disk", "ring"]))
    assert description.class_names == ("disk", "ring")
    assert description.version
    assert description.config.model.num_queries == 60
    assert description.config.model._target_ == "dinox.modeling.DetectionTransformer"
    assert description.config.dataloader.test.mapper.augmentations.short_edge == 192
    assert set(description.config) == {"model", "dataloader"}


def test_stock_programs_read_the_file(tmp_path):
    path = save(tmp_path, config(), ["a"])
    loaded = torch.load(path, weights_only=True)
    assert all(isinstance(value, (str, list)) for value in loaded["dinox"].values())
    model = nn.Linear(2, 2)
    assert DetectionCheckpointer(model).load(path)["iteration"] == 3
    assert torch.equal(model.weight, loaded["model"]["weight"])
    assert load_weights(model, path, purpose="evaluate").is_complete


@pytest.mark.parametrize("name", list_configs())
def test_every_config_of_the_zoo_is_kept_whole(name):
    cfg = get_config(name)
    described = parse_config(describe(cfg)["config"], origin="a checkpoint")  # and it calls nothing unexpected
    for key in ("model", "dataloader.test"):
        kept, original = (OmegaConf.to_container(OmegaConf.select(c, key), resolve=True) for c in (described, cfg))
        assert strip_targets(kept) == strip_targets(original)


def strip_targets(node):
    if isinstance(node, dict):
        return {key: strip_targets(value) for key, value in node.items() if key != "_target_"}
    return [strip_targets(value) for value in node] if isinstance(node, list) else node


def test_references_inside_of_the_model_stay_references():
    described = OmegaConf.create(describe(get_config("dino/dino_demo"))["config"])
    described.model.num_classes = 11
    assert described.model.heads.num_classes == 11


def test_references_that_lead_out_become_values():
    cfg = config(width=2)
    cfg.model.in_features = "${width}"
    described = OmegaConf.create(describe(cfg)["config"])
    assert described.model.in_features == 2
    assert instantiate(described.model).in_features == 2


def test_a_call_of_a_resolver_becomes_its_value():
    OmegaConf.register_new_resolver("test_description.two", lambda: 2, replace=True)
    cfg = config()
    cfg.model.in_features = "${test_description.two:}"
    assert "${" not in describe(cfg)["config"]


def test_what_yaml_cannot_hold_is_left_out_and_said(tmp_path, caplog):
    def local():
        pass

    cfg = config(dataloader={"test": L(local)(num_workers=2, sampler=object(), mapper={"size": 3})})
    with caplog.at_level(logging.INFO, logger="dinox"):
        path = save(tmp_path, cfg)
    assert read_description(path).config.dataloader.test == {"num_workers": 2, "mapper": {"size": 3}}
    assert "dataloader.test.sampler is left out" in caplog.text and "of the type object" in caplog.text
    assert "dataloader.test._target_" in caplog.text and "cannot be imported by its name" in caplog.text


def test_a_model_that_cannot_be_written_leaves_no_config(tmp_path, caplog):
    cfg = config()
    cfg.model.bias = object()
    with caplog.at_level(logging.INFO, logger="dinox"):
        description = read_description(save(tmp_path, cfg, ["a"]))
    assert description.config is None and description.class_names == ("a",)
    assert "model.bias is of the type object" in caplog.text


def test_files_of_other_programs_say_nothing(tmp_path):
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "other.pth")
    description = read_description(str(tmp_path / "other.pth"))
    assert (description.config, description.class_names, description.version) == (None, None, None)


def test_the_config_of_a_file_may_call_nothing_unexpected(tmp_path):
    canary = tmp_path / "canary"
    entry = {"version": "1", "config": f"model: {{_target_: os.mkdir, path: {canary}}}", "class_names": ["a"]}
    torch.save({"model": {}, "dinox": entry}, tmp_path / "evil.pth")
    description = read_description(str(tmp_path / "evil.pth"))
    assert description.class_names == ("a",)
    with pytest.raises(ConfigError, match=r"evil\.pth.*os\.mkdir"):
        description.config  # noqa: B018
    assert not canary.exists()


def test_what_a_config_may_call_can_be_extended(tmp_path):
    path = save(tmp_path, OmegaConf.create({"model": {"_target_": "tests.engine.tiny.TinyDetector", "num_classes": 2}}))
    with pytest.raises(ConfigError, match=r"tests\.engine\.tiny\.TinyDetector"):
        read_description(path).config  # noqa: B018
    assert read_description(path, allow_targets=["tests.engine"]).config.model.num_classes == 2


@pytest.mark.parametrize(
    "entry, message",
    [
        ("text", "expected a dictionary as 'dinox', got str"),
        ({"class_names": "abc"}, r"'dinox\.class_names': expected a list of texts, got str"),
        ({"class_names": [1]}, r"'dinox\.class_names': expected a list of texts, got list"),
        ({"config": {"model": 1}}, r"'dinox\.config': expected text, got dict"),
    ],
)
def test_another_entry_of_that_name_is_an_error(tmp_path, entry, message):
    torch.save({"model": {}, "dinox": entry}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=rf"odd\.pth: {message}"):
        read_description(str(tmp_path / "odd.pth"))


# ------------------------------------------------------------------------------------------------------------ comparing


def described(cfg):
    return CheckpointDescription(config_yaml=describe(cfg)["config"])


def test_the_same_config_has_no_differences():
    assert (
        differences(described(get_config("dino/dino_r50_4scale_12ep")), get_config("dino/dino_r50_4scale_12ep")) == []
    )
    assert differences(CheckpointDescription(), get_config("dino/dino_demo")) == []
    assert differences(CheckpointDescription(config_yaml="model: ["), get_config("dino/dino_demo")) == []
    assert differences(CheckpointDescription(config_yaml="model: ${oc.env:HOME}"), get_config("dino/dino_demo")) == []


def test_what_weights_do_not_show_is_a_difference_with_both_values():
    ours, theirs = (get_config("dino/dino_r50_4scale_12ep") for _ in range(2))
    theirs.model.memory_builder.position_embedding.temperature = 10000
    theirs.model.memory_builder.position_embedding.offset = -0.5
    theirs.model.postprocess.num_detections = 100
    assert [str(difference) for difference in differences(described(theirs), ours)] == [
        "model.memory_builder.position_embedding.offset=0.0 (in the checkpoint: -0.5)",
        "model.memory_builder.position_embedding.temperature=20 (in the checkpoint: 10000)",
        "model.postprocess.num_detections=300 (in the checkpoint: 100)",
    ]


def test_what_is_not_spelt_is_its_default():
    ours, theirs = (get_config("dino/dino_r50_4scale_12ep") for _ in range(2))
    del ours.model.memory_builder.position_embedding["temperature"]  # 20
    assert differences(described(theirs), ours) == []
    theirs.model.memory_builder.position_embedding.temperature = 10000
    [difference] = differences(described(theirs), ours)
    assert (difference.described, difference.given) == (10000, 20)


def test_other_parts_are_not_compared():
    ours = config()
    theirs = OmegaConf.create({"model": L(nn.Bilinear)(in1_features=2, in2_features=3, out_features=4)})
    assert differences(described(theirs), ours) == []
