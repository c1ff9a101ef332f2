"""What a detectron2 CfgNode says of the model and of the data, and what must not be said there."""

import os
import pickle
import re

import pytest
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_model

import dinox
from dinox.config import ConfigError, lazy_config, merge_yaml
from dinox.modeling import DetectionTransformer
from tests.engine.yaml_run import TEST, TRAIN, YAML, datasets, loggers, make_cfg  # noqa: F401


def test_build_model_gives_the_zoos_model(tmp_path):
    model = build_model(make_cfg(tmp_path, overrides=["model.query_groups.denoising=null"]))
    assert type(model) is DetectionTransformer
    assert (model.num_classes, model.num_queries) == (6, 10)
    assert not any("denoising" in name for name, _ in model.named_parameters())


def test_the_config_for_coco_is_the_papers():
    cfg = get_cfg()
    dinox.add_dinox_config(cfg)
    merge_yaml(cfg, str(YAML / "dino_r50_4scale_12ep.yaml"))
    lazy = lazy_config(cfg)
    zoo = dinox.model_zoo.get_config("dino/dino_r50_4scale_12ep")
    assert lazy.model == zoo.model and lazy.optimizer == zoo.optimizer
    for split in ("train", "test"):
        ours, theirs = (instantiate(node.dataloader[split].mapper.augmentations) for node in (lazy, zoo))
        assert str(ours) == str(theirs)
    assert lazy.dataloader.train.total_batch_size == zoo.dataloader.train.total_batch_size == 16
    assert lazy.train.max_iter == zoo.train.max_iter == 90_000
    assert lazy.train.init_checkpoint == zoo.train.init_checkpoint
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS) == ((82_500,), 0)


@pytest.mark.parametrize(
    "opts, overrides, message",
    [
        (["INPUT.FORMAT", "BGR"], [], r"INPUT\.FORMAT is BGR, but the model .* has input_format RGB.*MODEL\.DINOX\."),
        (["MODEL.PIXEL_STD", [1.0, 1.0, 1.0]], [], r"MODEL\.PIXEL_STD is \[1\.0,1\.0,1\.0\].*'model\.pixel_std=\["),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 3], [], r"ROI_HEADS\.NUM_CLASSES is 3, but the model .* has 6 classes.*num_"),
        ([], ["model.num_classes=5"], rf"has 5 classes, but the dataset '{TRAIN}' of DATASETS has 6.*num_classes=6"),
        (["MODEL.DINOX.CONFIG", ""], [], r"MODEL\.DINOX\.CONFIG is empty: give the name"),
        (["MODEL.DINOX.CONFIG", "dino/dino_dem"], [], r"'dino/dino_dem' not found.*Did you mean 'dino/dino_demo'"),
        ([], ["model.num_querys=3"], r"MODEL\.DINOX\.OVERRIDES: override .*Did you mean 'model\.num_queries'"),
        ([], ["model.postprocess._target_=os.system"], r"'os\.system' is refused"),
        ([], ["train.output_dir=${oc.env:HOME}"], r"'\$\{oc\.env:HOME\}' is refused"),
        ([], ["dataloader.train.cfg={}"], r"'dataloader\.train\.cfg' is refused"),
        ([], ["model.backbone.model_name=hf-hub:a/b"], r"'hf-hub:a/b' is refused"),
    ],
)
def test_what_contradicts_the_model_is_an_error(tmp_path, opts, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_model(make_cfg(tmp_path, *opts, overrides=overrides))


def test_keys_must_have_been_added():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "DetectionTransformer"
    with pytest.raises(ConfigError, match=r"call dinox\.add_dinox_config\(cfg\) after get_cfg\(\)"):
        build_model(cfg)


GET_DICTS = "{_target_: detectron2.data.get_detection_dataset_dicts, names: dinox_shapes_val}"
CREATE_MODEL = "{_target_: timm.create_model, model_name: resnet18}"


@pytest.mark.parametrize(
    "overrides, refused",
    [
        ([f"model.postprocess={GET_DICTS}", "model.postprocess={proposal_files: [PICKLE]}"], "proposal_files"),
        ([f"model.postprocess={GET_DICTS}", "model={postprocess.proposal_files: [PICKLE]}"], "proposal_files"),
        ([f"model.postprocess={CREATE_MODEL}", "model.postprocess={checkpoint_path: PICKLE}"], "checkpoint_path"),
        ([f"model.postprocess={CREATE_MODEL}", "model={postprocess: {model_name: 'hf-hub:a/m'}}"], "model_name"),
        ([f"model.postprocess={CREATE_MODEL}", "model={postprocess: {cfg: {A: 1}}}"], "cfg"),
    ],
)
def test_overrides_that_are_harmful_only_together_run_nothing(tmp_path, overrides, refused):
    canary, file = tmp_path / "canary", tmp_path / "bad.pkl"
    file.write_bytes(pickle.dumps(MakesFolder(str(canary))))
    overrides = [text.replace("PICKLE", f"'{file}'") for text in overrides]
    with pytest.raises(ConfigError) as caught:
        build_model(make_cfg(tmp_path, overrides=overrides))
    assert not canary.exists()
    assert refused in str(caught.value)
    pickle.loads(file.read_bytes())
    assert canary.exists()  # had it been read


class MakesFolder:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_settings_of_the_yaml_are_not_evaluated(tmp_path):
    with pytest.raises(ConfigError, match=r"'train\.output_dir': '\$\{oc\.env:HOME\}' is refused"):
        lazy_config(make_cfg("${oc.env:HOME}"))


def test_keys_of_other_detectors_are_said_once_to_have_no_effect(tmp_path, caplog):
    cfg = make_cfg(tmp_path, "MODEL.RESNETS.DEPTH", 152)
    build_model(cfg)
    lazy_config(cfg)
    assert caplog.text.count("MODEL.RESNETS.DEPTH have no effect") == 1


def test_the_number_of_detections_is_the_yamls_if_it_says_one(tmp_path):
    assert build_model(make_cfg(tmp_path)).postprocess.num_detections == 100  # of dino_demo
    assert build_model(make_cfg(tmp_path, "TEST.DETECTIONS_PER_IMAGE", 7)).postprocess.num_detections == 7
    with pytest.raises(ConfigError, match=r"TEST\.DETECTIONS_PER_IMAGE: expected a whole number of at least 1, got 0"):
        build_model(make_cfg(tmp_path, "TEST.DETECTIONS_PER_IMAGE", 0))
    both = make_cfg(tmp_path, "TEST.DETECTIONS_PER_IMAGE", 7, overrides=["model.postprocess.num_detections=8"])
    with pytest.raises(ConfigError, match=r"set TEST\.DETECTIONS_PER_IMAGE instead"):
        build_model(both)


@pytest.mark.parametrize(
    "key, value",
    [
        ("TEST.AUG.ENABLED", True),
        ("VIS_PERIOD", 100),
        ("INPUT.MASK_FORMAT", "bitmask"),
        ("DATASETS.PROPOSAL_FILES_TRAIN", ("x.pkl",)),
        ("DATALOADER.REPEAT_THRESHOLD", 0.1),
        ("TEST.KEYPOINT_OKS_SIGMAS", [0.1]),
        ("TEST.EXPECTED_RESULTS", [["bbox", "AP", 40.0, 0.5]]),
        ("SOLVER.MOMENTUM", 0.5),
        ("SOLVER.NESTEROV", True),
        ("INPUT.MIN_SIZE_TRAIN", (0,)),
        ("INPUT.MIN_SIZE_TEST", 0),
    ],
)
def test_keys_that_would_be_ignored_are_an_error(tmp_path, key, value):
    cfg = make_cfg(tmp_path)
    lazy_config(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=re.escape(key)):
        lazy_config(cfg)


def test_a_program_is_not_run_because_a_yaml_names_it(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "own.py").write_text(f"open({str(canary)!r}, 'w')\n")
    with pytest.raises(ConfigError, match=r"own\.py is a program, which a yaml config may not run"):
        build_model(make_cfg(tmp_path, "MODEL.DINOX.CONFIG", str(tmp_path / "own.py")))
    assert not canary.exists()
