"""The named container of query-group makers."""

import dataclasses

from torch import nn

from dinox.structures import QueryContext, QueryGroup


class QueryGroups(nn.ModuleDict):
    """Makers of query groups by name; a plain dict would not be instantiated by LazyConfig.

    ``QueryGroups(denoising=..., matching=...)``: groups stand in this order in the decoder, under these names. A maker
    that is None is left out, and one that returns None (denoising at inference) makes no group.
    """

    def __init__(self, **makers: nn.Module | None):
        super().__init__({name: maker for name, maker in makers.items() if maker is not None})

    def forward(self, context: QueryContext) -> list[QueryGroup]:
        groups = [(name, maker(context)) for name, maker in self.items()]
        return [dataclasses.replace(group, name=name) for name, group in groups if group is not None]
