"""The "strong baseline", row 3 of the paper's table 4: pure query selection, look forward once, plain denoising."""

from detectron2.config import LazyCall as L

from dinox.modeling import SelectedContent

from .ablation_dn import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.matching.content = L(SelectedContent)()
model.decoder.look_forward = "once"

train.output_dir = "./output/dino_ablation_pure_selection"
