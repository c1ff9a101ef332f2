"""What all backbones on timm's networks share: padding, norms of outputs, names, freezing.

Legend: B images, C channels, H, W pixels or cells.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from dinox.utils.suggest import did_you_mean
from dinox.utils.timm_library import import_timm

StageNorm = Literal["LN", ""]
"""What every output passes: a LayerNorm over channels, as Swin's do in detectors, or nothing."""

Norms = Literal["trained", "frozen"]
"""Norms inside the network. "frozen": batch norms use the statistics they were pre-trained with, and no scale or shift
is trained."""


class MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps (B, C, H, W)."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


def make_stage_norms(kind: StageNorm, channels: Mapping[str, int]) -> nn.ModuleDict:
    """channels: of every output, by name."""
    return nn.ModuleDict(
        {name: MapNorm(number) if kind == "LN" else nn.Identity() for name, number in channels.items()}
    )


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) -> zeros to the right and below, up to the next multiples."""
    return F.pad(images, (0, -images.shape[-1] % multiple, 0, -images.shape[-2] % multiple))


def crop_to_stride(maps: Tensor, image_size: Sequence[int], stride: int) -> Tensor:
    """The cells that cover an image of ``image_size`` = (height, width) pixels: its sides by ``stride``, rounded up."""
    height, width = (-(-side // stride) for side in image_size)
    return maps[..., :height, :width]


def stage_name(stride: int) -> str:
    """detectron2's: "res2" has stride 4, every further stage twice as much."""
    return f"res{int(math.log2(stride))}"


def check_choice(name: str, value: str, choices: object) -> None:
    """choices: a Literal. Raises ValueError naming the argument."""
    expected = get_args(choices)
    if value not in expected:
        hint = did_you_mean(str(value), expected)
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, expected))}, got {value!r}.{hint}")


def check_out_features(out_features: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in out_features if name not in known]
    if unknown or not out_features:
        raise ValueError(f"out_features: expected some of {', '.join(known)}, got {list(out_features)}")


def freeze(parts: Iterable[nn.Module | nn.Parameter]) -> None:
    """Their parameters are not trained."""
    for part in parts:
        part.requires_grad_(False)


def freeze_norms(network: nn.Module) -> None:
    """``Norms``' "frozen", in place, for a network that is no batch norm itself."""
    freeze_batch_norms(network)
    freeze(module for module in network.modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm)))


def freeze_batch_norms(module: nn.Module) -> nn.Module:
    """The module with batch norms that keep their statistics; another one if it is a batch norm itself."""
    return import_timm("timm.layers", purpose="freezing batch norms").freeze_batch_norm_2d(module)
