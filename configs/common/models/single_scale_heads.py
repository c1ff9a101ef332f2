"""Co-DETR's auxiliary heads for encoders of one level (C5): the pyramid is made from that (section 3.2).

As ``auxiliary_heads``, whose positive queries these are.
"""

from detectron2.config import LazyCall as L

from dinox.modeling import SingleScalePyramid

from .auxiliary_heads import (
    auxiliary_heads,
    embedded_positive_atss,
    embedded_positive_roi,
    giou_cost,
    giou_loss,
    positive_atss,
    positive_roi,
)

auxiliary_heads.adapter = L(SingleScalePyramid)(embed_dim="${...embed_dim}", num_upsampled=2, num_downsampled=2)
auxiliary_heads.atss.num_levels = 5
