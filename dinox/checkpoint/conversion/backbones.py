"""Names of the pre-trained networks, alone in a file or inside a detector.

Ours are detectron2's ResNets, so its names are ours behind a prefix. A stage that detectron2 calls res2 is the first
one, ``layer1`` of torchvision and timm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names
from torch import Tensor

from dinox.checkpoint.conversion.rules import Ignore, Rename, Rule

PREFIX = "backbone.bottom_up."

_STAGES = range(1, 5)


def detectron2_resnet(theirs: str = "") -> list[Rule]:
    """``theirs``: what its names begin with."""
    shared = ["stem.conv1.weight", "stem.conv1.norm.{batch_norm}"]
    for layer in ("shortcut", "conv{k}"):
        shared += [f"res{{i}}.{{j}}.{layer}.weight", f"res{{i}}.{{j}}.{layer}.norm.{{batch_norm}}"]
    return [Rename(theirs + name, PREFIX + name) for name in shared]


def torchvision_resnet(theirs: str = "") -> list[Rule]:
    """``theirs``: what its names begin with."""
    pairs = [("conv1.weight", "stem.conv1.weight"), ("bn1.{batch_norm}", "stem.conv1.norm.{batch_norm}")]
    for stage in _STAGES:
        block, ours = f"layer{stage}.{{i}}.", f"res{stage + 1}.{{i}}."
        pairs += [
            (block + "conv{j}.weight", ours + "conv{j}.weight"),
            (block + "bn{j}.{batch_norm}", ours + "conv{j}.norm.{batch_norm}"),
            (block + "downsample.0.weight", ours + "shortcut.weight"),
            (block + "downsample.1.{batch_norm}", ours + "shortcut.norm.{batch_norm}"),
        ]
    return [Rename(theirs + name, PREFIX + own) for name, own in pairs]


def torchvision_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    return [*torchvision_resnet(), Ignore("fc.{affine}", "the classifier")]


def detectron2_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """detectron2's own conversions of torchvision's networks, and Caffe2's (MSRA) with translated names."""
    return [
        *detectron2_resnet(),
        Ignore("stem.fc.{affine}", "the classifier"),
        Ignore("fc1000.{affine}", "the classifier"),
        Ignore("stem.conv1.bias", "a bias before a norm, which detectron2 leaves out as well"),
    ]


def from_caffe2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Caffe2's names (``res2_0_branch2a_w``) as detectron2's. Names of anything else stay as they are.

    Norms of these networks are a scale and a shift; the statistics that a frozen norm has beside them become 0 and 1.
    """
    if not any(name.startswith("res") and name.endswith("_bn_s") for name in weights):
        return dict(weights)
    names = [name for name in weights if not name.endswith("_momentum")]
    renamed = {new: weights[old] for new, old in zip(convert_basic_c2_names(names), names, strict=True)}
    for name in [name for name in renamed if name.endswith(".norm.weight")]:
        norm = name.removesuffix("weight")
        renamed.setdefault(norm + "running_mean", torch.zeros_like(renamed[name]))
        renamed.setdefault(norm + "running_var", torch.ones_like(renamed[name]))
    return renamed
