"""Everything ``dinox analyze model`` tells about a detector, part by part."""

from dataclasses import dataclass

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dinox.analysis.activations import ActivationMemory, measure_activation_memory
from dinox.analysis.complexity import DETECTION_SIZE, measure_complexity
from dinox.analysis.inputs import OBJECTS_PER_IMAGE, synthetic_inputs
from dinox.analysis.parameters import ParameterCounts, count_parameters_by_part
from dinox.analysis.parts import BETWEEN
from dinox.analysis.timing import DEFAULT_REPETITIONS, PhaseTimes, Repetitions, profile_phases


@dataclass(frozen=True)
class ModelReport:
    """All measurements are by part of the model; the entry "" is the whole model.

    gflops: of detection on one image. activations: of a training step on ``batch_size`` images; detection, training:
    seconds, of ``batch_size`` images too, None without timing. precision: of the training step.
    """

    size: tuple[int, int]  # height, width
    batch_size: int
    objects_per_image: int
    device: str
    threads: int
    precision: str
    parameters: dict[str, ParameterCounts]
    gflops: dict[str, float]
    activations: ActivationMemory
    detection: PhaseTimes | None
    training: PhaseTimes | None


def analyze_model(
    cfg: DictConfig,
    *,
    size: tuple[int, int] = DETECTION_SIZE,
    batch_size: int = 1,
    timing: bool = True,
    repetitions: Repetitions = DEFAULT_REPETITIONS,
) -> ModelReport:
    """Build the model of a LazyConfig, with random weights, and measure it on images of noise.

    Args:
        cfg: with ``model``; ``optimizer`` (else AdamW) and ``train`` (device, amp) count where they are there.
        size: (height, width) of the images.
        timing: False leaves out what takes longest.

    Raises ValueError for a config without a model, and sizes and batches that are none.
    """
    if "model" not in cfg:
        raise ValueError(f"this config has no model: it is not one to analyze (found: {', '.join(cfg)})")
    if min(size) < 1 or batch_size < 1:
        raise ValueError(f"expected --size and --batch-size of at least 1, got {size[0]} {size[1]} and {batch_size}")
    device = _device(cfg)
    model = instantiate(cfg.model).to(device)
    inputs = synthetic_inputs(size=size, batch_size=batch_size, num_classes=cfg.model.get("num_classes", 1))
    precision = _precision(cfg)
    parameters = count_parameters_by_part(model, inputs[:1])
    gflops = measure_complexity(model, size=size).gflops
    activations = measure_activation_memory(model, inputs, precision=precision)
    detection = training = None
    if timing:
        detection = profile_phases(model, inputs, repetitions=repetitions)
        optimizer = build_optimizer(cfg, model)
        training = profile_phases(model, inputs, optimizer=optimizer, precision=precision, repetitions=repetitions)
    return ModelReport(
        size=size,
        batch_size=batch_size,
        objects_per_image=OBJECTS_PER_IMAGE,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        precision=precision,
        parameters=parameters,
        gflops=gflops,
        activations=activations,
        detection=detection,
        training=training,
    )


def report_rows(report: ModelReport) -> list[str]:
    """All parts and phases in the order in which they are at work."""
    parts = [name for name in report.parameters if name]
    timed = [] if report.training is None else [*report.detection.seconds, *report.training.seconds]
    before, after = timed[:1], timed[1:]  # a model begins with what comes before its first part
    kept = [BETWEEN] if BETWEEN in report.activations.parts else []
    return list(dict.fromkeys([*before, *parts, *kept, *after]))


def _device(cfg: DictConfig) -> torch.device:
    wanted = OmegaConf.select(cfg, "train.device") or "cuda"
    return torch.device(wanted if torch.cuda.is_available() else "cpu")


def _precision(cfg: DictConfig) -> str:
    enabled = OmegaConf.select(cfg, "train.amp.enabled")
    return OmegaConf.select(cfg, "train.amp.dtype") or "bf16" if enabled else "fp32"


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    if "optimizer" not in cfg:
        return torch.optim.AdamW(model.parameters())
    optimizer = cfg.optimizer.copy()
    optimizer.params.model = model
    return instantiate(optimizer)
