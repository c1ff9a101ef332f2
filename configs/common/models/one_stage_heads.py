"""More auxiliary heads, beside those of ``auxiliary_heads``, and their positive queries for decoders that take given
positional queries: ``model.auxiliary_heads.update(heads)`` and ``model.query_groups.update(embedded_positives)``."""

from detectron2.config import LazyCall as L

from dinox.modeling import FCOSHead, GFLHead, PAAHead, PositiveQueries, RetinaNetHead

from .auxiliary_heads import embedded_positive_atss as _of_atss

_pyramid = {
    "embed_dim": "${...embed_dim}",
    "num_classes": "${...num_classes}",
    "num_levels": "${dinox.one_more:${...backbone.num_levels}}",
}
_queries = {"embedding": _of_atss.embedding, "padding": _of_atss.padding}

heads = {
    "paa": L(PAAHead)(**_pyramid),
    "retinanet": L(RetinaNetHead)(**_pyramid),
    "fcos": L(FCOSHead)(**_pyramid),
    "gfl": L(GFLHead)(**_pyramid),
}
embedded_positives = {
    "positive_paa": L(PositiveQueries)(head="paa", **_queries),
    "positive_retinanet": L(PositiveQueries)(head="retinanet", **_queries),
    "positive_fcos": L(PositiveQueries)(head="fcos", **_queries),
    "positive_gfl": L(PositiveQueries)(head="gfl", **_queries),
}
