"""Group-DETR, for DAB-DETR: more groups of queries like the matching ones, each matched by itself (Chen et al. 2022).

model.query_groups.other_groups = other_groups
model.criterion.group_weights.update(group_weights)
"""

from detectron2.config import LazyCall as L

from dinox.modeling import LearnedAnchors, TrainingQueries, ZeroContent

_NUM_GROUPS = 11  # the matching queries are one of them

other_groups = L(TrainingQueries)(
    content=L(ZeroContent)(embed_dim="${....embed_dim}"),
    anchors=L(LearnedAnchors)(num_queries="${....num_queries}", start="normal", num_sets="${..num_groups}"),
    num_groups=_NUM_GROUPS - 1,
)
group_weights = {"matching": 1 / _NUM_GROUPS, "other_groups": 1 - 1 / _NUM_GROUPS}  # the loss is the groups' mean
