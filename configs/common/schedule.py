"""How long to train, in epochs. Iterations follow from the sizes of dataset and batch, after all overrides."""

from detectron2.config import LazyCall as L

from dinox.engine.schedule import COCO_IMAGES_PER_EPOCH, step_schedule

schedule = {
    "epochs": 12,
    "drop_epochs": [11],
    "images_per_epoch": COCO_IMAGES_PER_EPOCH,
    "iterations_per_epoch": "${dinox.iterations:1,${schedule.images_per_epoch},${dataloader.train.total_batch_size}}",
    "iterations": (
        "${dinox.iterations:${schedule.epochs},${schedule.images_per_epoch},${dataloader.train.total_batch_size}}"
    ),
}

lr_multiplier = L(step_schedule)(epochs="${schedule.epochs}", drop_epochs="${schedule.drop_epochs}")
