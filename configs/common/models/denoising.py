"""DN-DETR's denoising, for any detector: ``model.query_groups.denoising = denoising`` (Li et al. 2022, section 4).

The label embedding has an indicator, which is 0 in the matching queries' content where that starts at zero. Detectors
whose queries are not anchor boxes take a ``placement`` too.
"""

from detectron2.config import LazyCall as L

from dinox.modeling import CenterShiftAndScale, DenoisingQueries, FixedGroups, LabelEmbedding

denoising = L(DenoisingQueries)(
    num_classes="${...num_classes}",
    label_embedding=L(LabelEmbedding)(num_classes="${....num_classes}", embed_dim="${....embed_dim}", indicator=True),
    box_noise=L(CenterShiftAndScale)(center_shift=0.4, scale=0.4),
    groups=L(FixedGroups)(num_groups=5),
    flip_probability=0.2,
    max_queries=1000,
)
