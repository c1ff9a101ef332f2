"""Datasets, weights and room on the disks."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from iopath.common.file_io import get_cache_dir

from dinox.utils.environment_report import Problem, Section

DATASETS = (
    "dinox_shapes_train",
    "dinox_shapes_val",
    "coco_2017_train",
    "coco_2017_val",
    "lvis_v1_train",
    "lvis_v1_val",
)
"""What is looked for."""

_MADE_ON_DEMAND = "dinox_shapes"
_WEIGHT_ENDINGS = (".pth", ".pkl", ".safetensors", ".pt")
_LISTED = 10

_LEAST_FREE = 2 * 2**30
"""Less room than this is soon filled by checkpoints, of which a training run keeps five: 0.6 GB each for ResNet-50."""

_LEAST_SHARED = 256 * 2**20
"""The workers of a data loader hand over images through shared memory; containers have 64 MiB unless told."""


def datasets_section(environ: Mapping[str, str] = os.environ) -> Section:
    section = Section("datasets")
    root = Path(environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    source = "DETECTRON2_DATASETS" if "DETECTRON2_DATASETS" in environ else "detectron2's default; DETECTRON2_DATASETS"
    section.facts.append(("folder", f"{root.absolute()} ({source})"))
    if "DETECTRON2_DATASETS" in environ and not root.is_dir():
        section.problems.append(
            Problem(f"DETECTRON2_DATASETS={root} is no folder", "create it, or set the variable before Python starts")
        )
    for name in DATASETS:
        if name in DatasetCatalog.list():
            state, problem = _state(name)
            section.facts.append((name, state))
            section.problems.extend([problem] if problem else [])
    return section


def _state(name: str) -> tuple[str, Problem | None]:
    """What is there of a dataset, and what is wrong if it is a part only."""
    metadata = MetadataCatalog.get(name)
    json_file, images = metadata.get("json_file"), metadata.get("image_root")
    has_json = json_file is not None and os.path.isfile(json_file)
    has_images = images is not None and os.path.isdir(images) and any(os.scandir(images))
    if has_json and has_images:
        return f"found: {json_file}", None
    if not has_json and not has_images:
        if name.startswith(_MADE_ON_DEMAND):
            return "not yet: it is written when it is first used", None
        return f"not found: {json_file}", None
    missing, there = (images, json_file) if has_json else (json_file, images)
    if not has_json and name.startswith("lvis"):  # whose images are COCO's
        return f"not found: {json_file}", None
    return f"incomplete: no {missing}", Problem(
        f"dataset {name} is incomplete: {there} is there, {missing} is not", "fetch the rest, or correct the paths"
    )


def weights_section() -> Section:
    cache = Path(get_cache_dir())
    section = Section("cached weights", [("folder", str(cache))])
    files = sorted(path for path in cache.rglob("*") if path.suffix in _WEIGHT_ENDINGS) if cache.is_dir() else []
    for path in files[:_LISTED]:
        section.facts.append((path.name, f"{path.stat().st_size / 2**20:.0f} MiB ({path.parent.relative_to(cache)})"))
    if len(files) > _LISTED:
        section.facts.append(("", f"and {len(files) - _LISTED} more"))
    if not files:
        section.facts.append(("", "none yet: backbones are fetched when a config first asks for them"))
    return section


def disk_section() -> Section:
    section = Section("disks")
    free = shutil.disk_usage(".").free
    section.facts.append(("here", f"{free / 2**30:.0f} GiB free ({Path.cwd()})"))
    if free < _LEAST_FREE:
        section.problems.append(
            Problem(f"{free / 2**30:.1f} GiB are free in {Path.cwd()}", "make room, or train into another folder")
        )
    if not os.access(".", os.W_OK):
        section.facts.append(("", "cannot be written: give train.output_dir when you train"))
    if os.path.isdir("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm").total
        section.facts.append(("/dev/shm", f"{shared / 2**20:.0f} MiB, for the workers of data loaders"))
        if shared < _LEAST_SHARED:
            section.problems.append(
                Problem(
                    f"/dev/shm has {shared / 2**20:.0f} MiB: workers of data loaders die when it is full",
                    "start the container with --shm-size=8g, or train with dataloader.train.num_workers=0",
                )
            )
    return section
