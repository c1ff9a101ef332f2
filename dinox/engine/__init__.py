"""Training and evaluation on detectron2's trainer."""

from dinox.engine.averaging import WeightAverage
from dinox.engine.micro_batches import MicroBatches
from dinox.engine.optimizer import ClippedAdamW, get_optimizer_params
from dinox.engine.schedule import cosine_schedule, step_schedule
from dinox.engine.stopping import TrainingStopped
from dinox.engine.trainer import Trainer
from dinox.engine.training import evaluate, train
from dinox.engine.yaml_trainer import DinoxTrainer

__all__ = [
    "ClippedAdamW",
    "DinoxTrainer",
    "MicroBatches",
    "Trainer",
    "TrainingStopped",
    "WeightAverage",
    "cosine_schedule",
    "evaluate",
    "get_optimizer_params",
    "step_schedule",
    "train",
]
