"""detectron2's ResNets from one set of numbers."""

from collections.abc import Sequence
from typing import Literal, get_args

from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock

from dinox.utils.suggest import did_you_mean

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BOTTLENECK_FROM = 50  # shallower networks are made of basic blocks
_BOTTLENECK_EXPANSION = 4
_RES5 = 3  # the last stage

Norm = Literal["", "BN", "FrozenBN", "GN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"]
"""The names that detectron2's ``get_norm`` has for convolutions, on all its versions; "" is none."""


def build_resnet(
    *,
    depth: int = 50,
    width: int = 64,
    norm: Norm = "FrozenBN",
    out_features: Sequence[str] = ("res3", "res4", "res5"),
    freeze_at: int = 1,
    res5_dilation: Literal[1, 2] = 1,
) -> ResNet:
    """ResNet of any standard depth, with the parameter names of detectron2's model zoo.

    Args:
        depth: 18, 34, 50, 101 or 152. Strides sit in the 3x3 convolutions, as in torchvision's weights.
        width: channels of the stem and of the first stage's blocks; 64 in all published models.
        norm: one of detectron2's; FrozenBN for pre-trained weights.
        out_features: of "stem", "res2" (stride 4), "res3", "res4", "res5" (stride 32). Stages beyond the last one asked
            for are not built.
        freeze_at: how many stages are frozen, the stem being the first; 0: none.
        res5_dilation: 2 is "DC5": res5 keeps the resolution of res4 (stride 16), and its 3x3 convolutions after the
            first block are dilated, as in torchvision and so in DETR's code (detectron2 dilates the first block too).

    Raises:
        ValueError: unknown depth, norm, feature or dilation.
    """
    norms = get_args(Norm)
    if norm not in norms:
        hint = did_you_mean(norm, norms)
        raise ValueError(f"norm: expected one of {', '.join(map(repr, norms))}, got {norm!r}.{hint}")
    if depth not in _BLOCKS:
        raise ValueError(f"ResNet depth must be one of {sorted(_BLOCKS)}, got {depth}")
    known = ["stem", "res2", "res3", "res4", "res5"]
    unknown = [name for name in out_features if name not in known]
    if unknown or not out_features:
        raise ValueError(f"out_features must name some of {known}, got {list(out_features)}")
    if res5_dilation not in (1, 2):
        raise ValueError(f"res5_dilation must be 1 or 2, got {res5_dilation}")
    if res5_dilation > 1 and depth < _BOTTLENECK_FROM:
        raise ValueError(f"res5_dilation = {res5_dilation} needs bottleneck blocks: a depth from {_BOTTLENECK_FROM}")
    num_stages = max(known.index(name) for name in out_features)
    stages, in_channels = [], width
    for stage, num_blocks in enumerate(_BLOCKS[depth][:num_stages]):
        inner = width * 2**stage
        out_channels, block_class, options = _block(depth, inner, norm)
        dilated = res5_dilation > 1 and stage == _RES5
        first_stride = 1 if stage == 0 or dilated else 2
        if dilated:
            options["dilation_per_block"] = [1] + [res5_dilation] * (num_blocks - 1)
        stages.append(
            ResNet.make_stage(
                block_class,
                num_blocks,
                stride_per_block=[first_stride] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                **options,
            )
        )
        in_channels = out_channels
    stem = BasicStem(in_channels=3, out_channels=width, norm=norm)
    return ResNet(stem, stages, out_features=list(out_features), freeze_at=freeze_at)


def _block(depth: int, inner: int, norm: str) -> tuple[int, type, dict]:
    """Output channels, class and options of a stage's blocks."""
    if depth < _BOTTLENECK_FROM:
        return inner, BasicBlock, {"norm": norm}
    options = {"norm": norm, "bottleneck_channels": inner, "stride_in_1x1": False}
    return inner * _BOTTLENECK_EXPANSION, BottleneckBlock, options
