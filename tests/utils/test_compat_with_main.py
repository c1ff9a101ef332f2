"""dinox against detectron2's main branch, which is not installed here: stand-ins with its signatures and manners.

Three kinds of tests. Calls of detectron2's functions are read from the sources and bound to main's signatures, so that
an argument that only v0.6 has, or that has another place there, is found. Names that only one of the two has are used
nowhere. And where classes of dinox inherit from detectron2's, they run with main's in their place.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.engine.train_loop import TrainerBase
from detectron2.layers import ShapeSpec
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer as FvcoreCheckpointer
from torch import nn

from dinox.checkpoint import Checkpointer, CheckpointError, load_weights
from dinox.engine import Trainer
from dinox.utils.compat import takes
from tests.small_models import assert_trains_one_step, build_small, make_input

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for folder in ("dinox", "configs", "projects", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != ROOT / "dinox" / "utils" / "compat.py"
]


@pytest.fixture(scope="module")
def trees():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


# ------------------------------------------------------------------------------------------------ main's own signatures


def eval_hook(eval_period, eval_function, eval_after_train=True): ...
def periodic_writer(writers, period=20): ...
def iteration_timer(warmup_iter=3): ...
def lr_scheduler(optimizer=None, scheduler=None): ...
def periodic_checkpointer(checkpointer, period, max_iter=None, max_to_keep=None, file_prefix="model"): ...
def simple_trainer(
    model,
    data_loader,
    optimizer,
    gather_metric_period=1,
    zero_grad_before_forward=False,
    async_write_metrics=False,
): ...
def create_ddp_model(model, *, fp16_compression=False, **kwargs): ...
def launch(main_func, num_gpus_per_machine, num_machines=1, machine_rank=0, dist_url=None, args=(), timeout=None): ...
def inference_on_dataset(model, data_loader, evaluator, callbacks=None): ...
def coco_evaluator(
    dataset_name,
    tasks=None,
    distributed=True,
    output_dir=None,
    *,
    max_dets_per_image=None,
    use_fast_impl=True,
    kpt_oks_sigmas=(),
    allow_cached_coco=True,
): ...
def lvis_evaluator(dataset_name, tasks=None, distributed=True, output_dir=None, *, max_dets_per_image=None): ...
def train_loader(
    dataset,
    *,
    mapper,
    sampler=None,
    total_batch_size,
    aspect_ratio_grouping=True,
    num_workers=0,
    collate_fn=None,
    drop_last=True,
    single_gpu_batch_size=None,
    prefetch_factor=2,
    persistent_workers=False,
    pin_memory=False,
    seed=None,
    **kwargs,
): ...
def evaluation_loader(dataset, *, mapper, sampler=None, batch_size=1, num_workers=0, collate_fn=None): ...
def training_sampler(size, shuffle=True, seed=None): ...
def repeat_factor_sampler(repeat_factors, *, shuffle=True, seed=None): ...
def map_dataset(dataset, map_func): ...
def dataset_from_list(lst, copy=True, serialize=True): ...
def shape_spec(channels=None, height=None, width=None, stride=None): ...
def image_list(tensors, size_divisibility=0, pad_value=0.0, padding_constraints=None): ...
def register_coco(name, metadata, json_file, image_root): ...
def visualizer(img_rgb, metadata=None, scale=1.0, instance_mode=0, font_size_scale=1.0): ...
def put_scalar(name, value, smoothing_hint=True, cur_iter=None): ...
def detector_postprocess(results, output_height, output_width, mask_threshold=0.5): ...
def top_rpn_proposals(
    proposals, pred_objectness_logits, image_sizes, nms_thresh, pre_nms_topk, post_nms_topk, min_box_size, training
): ...


MAIN = {
    "EvalHook": eval_hook,
    "PeriodicWriter": periodic_writer,
    "IterationTimer": iteration_timer,
    "LRScheduler": lr_scheduler,
    "PeriodicCheckpointer": periodic_checkpointer,
    "SimpleTrainer": simple_trainer,
    "create_ddp_model": create_ddp_model,
    "launch": launch,
    "inference_on_dataset": inference_on_dataset,
    "COCOEvaluator": coco_evaluator,
    "LVISEvaluator": lvis_evaluator,
    "build_detection_train_loader": train_loader,
    "build_detection_test_loader": evaluation_loader,
    "TrainingSampler": training_sampler,
    "RepeatFactorTrainingSampler": repeat_factor_sampler,
    "MapDataset": map_dataset,
    "DatasetFromList": dataset_from_list,
    "ShapeSpec": shape_spec,
    "ImageList.from_tensors": image_list,
    "register_coco_instances": register_coco,
    "Visualizer": visualizer,
    "put_scalar": put_scalar,
    "detector_postprocess": detector_postprocess,
    "find_top_rpn_proposals": top_rpn_proposals,
}
"""What they are called in detectron2 -> main's arguments, without self."""


@dataclass(frozen=True)
class Call:
    """Of one of detectron2's functions, or of the constructor that a class inherits from it."""

    place: str
    node: ast.Call

    def problem(self, signature: inspect.Signature) -> str | None:
        if any(isinstance(argument, ast.Starred) for argument in self.node.args):
            return None  # which cannot be counted here
        spread = any(keyword.arg is None for keyword in self.node.keywords)
        keywords = {keyword.arg: None for keyword in self.node.keywords if keyword.arg is not None}
        try:
            (signature.bind_partial if spread else signature.bind)(*self.node.args, **keywords)
        except TypeError as error:
            return f"{self.place}: {ast.unparse(self.node)[:100]} ({error})"
        return None


def imported(tree: ast.Module) -> dict[str, str]:
    """Names of the module -> what they are called in detectron2."""
    return {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "detectron2"
        for alias in node.names
    }


def calls(path: Path, tree: ast.Module) -> Iterator[tuple[str, Call]]:
    names, place = imported(tree), str(path.relative_to(ROOT))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [called(base, names) for base in node.bases]
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
                    yield from ((base, Call(f"{place}:{call.lineno}", call)) for base in bases if base)
        elif isinstance(node, ast.Call) and (name := called(node.func, names)):
            yield name, Call(f"{place}:{node.lineno}", node)


def called(function: ast.expr, names: dict[str, str]) -> str | None:
    """``hooks.EvalHook`` is EvalHook, if hooks is detectron2's."""
    if isinstance(function, ast.Name):
        return names.get(function.id)
    if not isinstance(function, ast.Attribute):
        return None
    if function.attr == "put_scalar":  # of whatever a storage is called
        return function.attr
    if isinstance(function.value, ast.Name) and function.value.id in names:
        whole = f"{names[function.value.id]}.{function.attr}"
        return whole if whole in MAIN else function.attr
    return None


def test_every_call_of_detectron2_has_arguments_that_main_takes(trees):
    found = [(name, call) for path, tree in trees.items() for name, call in calls(path, tree) if name in MAIN]
    problems = [call.problem(inspect.signature(MAIN[name])) for name, call in found]
    assert [problem for problem in problems if problem] == []
    # The scan sees what it is to see.
    seen = {name for name, _ in found}
    assert {
        "EvalHook",
        "SimpleTrainer",
        "PeriodicCheckpointer",
        "COCOEvaluator",
        "build_detection_train_loader",
    } <= seen
    assert {"ShapeSpec", "put_scalar", "inference_on_dataset"} <= seen


@pytest.mark.parametrize(
    "source, problem",
    [
        ("from detectron2.engine import hooks\nhooks.EvalHook(1, print, True)", None),
        ("from detectron2.engine import hooks\nhooks.EvalHook(1, print, eval_at_end=True)", "eval_at_end"),
        ("from detectron2.engine import launch as run\nrun(f, 1, num_machine=2)", "num_machine"),
        ("from detectron2.engine import SimpleTrainer as S\nclass A(S):\n def f(s): super().__init__(1)", "missing"),
        ("from detectron2.structures import ImageList\nImageList.from_tensors(x, constraints={})", "constraints"),
        ("from elsewhere import launch\nlaunch(1, 2, 3, 4, 5, 6, 7, 8, 9)", None),
    ],
)
def test_a_call_that_main_would_refuse_is_found(source, problem):
    found = [
        call.problem(inspect.signature(MAIN[name]))
        for name, call in calls(ROOT / "x.py", ast.parse(source))
        if name in MAIN
    ]
    assert any(problem in text for text in found if text) if problem else not any(found)


# -------------------------------------------------------------------------------------- names that one of the two lacks


ONLY_MAIN = {
    "padding_constraints": "v0.6's backbones and ImageList have none; dinox pads images itself",
    "square_pad": "v0.6's FPN has none",
    "SimpleFeaturePyramid": "of detectron2's own: v0.6 has none; dinox has one",
    "get_vit_lr_decay_rate": "v0.6 has no ViT",
    "move_device_like": "v0.6 has none",
    "empty_input_loss_func_wrapper": "v0.6 has none",
    "zero_grad_before_forward": "v0.6's trainers do not take it",
    "async_write_metrics": "v0.6's trainers do not take it",
    "gather_metric_period": "v0.6's trainers do not take it",
    "log_grad_scaler": "v0.6's AMPTrainer does not take it",
    "reset_data_loader": "v0.6's trainer has no such method",
    "eval_after_train": "v0.6's EvalHook does not take it",
    "create_local_process_group": "v0.6's comm has none",
    "get_local_process_group": "v0.6's comm has none",
    "has_event_storage": "v0.6's events have none",
    "cur_iter": "v0.6's put_scalar does not take it",
    "single_gpu_batch_size": "v0.6's loader does not take it",
    "lr_factor_func": "v0.6's get_default_optimizer_params does not take it",
    "allow_cached_coco": "v0.6's COCOEvaluator does not take it",
    "font_size_scale": "v0.6's Visualizer does not take it",
    "RandomResize": "v0.6 has no such augmentation",
    "MinIoURandomCrop": "v0.6 has no such augmentation",
    "RandomSubsetTrainingSampler": "v0.6 has none",
    "WeightedTrainingSampler": "v0.6 has none, and main's own config cannot make one",
}
ONLY_V06 = {
    "_evaluate_predictions_on_coco": "its argument use_fast_impl became cocoeval_fn",
    "AMPTrainer": "its fourth argument is another one on main; dinox has its own step",
    "write_metrics": "it has an argument more on main; dinox stores its scalars itself",
    "_write_metrics": "as write_metrics",
    "to_bitmasks": "of ROIMasks: takes a tensor, or Boxes on main",
    "_fallback_candidates": "of MapDataset; dinox replaces unreadable images itself",
}
ONLY_MAINS_YAML = ("FLOAT32_PRECISION", "BASE_LR_END", "NUM_DECAYS", "RESCALE_INTERVAL", "REPEAT_SQRT", "FED_LOSS")
"""Keys that v0.6 does not know: merging a yaml with one raises there."""


def names_from_detectron2(tree: ast.Module) -> set[str]:
    """What is imported from it, and all attributes and keywords, of whatever they are."""
    names = set(imported(tree).values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg:
            names.add(node.arg)
    return names


def test_names_that_only_one_detectron2_has_are_used_nowhere(trees):
    for path, tree in trees.items():
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        used = names_from_detectron2(tree) - own
        found = {name: why for name, why in (ONLY_MAIN | ONLY_V06).items() if name in used}
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_yaml_keys_that_v06_does_not_know_are_set_nowhere(trees):
    """``dinox.config`` knows their names, to tell which have no effect."""
    yamls = {path: path.read_text() for path in sorted((ROOT / "projects").rglob("*.yaml"))}
    assert yamls and not [(path, key) for path, text in yamls.items() for key in ONLY_MAINS_YAML if key in text]
    for path, tree in trees.items():
        assert not names_from_detectron2(tree) & {*ONLY_MAINS_YAML}, path


def test_what_both_need_is_pinned_alike():
    """Main's overrides fall back to a parser of its own without hydra, and neither works with omegaconf 2.4."""
    needed = (ROOT / "pyproject.toml").read_text()
    assert '"hydra-core>=1.1"' in needed and re.search(r'"omegaconf[^"]*<2\.4"', needed)


def test_probes_tell_signatures_apart():
    """Those of compat that look at arguments."""

    def v06_image_list(tensors, size_divisibility=0, pad_value=0.0): ...
    def v06_coco_evaluator(dataset_name, tasks=None, distributed=True, output_dir=None, *, use_fast_impl=True): ...

    assert takes(image_list, "padding_constraints") and not takes(v06_image_list, "padding_constraints")
    assert takes(coco_evaluator, "allow_cached_coco") and not takes(v06_coco_evaluator, "allow_cached_coco")


# ------------------------------------------------------------------------------------------------------------ ShapeSpec


@dataclass
class MainShapeSpec:
    """Not hashable, and not to be unpacked: v0.6's is a named tuple."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


@pytest.mark.parametrize("config", ["dino/dino_r50_4scale_12ep", "co_detr/co_deformable_detr_r50_12ep"])
def test_models_are_built_and_trained_with_shapes_that_are_no_tuples(monkeypatch, config):
    with pytest.raises(TypeError):
        hash(MainShapeSpec())
    with pytest.raises(TypeError):
        iter(MainShapeSpec())
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("dinox", "detectron2") and getattr(module, "ShapeSpec", None) is ShapeSpec:
            monkeypatch.setattr(module, "ShapeSpec", MainShapeSpec)
    model = build_small(config)
    assert isinstance(next(iter(model.backbone.output_shape().values())), MainShapeSpec)
    assert_trains_one_step(model, [make_input(64, 64, 2)])


# -------------------------------------------------------------------------------------------------------------- trainer


class MainSimpleTrainer(TrainerBase):
    """The iterator is made when it is first asked for; hooks see gradients; metrics take one argument more."""

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        gather_metric_period=1,
        zero_grad_before_forward=False,
        async_write_metrics=False,
    ):
        super().__init__()
        model.train()
        self.model, self.data_loader, self.optimizer = model, data_loader, optimizer
        self.made = None
        self.gather_metric_period, self.zero_grad_before_forward = gather_metric_period, zero_grad_before_forward

    @property
    def _data_loader_iter(self):
        self.made = iter(self.data_loader) if self.made is None else self.made
        return self.made

    def after_backward(self):
        for hook in self._hooks:
            hook.after_backward()

    def _write_metrics(self, loss_dict, data_time, iter, prefix=""):
        raise AssertionError("v0.6's has other arguments: not to be called")

    def state_dict(self):
        return super().state_dict() | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


@contextmanager
def inheriting(kind, base):
    """A class with main's in the place of the one that it inherits from."""
    before = kind.__bases__
    kind.__bases__ = (base,)
    try:
        yield
    finally:
        kind.__bases__ = before


class OldHook(HookBase):
    """v0.6's hooks have no ``after_backward``."""

    def after_step(self):
        self.trainer.storage.put_scalar("old", 1.0)


class NewHook(HookBase):
    """Main's have one."""

    def after_backward(self):
        self.seen = [parameter.grad.clone() for parameter in self.trainer.model.parameters()]


class OneLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, batch):
        return {"loss": (self.weight * batch[0]["x"]).sum()}


def make_trainer():
    model = OneLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return Trainer(model=model, data_loader=[[{"x": 1.0}]] * 4, optimizer=optimizer, device="cpu")


def test_the_trainer_runs_on_mains_simple_trainer():
    with inheriting(Trainer, MainSimpleTrainer):
        trainer, new = make_trainer(), NewHook()
        assert trainer.made is None
        trainer.register_hooks([OldHook(), new])
        trainer.train(0, 2)
        assert trainer.model.weight.tolist() == [0.0, 0.0]  # 1 - 2 * 0.5
        assert new.seen[0].tolist() == [1.0, 1.0]
        assert trainer.storage.latest()["total_loss"][0] == 1.0 and trainer.storage.latest()["old"][0] == 1.0
        again = make_trainer()
        again.load_state_dict(trainer.state_dict())
        assert again.iter == 2


@pytest.mark.parametrize("hook", [OldHook, NewHook])
def test_hooks_of_both_kinds_run_on_the_trainer_that_is_installed(hook):
    trainer = make_trainer()
    trainer.register_hooks([hook()])
    trainer.train(0, 1)


# --------------------------------------------------------------------------------------------------------- checkpointer


class MainCheckpointer(FvcoreCheckpointer):
    """Takes queries behind the path, and reads files inside of ``load`` only."""

    def __init__(self, model, save_dir="", *, save_to_disk=None, **checkpointables):
        super().__init__(model, save_dir, save_to_disk=save_to_disk is not False, **checkpointables)
        self.path_manager = PathManager
        self._parsed_url_during_load = None

    def load(self, path, *args, **kwargs):
        assert self._parsed_url_during_load is None
        if path:
            self._parsed_url_during_load = urlparse(path)
            path = self.path_manager.get_local_path(self._parsed_url_during_load._replace(query="").geturl())
        loaded = super().load(path, *args, **kwargs)
        self._parsed_url_during_load = None
        return loaded

    def _load_file(self, filename):
        assert self._parsed_url_during_load is not None, "`_load_file` must be called inside `load`"
        loaded = self._torch_load(filename)
        if parse_qs(self._parsed_url_during_load.query).get("matching_heuristics") == ["True"]:
            loaded["matching_heuristics"] = True
        return loaded

    def _torch_load(self, filename):
        raise AssertionError("unpickles anything")

    def _load_model(self, checkpoint):
        assert not checkpoint.get("matching_heuristics")
        return super()._load_model(checkpoint)


def test_checkpoints_are_saved_and_loaded_on_mains_checkpointer(tmp_path):
    with inheriting(Checkpointer, MainCheckpointer):
        saved, model = OneLoss(), OneLoss()
        with torch.no_grad():
            saved.weight.fill_(7)
        checkpointer = Checkpointer(saved, str(tmp_path), trainer=make_trainer())
        checkpointer.description = {"class_names": ["a"]}
        checkpointer.save("model", iteration=3)
        report = load_weights(model, str(tmp_path / "model.pth"), class_names=["a"])
        assert report.is_complete and model.weight.tolist() == [7, 7]
        resumed = Checkpointer(model, str(tmp_path), trainer=make_trainer())
        assert resumed.load(resumed.get_checkpoint_file(), purpose="resume")["iteration"] == 3
        with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
            resumed.load(str(tmp_path / "nowhere.pth"))
        assert resumed.load(str(tmp_path / "model.pth"))["iteration"] == 3
