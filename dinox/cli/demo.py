"""dinox demo: from nothing to a trained detector and pictures, on a dataset that dinox draws itself."""

import argparse
import contextlib
import copy
import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from dinox.cli.arguments import add_common_arguments
from dinox.cli.running import check_json_target, guarded
from dinox.config import load_config
from dinox.data import register_shapes
from dinox.data.checks import dataset_names
from dinox.data.shapes.registration import DEFAULT_DATASETS
from dinox.engine import evaluate, train
from dinox.engine.logs import RunLog
from dinox.evaluation import draw_contact_sheet
from dinox.inference import Predictor
from dinox.utils.json_files import write_json
from dinox.utils.progress import evaluation_progress, training_progress

CONFIG = "dino/dino_demo"
DEFAULT_OUTPUT = "output/demo"

_STATE_FILE, _PICTURES, _CHECKPOINT = "demo.json", "detections.png", "model_final.pth"
_PROGRESS_LINES = 20
_FALLBACK_DATASETS = "datasets"  # detectron2's own default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default=DEFAULT_OUTPUT, metavar="FOLDER", help=f"default: {DEFAULT_OUTPUT}")
    parser.add_argument("--steps", type=int, metavar="N", help="training iterations, instead of those of the config")
    parser.add_argument("--config-file", default=CONFIG, metavar="CONFIG", help=f"default: {CONFIG}")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    return guarded(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> None:
    check_json_target(args.json_file)
    results = run_demo(output=args.output, steps=args.steps, config_file=args.config_file)
    if args.json_file:
        write_json(args.json_file, {"command": "demo"} | results)


def run_demo(
    *, output: str | os.PathLike = DEFAULT_OUTPUT, steps: int | None = None, config_file: str = CONFIG
) -> dict[str, Any]:
    """Dataset, training, evaluation, pictures. Prints its progress; details go to ``log.txt`` in the output folder.

    An interrupted demo is resumed from its last checkpoint. A finished one is not trained again, only evaluated and
    drawn. A folder that holds something else, or a demo with other settings, is left alone: the demo then goes to the
    next free ``<output>-2``, ``-3``, ...

    Returns metrics, paths and seconds per phase. Raises ValueError if ``steps`` is not above 0.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"--steps: expected a number above 0, got {steps}")
    print("dinox demo: a small DINO learns to find shapes in images that dinox draws itself", flush=True)
    cfg = load_config(config_file)
    if steps is not None:
        cfg.train.max_iter = steps
    place = choose_folder(output, settings=_fingerprint(cfg))
    if place.folder != Path(output):
        print(f"{output} holds something else, or a demo with other settings: going to {place.folder}", flush=True)
    cfg.train.output_dir = str(place.folder)
    cfg.train.log_period = max(1, cfg.train.max_iter // _PROGRESS_LINES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with RunLog(console="progress") as log, _indented_progress():
        return _run_phases(cfg, config_file, place, device, log)


def _run_phases(cfg: DictConfig, config_file: str, place: "Place", device: str, log: RunLog) -> dict[str, Any]:
    checkpoint, pictures = place.folder / _CHECKPOINT, place.folder / _PICTURES
    phases = _Phases(count=4)
    with phases("dataset"):
        num_images, datasets = _make_datasets(cfg, say=phases.say)
        phases.say(f"{num_images['train']} images to train on, {num_images['test']} to test")
    place.folder.mkdir(parents=True, exist_ok=True)
    if not place.finished:
        _write_state(place, finished=False)
    log.open_file(place.folder)
    with phases("training"):
        _train(cfg, place, device=device, say=phases.say)
    with phases("evaluation"):
        metrics = _evaluate(cfg, checkpoint, device=device)
    with phases("pictures"):
        _draw(cfg, checkpoint, pictures, device=device)
    ap, ap50 = (_percent(metrics[f"bbox/{name}"]) for name in ("AP", "AP50"))
    print(
        f"""
AP      {ap}   (COCO's, mean over IoU .50:.95, on {num_images["test"]} images it was not trained on)
AP50    {ap50}

pictures    {pictures}
checkpoint  {checkpoint}
log         {place.folder / "log.txt"}
time        {_duration(sum(phases.seconds.values()))}

Next:
{_next_commands(cfg, config_file, checkpoint, datasets)}""",
        flush=True,
    )
    return {
        "results": metrics,
        "checkpoint": str(checkpoint),
        "pictures": str(pictures),
        "device": device,
        "steps": cfg.train.max_iter,
        "seconds": phases.seconds,
    }


# --------------------------------------------------------------------------------------------------------- the folder


@dataclass(frozen=True)
class Place:
    """Where a demo goes. ``resume``, ``finished``: an unfinished or finished demo with these settings is there."""

    folder: Path
    settings: str
    resume: bool = False
    finished: bool = False


def choose_folder(output: str | os.PathLike, *, settings: str) -> Place:
    """The output folder, or the first of ``<output>-2``, ... that is free or holds a demo with these settings."""
    output, number = Path(output), 1
    while True:
        folder = output if number == 1 else output.with_name(f"{output.name}-{number}")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return Place(folder, settings)
        state = _read_state(folder)
        if state.get("settings") == settings:
            finished = bool(state.get("finished")) and (folder / _CHECKPOINT).is_file()
            return Place(folder, settings, resume=not finished, finished=finished)
        number += 1


def _fingerprint(cfg: DictConfig) -> str:
    """Of all settings: those of a checkpoint have to agree with the config's."""

    def name(thing: Any) -> str:  # of the classes and functions that a config builds with
        thing = thing if hasattr(thing, "__qualname__") else type(thing)
        return f"{thing.__module__}.{thing.__qualname__}"

    settings = OmegaConf.to_container(cfg, resolve=True)
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=name).encode()).hexdigest()


def _read_state(folder: Path) -> dict[str, Any]:
    """What a demo noted in this folder; nothing if there was none."""
    try:
        state = json.loads((folder / _STATE_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write_state(place: Place, *, finished: bool) -> None:
    write_json(place.folder / _STATE_FILE, {"settings": place.settings, "finished": finished})


# --------------------------------------------------------------------------------------------------------- the phases


class _Phases:
    """Prints a heading and the time of each phase."""

    def __init__(self, *, count: int):
        self.seconds: dict[str, float] = {}
        self._count = count

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        print(f"\n[{len(self.seconds) + 1}/{self._count}] {name}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.say(f"done in {_duration(self.seconds[name])}")

    def say(self, text: str) -> None:
        print(f"      {text}", flush=True)


def _make_datasets(cfg: DictConfig, *, say: Callable[[str], None]) -> tuple[dict[str, int], Path | None]:
    """Written on first use. Returns the numbers of images, and the folder if it is not where detectron2 looks."""
    names = {split: dataset_names(cfg.dataloader[split]) for split in ("train", "test")}
    fallback = None
    try:
        num_images = _count_images(names)
    except OSError as error:
        if not {*names["train"], *names["test"]} <= DEFAULT_DATASETS.keys():
            raise
        fallback = Path(_FALLBACK_DATASETS).absolute()
        say(f"{error.filename}: {error.strerror}")
        say(f"writing it to {fallback} instead")
        for name, spec in DEFAULT_DATASETS.items():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
            register_shapes(name, seed=spec.seed, num_images=spec.num_images, size=spec.size, root=fallback)
        num_images = _count_images(names)
    return num_images, fallback


def _count_images(names: dict[str, list[str]]) -> dict[str, int]:
    return {split: sum(len(DatasetCatalog.get(name)) for name in names[split]) for split in names}


def _train(cfg: DictConfig, place: Place, *, device: str, say: Callable[[str], None]) -> None:
    steps = cfg.train.max_iter
    if place.finished:
        say(f"{place.folder} holds a finished demo of {steps} steps; not trained again (delete it to start anew)")
        return
    say(f"{steps} steps on {'the GPU' if device == 'cuda' else 'the CPU (no GPU found)'}, into {place.folder}")
    if place.resume:
        say("an interrupted demo is there: resuming it, if it got as far as its first checkpoint")
    cfg = copy.deepcopy(cfg)
    del cfg.dataloader.evaluator  # evaluation is a phase of its own
    train(cfg, resume=(place.folder / "last_checkpoint").is_file(), device=device)
    _write_state(place, finished=True)


def _evaluate(cfg: DictConfig, checkpoint: Path, *, device: str) -> dict[str, float]:
    cfg = copy.deepcopy(cfg)
    cfg.train.init_checkpoint = str(checkpoint)
    return evaluate(cfg, device=device)


def _draw(cfg: DictConfig, checkpoint: Path, pictures: Path, *, device: str, num_images: int = 12) -> None:
    """A contact sheet of the first images of the test dataset."""
    dataset_dicts = instantiate(cfg.dataloader.test.dataset)[:num_images]
    predictor = Predictor(checkpoint, config=cfg, device=device)
    predictions = predictor([image["file_name"] for image in dataset_dicts])
    metadata = MetadataCatalog.get(dataset_names(cfg.dataloader.test)[0])
    draw_contact_sheet(dataset_dicts, predictions, metadata, pictures)


@contextlib.contextmanager
def _indented_progress() -> Iterator[None]:
    """Progress lines belong under the heading of their phase."""

    def indent(record: logging.LogRecord) -> bool:
        record.msg = f"      {record.msg}"
        return True

    with contextlib.ExitStack() as stack:
        for logger in (training_progress, evaluation_progress):
            logger.addFilter(indent)
            stack.callback(logger.removeFilter, indent)
        yield


# ------------------------------------------------------------------------------------------------------------ the end


def _next_commands(cfg: DictConfig, config_file: str, checkpoint: Path, datasets: Path | None) -> str:
    """For the shell. ``datasets``: the folder of the demo's images if it is not where detectron2 looks."""
    dinox_command = _command()
    here = dinox_command if datasets is None else f"DETECTRON2_DATASETS={shlex.quote(str(datasets))} {dinox_command}"
    config = shlex.quote(str(config_file))
    weights = shlex.quote(f"train.init_checkpoint={checkpoint}")
    longer = shlex.quote(f"train.output_dir={checkpoint.parent}-longer")
    images = MetadataCatalog.get(dataset_names(cfg.dataloader.test)[0]).image_root
    return f"""\
  {dinox_command} predict {shlex.quote(images)} --weights {shlex.quote(str(checkpoint))}
  {here} eval --config-file {config} {weights}
  {here} train --config-file {config} train.max_iter={2 * cfg.train.max_iter} {longer}
  {dinox_command} train --config-file dino/dino_r50_4scale_12ep --num-gpus 8   # COCO: $DETECTRON2_DATASETS/coco"""


def _percent(metric: float) -> str:
    return f"{metric:.1f} %"


def _command() -> str:
    """How to call dinox from this shell."""
    beside = Path(sys.executable).with_name("dinox")
    on_path = shutil.which("dinox")
    if on_path and Path(on_path).resolve() == beside.resolve():
        return "dinox"
    if beside.is_file():
        return shlex.quote(os.path.relpath(beside))
    return f"{shlex.quote(os.path.relpath(sys.executable))} -m dinox"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
