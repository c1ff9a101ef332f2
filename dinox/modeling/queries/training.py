"""Query groups that are there to train the model: each object is learned by several queries.

| detector | how |
|---|---|
| H-DETR | the next best proposals, with the objects repeated in the matching: ``repeats`` |
| Group-DETR | more groups of queries like the matching ones, each matched by itself: ``num_groups`` |

Legend: B images, N queries, D channels.
"""

from __future__ import annotations

from torch import nn

from dinox.modeling.queries.matching import RepeatedAnchors, SelectedAnchors
from dinox.structures import QueryContext, QueryGroup

GROUP_NAME = "one_to_many"


class TrainingQueries(nn.Module):
    """Queries beside the matching ones that exist in training alone, and that no other group sees.

    Each object is assigned to several of them: H-DETR repeats the objects in the matching (``repeats``), Group-DETR has
    several groups of queries that are matched by themselves and do not see each other (``num_groups``).

    content, anchors: as those of ``MatchingQueries``; in groups, of equally many queries, one group after the other.
    """

    training_only = True

    def __init__(self, *, content: nn.Module, anchors: nn.Module, repeats: int = 1, num_groups: int = 1):
        super().__init__()
        for name, value in (("repeats", repeats), ("num_groups", num_groups)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        selected = any(isinstance(module, SelectedAnchors) for module in anchors.modules())
        if num_groups > 1 and selected and not isinstance(anchors, RepeatedAnchors):
            raise ValueError(
                f"anchors: each of {num_groups} groups would get another part of the ranked proposals, of which small "
                f"images have few. Give all groups the same ones: RepeatedAnchors(anchors=..., times={num_groups})"
            )
        self.content, self.anchors = content, anchors
        self.repeats, self.num_groups = repeats, num_groups

    def forward(self, context: QueryContext) -> QueryGroup | None:
        if not self.training or context.targets is None:
            return None
        places = self.anchors(context)
        if places.size % self.num_groups:
            raise ValueError(
                f"{self.num_groups} groups cannot share {places.size} queries equally: give content and anchors "
                f"num_sets={self.num_groups}, or repeat the anchors as often"
            )
        return QueryGroup(
            GROUP_NAME,
            self.content(context, places.size),
            places.anchors,
            positions=places.positions,
            subgroup_size=None if self.num_groups == 1 else places.size // self.num_groups,
            padding_mask=places.padding_mask,
            repeats=self.repeats * self.num_groups,
        )
