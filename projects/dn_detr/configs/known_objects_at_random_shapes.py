"""A small DN-Deformable-DETR for progressive inference, on the embedded dataset: any object may be known, of any class.

Not in the paper, which leaves progressive inference to future work (section 5.7.2).
"""

from detectron2.config import LazyCall as L

from dinox.modeling import SplitAtRandom

from .known_objects_shapes import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.split = L(SplitAtRandom)(most=1.0)

dataloader.evaluator.classes = None

train.output_dir = "./output/known_objects_at_random_shapes"
