"""One row per config for the tables of all configs: what it is made of, how large it is, which AP is known."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from dinox import model_zoo
from dinox.analysis import DETECTION_SIZE, count_parameters, measure_complexity
from dinox.modeling import DetectionTransformer, drop_training_parts
from dinox.utils.json_files import write_json

# Slots of the model that the table has columns for, in the order of the data's way through them.
SLOTS = {
    "backbone": "backbone",
    "encoder": "encoder",
    "query_selection": "query selection",
    "query_groups": "query groups",
    "decoder": "decoder",
    "criterion": "losses",
}
# Slots that are not worth a word while this is in them.
USUAL = {"memory_builder": "MemoryBuilder", "heads": "PredictionHeads", "postprocess": "TopKDetections"}
# Slots and query groups that GFLOPs do not depend on.
WITHOUT_GFLOPS = ("auxiliary_heads", "criterion", "postprocess")
OTHER_QUERIES = ("denoising", "split", "visibility")
# What parts do in training alone, or how they start.
TRAINING = ("dropout", "drop_path", "freeze_at", "gradient_checkpointing", "more_in_training", "std")
NONE = "-"


@dataclass(frozen=True)
class Row:
    """One config. parts: column -> text. model: see ``hash_model``. gflops: None where not counted yet."""

    project: str
    config: str
    parts: dict[str, str]
    data: str
    epochs: float | None
    parameters: int
    model: str
    gflops: float | None
    published: Mapping[str, Any]
    measured: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.project}/{self.config}"


# -------------------------------------------------------------------------------------------- what a config is made of


def describe_parts(model: DictConfig) -> dict[str, str]:
    """Column -> the parts of a model in a few words: names of classes, with the numbers that tell configs apart."""
    parts = {column: _describe(slot, model.get(slot)) for slot, column in SLOTS.items()}
    others = [
        _name(node)
        for slot, node in model.items()
        if slot not in SLOTS and _is_part(node) and _name(node) != USUAL.get(slot)
    ]
    return parts | {"other parts": ", ".join(others)}


def _describe(slot: str, node: Any) -> str:
    if not _is_part(node):
        return NONE
    if slot == "backbone":
        return _describe_backbone(node)
    if slot == "query_groups":
        return "; ".join(f"{name}: {_inner(group)}" for name, group in node.items() if _is_part(group))
    if slot == "criterion":
        return ", ".join(_name(part) for key, part in node.items() if key.endswith("_loss") and _is_part(part))
    layers = f"{node.num_layers} x " if "num_layers" in node else ""
    variant = ""
    if "look_forward" in node:
        variant = f", look forward {node.look_forward}" if node.look_forward else ", boxes not refined"
    wrapped = f"({_describe(slot, node[slot])})" if _is_part(node.get(slot)) else ""  # a part around another one
    return f"{layers}{_name(node)}{variant}{wrapped}"


def _describe_backbone(node: DictConfig) -> str:
    body = node
    while "bottom_up" in body:
        body = body.bottom_up
    body = body.get("network", body)  # of a plain vision transformer
    resnet_depth = body.get("depth") if _name(body) == "build_resnet" else OmegaConf.select(body, "stages.depth")
    if resnet_depth is not None:
        name = f"ResNet-{resnet_depth}"
    else:
        name = body.get("model_name") or f"{_name(body).removeprefix('build_')} of {body.embed_dim} channels"
    return f"{name}, {node.num_levels} levels" if "num_levels" in node else name


def _inner(group: DictConfig) -> str:
    """The parts of a query group; the group's own class where it has none."""
    return ", ".join(_name(part) for part in group.values() if _is_part(part)) or _name(group)


def _is_part(node: Any) -> bool:
    return isinstance(node, DictConfig) and "_target_" in node


def _name(node: DictConfig) -> str:
    return _dotted(node._target_).rpartition(".")[2]


def _dotted(target: Any) -> str:
    return target if isinstance(target, str) else f"{target.__module__}.{target.__qualname__}"


def hash_model(cfg: DictConfig) -> str:
    """The same for models that detect alike: whose configs say the same, with all references followed."""
    model = OmegaConf.to_container(cfg.model, resolve=True)
    detecting = {slot: _detecting(node) for slot, node in model.items() if slot not in WITHOUT_GFLOPS}
    for slot in OTHER_QUERIES:
        detecting.get("query_groups", {}).pop(slot, None)
    text = json.dumps(detecting, sort_keys=True, default=_dotted)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _detecting(node: Any) -> Any:
    """A part of a config without what is for training only."""
    if not isinstance(node, dict):
        return [_detecting(item) for item in node] if isinstance(node, list) else node
    return {key: _detecting(item) for key, item in node.items() if key not in TRAINING and not _is_for_training(item)}


def _is_for_training(node: Any) -> bool:
    target = node.get("_target_") if isinstance(node, dict) else None
    return getattr(locate(target) if isinstance(target, str) else target, "training_only", False)


def count_on_meta(cfg: DictConfig) -> int:
    """Parameters of what detects, without memory for them."""
    with torch.device("meta"):
        model = instantiate(cfg.model)
    drop_training_parts(model)
    return count_parameters(model)


# ----------------------------------------------------------------------------------------------------------- the rows


def collect(root: Path) -> list[Row]:
    """All configs of the zoo. Raises ValueError for results that name no config or lack a field."""
    names = model_zoo.list_configs()
    counted = {entry["model"]: entry["gflops"] for entry in read_complexity(root).values()}
    results = {
        project: read_results(root / "projects" / project / "results.yaml", configs=set(own))
        for project, own in _by_project(names).items()
    }
    rows = []
    for name in names:
        cfg = model_zoo.get_config(name)
        project, _, config = name.partition("/")
        model = hash_model(cfg)
        rows.append(
            Row(
                project=project,
                config=config,
                parts=describe_parts(cfg.model),
                data=_datasets(cfg),
                epochs=OmegaConf.select(cfg, "schedule.epochs"),
                parameters=count_on_meta(cfg),
                model=model,
                gflops=counted.get(model),
                published=results[project]["published"].get(config, {}),
                measured=results[project]["measured"].get(config, {}),
            )
        )
    return rows


def read_results(file: Path, *, configs: set[str]) -> dict[str, dict[str, dict]]:
    """published and measured, by config. ``configs``: the project's. Raises ValueError naming file and entry."""
    content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = {}
    for kind, fields in (("published", {"ap", "source"}), ("measured", {"ap", "command", "machine", "date"})):
        found[kind] = content.get(kind) or {}
        for config, entry in found[kind].items():
            if config not in configs:
                raise ValueError(f"{file}: {kind}: no config {config!r}; expected one of {', '.join(sorted(configs))}")
            missing = sorted(fields - entry.keys())
            if missing:
                raise ValueError(f"{file}: {kind}: {config}: {', '.join(missing)} missing; a figure without is none")
    return found


def _by_project(names: Iterable[str]) -> dict[str, list[str]]:
    projects: dict[str, list[str]] = {}
    for name in names:
        project, _, config = name.partition("/")
        projects.setdefault(project, []).append(config)
    return projects


def _datasets(cfg: DictConfig) -> str:
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    return NONE if names is None else names if isinstance(names, str) else ", ".join(names)


# ----------------------------------------------------------------------------------------------------------- GFLOPs


def _complexity_file(root: Path) -> Path:
    return root / "projects" / "complexity.json"


def read_complexity(root: Path) -> dict[str, dict]:
    file = _complexity_file(root)
    return json.loads(file.read_text(encoding="utf-8"))["configs"] if file.is_file() else {}


def count_gflops(rows: Iterable[Row], *, recount: bool) -> dict[str, float | None]:
    """Hash of the model -> GFLOPs, each counted once; prints what it counts.

    None for another meta-architecture than ours: the box head of a two-stage detector works on as many regions as its
    weights propose, and there are no weights here.
    """
    counted: dict[str, float | None] = {}
    for row in rows:
        if row.model in counted:
            continue
        if row.gflops is None or recount:
            cfg = model_zoo.get_config(row.name)
            if cfg.model["_target_"] is not DetectionTransformer:
                counted[row.model] = None
                continue
            print(f"counting {row.name}", flush=True)
            model = instantiate(cfg.model).to("cpu")
            counted[row.model] = round(measure_complexity(model).gflops[""], 2)
        else:
            counted[row.model] = row.gflops
    return counted


def write_complexity(rows: Iterable[Row], counted: Mapping[str, float | None], root: Path) -> None:
    configs = {row.name: {"model": row.model, "gflops": counted[row.model]} for row in rows}
    write_json(_complexity_file(root), {"size": list(DETECTION_SIZE), "configs": configs})
