"""Names of pre-trained vision transformers: Swin of Microsoft, timm, detectron2 and detrex, ViT and EVA-02 of timm.

Ours are timm's inside ``network``, and norms of outputs beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from dinox.checkpoint.conversion.backbones import PREFIX
from dinox.checkpoint.conversion.rules import Ignore, Rename, Rule

VIT_PREFIX = PREFIX + "bottom_up."
"""Inside a pyramid (``SimpleFeaturePyramid``), which is inside a neck."""

_NETWORK = PREFIX + "network."
_CLASSIFIER = "the classifier"
_STAGES = range(4)

_SWIN_BLOCK = (
    *(f"{layer}.{{affine}}" for layer in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "attn.relative_position_bias_table",
)


def swin(theirs: str = "", *, merging_before: bool = False) -> list[Rule]:
    """``theirs``: what its names begin with. merging_before: timm counts patch merging to the stage that it leads to,
    Microsoft and detectron2 to the one that it leads out of. Four 2x2 neighbours are merged in one order by all."""
    same = [f"patch_embed.{layer}.{{affine}}" for layer in ("proj", "norm")]
    same += [f"layers.{{i}}.blocks.{{j}}.{name}" for name in _SWIN_BLOCK]
    rules: list[Rule] = [Rename(theirs + name, _NETWORK + name) for name in same]
    for stage in _STAGES[1:]:
        named = stage if merging_before else stage - 1
        for layer in ("norm.{affine}", "reduction.weight"):
            rules.append(
                Rename(f"{theirs}layers.{named}.downsample.{layer}", f"{_NETWORK}layers.{stage}.downsample.{layer}")
            )
    block = theirs + "layers.{i}.blocks.{j}."
    constant = "a constant, which follows from the size of the window"
    return [*rules, Ignore(block + "attn.relative_position_index", constant), Ignore(block + "attn_mask", constant)]


def swin_norms(theirs: str = "") -> list[Rule]:
    """Of the outputs; numbered by stage, the first being that of stride 4."""
    return [
        Rename(f"{theirs}norm{stage}.{{affine}}", f"{PREFIX}stage_norms.res{stage + 2}.{{affine}}") for stage in _STAGES
    ]


def timm_swin_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    return [*swin(merging_before=True), *_classifier("norm", "head", "head.fc")]


def microsoft_swin_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    return [*swin(), *_classifier("norm", "head")]


def detectron2_swin_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """Of a backbone alone, or of a detector that was cut to it, with detectron2's or detrex's prefix."""
    prefixes = ("", "backbone.", "backbone.bottom_up.")
    return [rule for prefix in prefixes for rule in [*swin(prefix), *swin_norms(prefix)]]


def timm_vit_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """ViT and EVA-02."""
    layers = ("norm1", "norm2", "attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", "attn.norm")
    layers += ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.norm", "mlp.fc2")
    in_block = [f"{layer}.{{affine}}" for layer in layers]
    in_block += ["attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2", "ls1.gamma", "ls2.gamma"]
    same = ["pos_embed", "patch_embed.proj.{affine}", "norm_pre.{affine}", *(f"blocks.{{i}}.{n}" for n in in_block)]
    return [
        *(Rename(name, f"{VIT_PREFIX}network.{name}") for name in same),
        *_classifier("norm", "fc_norm", "head"),
        Ignore("cls_token", "no map has a class token"),
        Ignore("blocks.{i}.attn.k_bias", "a constant: zeros"),
    ]


def without_class_position(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ours, with a position for each patch only."""
    name = VIT_PREFIX + "network.pos_embed"
    return {**weights, name: positions_of_patches(weights[name])} if name in weights else dict(weights)


def positions_of_patches(positions: Tensor) -> Tensor:
    """(1, N, C) -> without the positions of class and register tokens, which are what is left over of a square."""
    return positions[:, positions.shape[1] - math.isqrt(positions.shape[1]) ** 2 :]


def _classifier(*names: str) -> list[Rule]:
    return [Ignore(f"{name}.{{affine}}", _CLASSIFIER) for name in names]
