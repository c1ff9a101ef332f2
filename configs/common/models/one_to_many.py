"""H-DETR's one-to-many queries: the next best proposals after the matching ones, for models with query selection.

    model.query_groups.one_to_many = one_to_many
    model.query_selection.more_in_training = "${..query_groups.one_to_many.content.num_queries}"

or ``embedded_one_to_many`` where the decoder takes given positional queries. The paper's lambda, which is 1, is
``model.criterion.group_weights.one_to_many``.
"""

from detectron2.config import LazyCall as L

from dinox.modeling import EmbeddedAnchors, LearnedContent, SelectedAnchors, TrainingQueries

one_to_many = L(TrainingQueries)(
    content=L(LearnedContent)(num_queries=1500, embed_dim="${....embed_dim}"),
    anchors=L(SelectedAnchors)(first="${....num_queries}", num_queries="${..content.num_queries}"),
    repeats=6,
)

embedded_one_to_many = L(TrainingQueries)(
    content=L(LearnedContent)(num_queries=1500, embed_dim="${....embed_dim}", std=1.0),
    anchors=L(EmbeddedAnchors)(
        anchors=L(SelectedAnchors)(first="${.....num_queries}", num_queries="${...content.num_queries}")
    ),
    repeats=6,
)
