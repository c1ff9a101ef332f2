"""The scalar that a head's class activation map explains: what it says for its own positives.

Legend: B images, P samples of a head per image, K classes, M objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor, nn

from dinox.modeling.auxiliary.branches import DenseBranches, DensePredictions
from dinox.structures import BACKGROUND


@contextmanager
def watch_class_logits(head: nn.Module) -> Iterator[list[Tensor]]:
    """A list that a forward pass of an auxiliary head inside fills: class logits (B, P, K or more) of its samples.

    Of heads made of ``DenseBranches`` or detectron2's ``FastRCNNOutputLayers``, the latter of one image; the list stays
    empty for others.
    """
    found: list[Tensor] = []

    def of_branches(_module: nn.Module, _inputs: tuple, outputs: DensePredictions) -> None:
        found.append(outputs.logits)

    def of_boxes(_module: nn.Module, _inputs: tuple, outputs: tuple[Tensor, Tensor]) -> None:
        found.append(outputs[0][None])

    with ExitStack() as handles:
        for module in head.modules():
            for kind, record in ((DenseBranches, of_branches), (FastRCNNOutputLayers, of_boxes)):
                if isinstance(module, kind):
                    handles.callback(module.register_forward_hook(record).remove)
        yield found


def positive_score(logits: Tensor, target_index: Tensor, labels: Tensor) -> Tensor | None:
    """The mean logit of positives for the classes of their objects, as Grad-CAM takes scores before the softmax; here
    before the sigmoid, too. A scalar with gradient, or None without positives.

    logits: (P, K or more). target_index: (P,), -1 = background. labels: (M,) of the objects.
    """
    (positives,) = torch.nonzero(target_index != BACKGROUND, as_tuple=True)
    if len(positives) == 0:
        return None
    return logits[positives, labels[target_index[positives].long()]].mean()
