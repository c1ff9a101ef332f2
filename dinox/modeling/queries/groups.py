"""The named container of query-group makers."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from torch import nn

from dinox.structures import QueryContext, QueryGroup


class QueryGroups(nn.Module):
    """Makers of query groups by name; a plain dict would not be instantiated by LazyConfig.

    ``QueryGroups(denoising=..., matching=...)``: groups stand in this order in the decoder, under these names. A maker
    that is None is left out, and one that returns None (denoising at inference) makes no group.

    label_embedding: one that several groups share (DN-DETR: denoising queries and the unknown class of matching
    queries); reaches them as ``context.label_embedding``. visibility: from the groups to groups with other rules of who
    sees whom; None: their own rules hold (DN-DETR, equation 7).
    """

    def __init__(
        self,
        *,
        label_embedding: nn.Module | None = None,
        visibility: Callable[[Sequence[QueryGroup]], list[QueryGroup]] | None = None,
        **makers: nn.Module | None,
    ):
        super().__init__()
        self.label_embedding = label_embedding
        self.visibility = visibility
        self._names = [name for name, maker in makers.items() if maker is not None]
        for name in self._names:
            self.add_module(name, makers[name])

    def forward(self, context: QueryContext) -> list[QueryGroup]:
        context = dataclasses.replace(context, label_embedding=self.label_embedding)
        made = [(name, self[name](context)) for name in self]
        groups = [dataclasses.replace(group, name=name) for name, group in made if group is not None]
        return groups if self.visibility is None else self.visibility(groups)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._names:
            raise KeyError(f"no query group {name!r}, only {self._names}")
        return getattr(self, name)

    def __delitem__(self, name: str) -> None:
        delattr(self, name)
        self._names.remove(name)


class FullVisibility:
    """Every query sees every other one: no attention mask. Leaks ground truth from denoising to matching queries (24.0
    AP instead of 43.4 in DN-DETR's table 5); what known objects are for (section 5.7.1).
    """

    def __call__(self, groups: Sequence[QueryGroup]) -> list[QueryGroup]:
        names = frozenset(group.name for group in groups)
        return [dataclasses.replace(g, sees=names - {g.name}, subgroup_size=None) for g in groups]
