"""The named container of query-group makers."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dinox.structures import BACKGROUND, MATCHING, QueryContext, QueryGroup, TargetView


class QueryGroups(nn.Module):
    """Makers of query groups by name; a plain dict would not be instantiated by LazyConfig.

    ``QueryGroups(denoising=..., matching=...)``: groups stand in this order in the decoder, under these names. A maker
    that is None is left out, and one that returns None (denoising at inference) makes no group.

    label_embedding: one that several groups share (DN-DETR: denoising queries and the unknown class of matching
    queries); reaches them as ``context.label_embedding``. anchor_embedding: likewise, from anchor boxes to positional
    queries (H-DETR: matching and one-to-many queries). visibility: from the groups to groups with other rules of who
    sees whom; None: their own rules hold (DN-DETR, equation 7). split: in training, which of the batch's objects each
    group learns (:mod:`dinox.modeling.queries.splits`); its maker sees no other ones. None: all groups learn all.
    """

    def __init__(
        self,
        *,
        label_embedding: nn.Module | None = None,
        anchor_embedding: nn.Module | None = None,
        visibility: Callable[[Sequence[QueryGroup]], list[QueryGroup]] | None = None,
        split: Callable[[QueryContext], Mapping[str, TargetView]] | None = None,
        **makers: nn.Module | None,
    ):
        super().__init__()
        self.label_embedding = label_embedding
        self.anchor_embedding = anchor_embedding
        self.visibility = visibility
        self.split = split
        self._names = [name for name, maker in makers.items() if maker is not None]
        for name in self._names:
            self.add_module(name, makers[name])

    def forward(self, context: QueryContext) -> list[QueryGroup]:
        context = dataclasses.replace(
            context, label_embedding=self.label_embedding, anchor_embedding=self.anchor_embedding
        )
        views = self._split(context)
        made = [self._make(name, context, views.get(name)) for name in self]
        groups = [group for group in made if group is not None]
        groups = groups if self.visibility is None else self.visibility(groups)
        _check_known_is_used(groups, context, self.split)
        _check_split_reaches(groups, views)
        return groups

    def _split(self, context: QueryContext) -> Mapping[str, TargetView]:
        if self.split is None or context.targets is None:
            return {}
        if context.proposals is not None:
            raise ValueError(
                "model.query_groups.split needs queries that are not selected: the encoder would learn to propose all "
                "objects, also those that matching queries are not to learn. Set model.query_selection=null"
            )
        return self.split(context)

    def _make(self, name: str, context: QueryContext, view: TargetView | None) -> QueryGroup | None:
        if view is not None:
            context = dataclasses.replace(context, targets=view(context.targets))
        group = self[name](context)
        return None if group is None else dataclasses.replace(group, name=name, target_view=view or group.target_view)

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

    Queries that are background by construction, such as the padded ones of images with fewer objects than others of the
    batch, hold nothing to be seen: nobody sees them, so that an image does not depend on its batch.
    """

    def __call__(self, groups: Sequence[QueryGroup]) -> list[QueryGroup]:
        names = frozenset(group.name for group in groups)
        return [
            dataclasses.replace(g, sees=names - {g.name}, subgroup_size=None, padding_mask=self._unseen(g))
            for g in groups
        ]

    @staticmethod
    def _unseen(group: QueryGroup) -> Tensor | None:
        if group.target_index is None:
            return group.padding_mask
        background = group.target_index == BACKGROUND  # (B, N)
        return background if group.padding_mask is None else background | group.padding_mask


def _check_split_reaches(groups: Sequence[QueryGroup], views: Mapping[str, TargetView]) -> None:
    """A group that matching queries see, and that the split does not know, would show them what they are to find."""
    matching = next((group for group in groups if group.name == MATCHING), None)
    if not views or matching is None:
        return
    for group in groups:
        if group.name in matching.sees and group.name not in views:
            raise ValueError(
                f"model.query_groups.split says nothing of query group {group.name!r}, which matching queries see: it "
                f"knows {sorted(views)}. Name the group of known objects 'denoising'"
            )


def _check_known_is_used(groups: Sequence[QueryGroup], context: QueryContext, split: Any) -> None:
    """What the user knows has to reach the matching queries; else the detections would be the same without it."""
    matching = next((group for group in groups if group.name == MATCHING), None)
    if matching is None:
        return
    if context.known is not None and context.known.max_count > 0 and not matching.sees:
        raise ValueError(
            "known objects (known_boxes) would change nothing: the matching queries of this model see no other ones. "
            "Use a model that was trained with known objects: model.query_groups.denoising and "
            "model.query_groups.visibility=FullVisibility, as in dn_detr/known_objects_70_30"
        )
    told = getattr(split, "known", None)  # of SplitByClass; other splits know objects of all classes
    if context.known is not None and told is not None:
        labels = context.known.labels[context.known.valid].tolist()
        strangers = sorted(set(labels) - set(told))
        if strangers:
            raise ValueError(
                f"known_labels: class {strangers[0]} is not one of the classes that this model was trained to be told: "
                f"{list(told)}"
            )
    if context.known_classes is not None and matching.only_class is None:
        raise ValueError(
            "known_classes would change nothing: the matching queries of this model take no labels. Use a model that "
            "was trained with known labels: model.query_groups.matching.known_labels=KnownLabelQueries, as in "
            "dn_detr/known_labels_10ep"
        )
