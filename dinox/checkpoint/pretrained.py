"""Files of pre-trained networks as they are published, into detectors whose backbone is one of timm's networks.

So ``train.init_checkpoint=swin_large_patch4_window12_384_22k.pth`` works without a conversion.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinox.checkpoint.conversion import backbones, transformers
from dinox.checkpoint.conversion.rules import Rule, Translation, to_ours
from dinox.modeling import PlainViT, Swin, TimmBackbone
from dinox.utils.names import backbone_prefix
from dinox.utils.timm_library import import_timm

logger = logging.getLogger(__name__)

_RECOGNISED = 0.5
"""Part of the file's names that a table has to know; less is another network, or a detector."""

_CLASSIFIERS = ("head", "fc", "classifier")
_TABLES = {
    Swin: (transformers.timm_swin_table, transformers.microsoft_swin_table, transformers.detectron2_swin_table),
    PlainViT: (transformers.timm_vit_table,),
}
_PREFIXES = {Swin: backbones.PREFIX, PlainViT: transformers.VIT_PREFIX}


@dataclass(frozen=True)
class Pretrained:
    """Weights under the model's names. skipped: their name -> why it is not needed. resized: ours -> shapes before and
    after, of tables of positions and of the patch embedding."""

    weights: dict[str, Tensor]
    skipped: Mapping[str, str] = field(default_factory=dict)
    resized: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def summary(self) -> str:
        """Lines for the log; empty if nothing was done."""
        lines = []
        for reason in dict.fromkeys(self.skipped.values()):
            names = [name for name, why in self.skipped.items() if why == reason]
            lines.append(f"not needed ({reason}): {len(names)} tensors, such as {names[0]}")
        lines += [f"resized: {name} from {old} to {new}" for name, (old, new) in self.resized.items()]
        return "\n".join(lines)


def read_pretrained(weights: Mapping[str, Tensor], model: nn.Module) -> Pretrained:
    """Weights of a network alone under the names of the ``model`` that it is part of, fitted to its sizes.

    Weights that are not those of the model's kind of backbone, and those that have the model's own names, are
    returned as they are.
    """
    own = model.state_dict()
    prefix = backbone_prefix(own)
    backbone = _find(model, prefix)
    if not isinstance(backbone, (Swin, PlainViT, TimmBackbone)) or own.keys() & weights.keys():
        return Pretrained(dict(weights))
    translate = _translate_by_names if isinstance(backbone, TimmBackbone) else _translate_by_rules
    translation = translate(weights, backbone, prefix)
    if translation is None:
        return Pretrained(dict(weights))
    fitted = {name: _fit(name, torch.as_tensor(w), own.get(name), backbone) for name, w in translation.weights.items()}
    resized = {
        name: (tuple(translation.weights[name].shape), tuple(tensor.shape))
        for name, tensor in fitted.items()
        if translation.weights[name].shape != tensor.shape
    }
    unknown = {name: weights[name] for name in translation.unknown}
    return Pretrained({**fitted, **unknown}, translation.skipped, resized)


def _find(model: nn.Module, prefix: str) -> nn.Module | None:
    try:
        return model.get_submodule(prefix.removesuffix("."))
    except AttributeError:  # no detector
        return None


def _translate_by_rules(weights: Mapping[str, Tensor], backbone: nn.Module, prefix: str) -> Translation | None:
    kind = type(backbone)
    translations = [to_ours(weights, _for_prefix(table(weights), kind, prefix)) for table in _TABLES[kind]]
    best = min(translations, key=lambda translation: len(translation.unknown))
    return best if len(best.weights) >= _RECOGNISED * len(weights) else None


def _for_prefix(table: Sequence[Rule], kind: type, prefix: str) -> list[Rule]:
    """Tables are written for one place of the backbone; it may have another one."""
    usual = _PREFIXES[kind]
    return [
        type(rule)(rule.theirs, prefix + rule.ours.removeprefix(usual)) if hasattr(rule, "ours") else rule
        for rule in table
    ]


def _translate_by_names(weights: Mapping[str, Tensor], backbone: TimmBackbone, prefix: str) -> Translation | None:
    """timm's own names but for the first dot: where it gives features, ``stages.0`` is called ``stages_0``."""
    ours = {}
    for name in backbone.network.state_dict():
        ours[name] = ours[re.sub(r"^([a-z]\w*?)_(\d+)\.", r"\1.\2.", name)] = f"{prefix}network.{name}"
    renamed, unknown, skipped = {}, [], {}
    for name, tensor in weights.items():
        if name in ours:
            renamed[ours[name]] = tensor
        elif name.partition(".")[0] in _CLASSIFIERS:
            skipped[name] = "the classifier"
        elif name.endswith("num_batches_tracked"):
            skipped[name] = "a counter of batches, which frozen norms have no use for"
        else:
            unknown.append(name)
    translation = Translation(renamed, unknown, skipped)
    return translation if len(renamed) >= _RECOGNISED * len(weights) else None


def _fit(name: str, tensor: Tensor, own: Tensor | None, backbone: nn.Module) -> Tensor:
    """Resizes what depends on the sizes of windows, patches and pre-training's images, where only these differ."""
    if own is None or own.shape == tensor.shape or own.dim() != tensor.dim():
        return tensor
    if name.endswith("relative_position_bias_table") and own.shape[1] == tensor.shape[1]:
        return _resize_bias_table(tensor, math.isqrt(len(own)))
    layers = import_timm("timm.layers", purpose="fitting position embeddings")
    if name.endswith("pos_embed") and own.shape[2] == tensor.shape[2]:
        positions = transformers.positions_of_patches(tensor)
        grid = list(backbone.network.patch_embed.grid_size)
        return layers.resample_abs_pos_embed(positions, new_size=grid, num_prefix_tokens=0)
    if name.endswith("patch_embed.proj.weight") and own.shape[:2] == tensor.shape[:2]:
        return layers.resample_patch_embed(tensor, list(own.shape[2:]))
    return tensor


def _resize_bias_table(table: Tensor, side: int) -> Tensor:
    """(positions, heads), positions a square map, to a map of ``side`` x ``side``: bicubic, as Swin's authors do it."""
    maps = table.float().t().reshape(1, table.shape[1], *[math.isqrt(len(table))] * 2)
    resized = F.interpolate(maps, size=(side, side), mode="bicubic", align_corners=False)
    return resized.flatten(2).squeeze(0).t().to(table.dtype).contiguous()
