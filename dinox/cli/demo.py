"""dinox demo: from nothing to a trained detector and pictures, on a dataset that dinox draws itself."""

import argparse
import contextlib
import copy
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_common_arguments
from .running import check_json_target, guarded

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = "train a small DINO on a synthetic dataset, evaluate it and draw its detections"
CONFIG = "dino/dino_demo"
DEFAULT_OUTPUT = "output/demo"

_STATE_FILE, _PICTURES, _CHECKPOINT = "demo.json", "detections.png", "model_final.pth"
_PROGRESS_LINES = 20


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
        from dinox.utils.json_files import write_json

        write_json(args.json_file, {"command": "demo"} | results)


def run_demo(
    *, output: str | os.PathLike = DEFAULT_OUTPUT, steps: int | None = None, config_file: str = CONFIG
) -> dict[str, Any]:
    """Dataset, training, evaluation, pictures. Prints its progress; details go to ``log.txt`` in the output folder.

    An interrupted demo is resumed from its last checkpoint. A finished one is not trained again, only evaluated and
    drawn. A folder that holds something else is left alone: the demo then goes to the next free ``<output>-2``,
    ``-3``, ...

    Returns metrics, paths and seconds per phase. Raises ValueError if ``steps`` is not above 0.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"--steps: expected a number above 0, got {steps}")
    print("dinox demo: a small DINO learns to find shapes in images that dinox draws itself", flush=True)
    import torch

    from dinox.config import load_config
    from dinox.engine.logs import RunLog
    from dinox.utils.json_files import write_json

    cfg = load_config(config_file)
    if steps is not None:
        cfg.train.max_iter = steps
    place = choose_folder(output, steps=cfg.train.max_iter)
    if place.folder != Path(output):
        print(f"{output} holds something else, or a demo of another length: going to {place.folder}", flush=True)
    cfg.train.output_dir = str(place.folder)
    cfg.train.log_period = max(1, cfg.train.max_iter // _PROGRESS_LINES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with RunLog(console="progress") as log, _indented_progress():
        place.folder.mkdir(parents=True, exist_ok=True)
        write_json(place.folder / _STATE_FILE, {"steps": cfg.train.max_iter})
        log.open_file(place.folder)
        return _run_phases(cfg, config_file, place, device)


def _run_phases(cfg: "DictConfig", config_file: str, place: "Place", device: str) -> dict[str, Any]:
    checkpoint, pictures = place.folder / _CHECKPOINT, place.folder / _PICTURES
    phases = _Phases(count=4)
    with phases("dataset"):
        num_images = _make_datasets(cfg)
        phases.say(f"{num_images['train']} images to train on, {num_images['test']} to test")
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
{_next_commands(cfg, config_file, checkpoint)}""",
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
    """Where a demo goes. ``resume``, ``finished``: the folder holds an unfinished or finished demo of as many steps."""

    folder: Path
    resume: bool = False
    finished: bool = False


def choose_folder(output: str | os.PathLike, *, steps: int) -> Place:
    """The output folder, or the first of ``<output>-2``, ``-3``, ... that is free or holds a demo of as many steps."""
    output, number = Path(output), 1
    while True:
        folder = output if number == 1 else output.with_name(f"{output.name}-{number}")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return Place(folder)
        if _steps_of(folder) == steps:
            finished = (folder / _CHECKPOINT).is_file()
            return Place(folder, resume=not finished, finished=finished)
        number += 1


def _steps_of(folder: Path) -> int | None:
    """For how many steps a demo was started in this folder; None if there was none."""
    try:
        return json.loads((folder / _STATE_FILE).read_text())["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


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


def _make_datasets(cfg: "DictConfig") -> dict[str, int]:
    """Written on first use. Returns the numbers of images."""
    from detectron2.data import DatasetCatalog

    from dinox.data.checks import dataset_names

    return {
        split: sum(len(DatasetCatalog.get(name)) for name in dataset_names(cfg.dataloader[split]))
        for split in ("train", "test")
    }


def _train(cfg: "DictConfig", place: Place, *, device: str, say: Any) -> None:
    from dinox.engine import train

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


def _evaluate(cfg: "DictConfig", checkpoint: Path, *, device: str) -> dict[str, float]:
    from dinox.engine import evaluate

    cfg = copy.deepcopy(cfg)
    cfg.train.init_checkpoint = str(checkpoint)
    return evaluate(cfg, device=device)


def _draw(cfg: "DictConfig", checkpoint: Path, pictures: Path, *, device: str, num_images: int = 12) -> None:
    """A contact sheet of the first images of the test dataset."""
    from itertools import islice

    import torch
    from detectron2.config import instantiate
    from detectron2.data import MetadataCatalog

    from dinox.checkpoint import load_weights
    from dinox.data.checks import dataset_names
    from dinox.evaluation import draw_contact_sheet

    model = instantiate(cfg.model).to(device).eval()
    load_weights(model, str(checkpoint), purpose="evaluate")
    dataset_dicts = instantiate(cfg.dataloader.test.dataset)[:num_images]
    with torch.no_grad():
        batches = islice(instantiate(cfg.dataloader.test), num_images)
        predictions = [{"instances": found["instances"].to("cpu")} for batch in batches for found in model(batch)]
    metadata = MetadataCatalog.get(dataset_names(cfg.dataloader.test)[0])
    draw_contact_sheet(dataset_dicts, predictions, metadata, pictures)


@contextlib.contextmanager
def _indented_progress() -> Iterator[None]:
    """Progress lines belong under the heading of their phase."""
    from dinox.utils.progress import evaluation_progress, training_progress

    def indent(record: logging.LogRecord) -> bool:
        record.msg = f"      {record.msg}"
        return True

    with contextlib.ExitStack() as stack:
        for logger in (training_progress, evaluation_progress):
            logger.addFilter(indent)
            stack.callback(logger.removeFilter, indent)
        yield


# ------------------------------------------------------------------------------------------------------------ the end


def _next_commands(cfg: "DictConfig", config_file: str, checkpoint: Path) -> str:
    command, longer = _command(), f"{checkpoint.parent}-longer"
    return "\n".join(
        f"  {command} {arguments}"
        for arguments in (
            f"eval --config-file {config_file} train.init_checkpoint={checkpoint}",
            f"train --config-file {config_file} train.max_iter={2 * cfg.train.max_iter} train.output_dir={longer}",
            "train --config-file dino/dino_r50_4scale_12ep --num-gpus 8   # needs COCO in $DETECTRON2_DATASETS/coco",
        )
    )


def _percent(metric: float) -> str:
    return f"{metric:.1f} %"


def _command() -> str:
    """How to call dinox from this shell."""
    beside = Path(sys.executable).with_name("dinox")
    on_path = shutil.which("dinox")
    if on_path and Path(on_path).resolve() == beside.resolve():
        return "dinox"
    if beside.is_file():
        return os.path.relpath(beside)
    return f"{os.path.relpath(sys.executable)} -m dinox"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
