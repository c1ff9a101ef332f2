"""DETR with denoising of embedded boxes, ResNet-50, 300 epochs."""

from detectron2.config import LazyCall as L

from dinox.modeling import SummedEmbedding

from ....configs.common.models.denoising import denoising as _denoising
from ...detr.configs.detr_r50_300ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.denoising = _denoising
model.query_groups.denoising.placement = L(SummedEmbedding)(embed_dim="${....embed_dim}")

train.output_dir = "./output/dn_vanilla_detr_r50_300ep"
