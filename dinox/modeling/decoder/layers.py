"""What all decoders have in common: the queries' way through the layers.

Legend: B images, N queries of all groups, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dinox.structures import QueryGroup

Refine = Callable[[int, Tensor, Tensor], Tensor]  # (layer, states (B, N, D), anchors) -> anchors (B, N, 4)

LookForward = Literal["once", "twice"]
"""Which boxes a layer's prediction starts from. "twice": the previous layer's refined boxes with their gradient, so
that a layer also learns from the next layer's loss (DINO, equation 2); "once": the same without gradient (Deformable
DETR). None in its place: from the initial anchors, in every layer.
"""

Positions = Literal["anchors", "scaled_anchors", "given"]
"""Where positional queries come from. "anchors": sine embeddings of the anchors through a network; "scaled_anchors":
these times a function of the layer's states, from the second layer on (DAB-DETR); "given": the query groups have them.
"""


@dataclass(frozen=True)
class DecoderOutput:
    """states: layers x (B, N, D), normed where the decoder has a norm. anchors: layers x (B, N, 4), (B, N, 2) or None,
    those that the layer's boxes start from."""

    states: list[Tensor]
    anchors: list[Tensor | None]


def decode_layer_by_layer(
    groups: Sequence[QueryGroup],
    num_layers: int,
    layer: Callable[[int, Tensor, Tensor | None], Tensor],
    *,
    refine: Refine,
    look_forward: LookForward | None,
    norm: Callable[[Tensor], Tensor] | None = None,
) -> DecoderOutput:
    """``layer(i, states, anchors)`` -> states (B, N, D). ``refine(i, states, anchors)`` moves anchors (the box head of
    the layer). ``norm``: of every layer's states, on their way to the heads only.
    """
    states = torch.cat([group.content for group in groups], dim=1)
    anchors = join_anchors(groups)
    all_states, all_anchors = [], [anchors]
    for i in range(num_layers):
        states = layer(i, states, anchors)
        all_states.append(states if norm is None else norm(states))
        if i + 1 == num_layers:
            break
        if look_forward is None:
            all_anchors.append(anchors)
            continue
        refined = refine(i, states, anchors)
        anchors = refined.detach()
        all_anchors.append(refined if look_forward == "twice" else anchors)
    return DecoderOutput(all_states, all_anchors)


def join_anchors(groups: Sequence[QueryGroup]) -> Tensor | None:
    """(B, N, 4) or (B, N, 2) of all groups, or None where no group has any."""
    if all(group.anchors is None for group in groups):
        return None
    return torch.cat([group.anchors for group in groups], dim=1)


def join_positions(groups: Sequence[QueryGroup]) -> Tensor:
    """(B, N, D) given positional queries of all groups."""
    return torch.cat([group.positions for group in groups], dim=1)


def check_groups(groups: Sequence[QueryGroup], *, anchor_dims: Sequence[int], positions: Positions) -> None:
    """Raise ValueError unless all groups have anchors of one of these widths (0: none), and positions if these are
    given.
    """
    for group in groups:
        width = 0 if group.anchors is None else group.anchors.shape[-1]
        if width not in anchor_dims:
            kinds = {0: "no anchors", 2: "anchor points (B, N, 2)", 4: "anchor boxes (B, N, 4)"}
            wanted = " or ".join(kinds[dim] for dim in anchor_dims)
            raise ValueError(
                f"this decoder needs {wanted}, but query group {group.name!r} has {kinds.get(width, width)}: give the "
                "group other anchors, or the model another decoder"
            )
        if (group.positions is not None) != (positions == "given"):
            has = "no positional queries" if group.positions is None else "positional queries of its own"
            raise ValueError(
                f"the decoder's positions are {positions!r}, but query group {group.name!r} has {has}: change "
                "model.decoder.positions, or the group's maker"
            )
    widths = {0 if group.anchors is None else group.anchors.shape[-1] for group in groups}
    if len(widths) > 1:
        raise ValueError(f"query groups {[g.name for g in groups]} have anchors of different kinds: {sorted(widths)}")


def check_choice(name: str, value: object, choices: object, *, or_none: bool = False) -> None:
    """Raise ValueError unless ``value`` is one of a Literal's."""
    known = [*get_args(choices), *([None] if or_none else [])]
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
