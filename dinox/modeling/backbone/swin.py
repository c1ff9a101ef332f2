"""Swin Transformer (Liu et al. 2021) for detection: timm's, on images of any size, with norms on its outputs."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

from dinox.modeling.backbone.maps import (
    Norms,
    StageNorm,
    check_choice,
    check_out_features,
    freeze,
    freeze_norms,
    make_stage_norms,
    pad_to_multiple,
    stage_name,
)
from dinox.modeling.backbone.windows import (
    attend_in_windows,
    pad_to_windows,
    run_block,
    shards_of_blocks,
    shifted_window_mask,
)
from dinox.utils.ranges import check_range
from dinox.utils.timm_library import import_timm

_PATCH = 4


class Swin(Backbone):
    """Maps "res2" (stride 4) to "res5" (stride 32), each through a LayerNorm of its own. Defaults are Swin-T's.

    Tiny, Small, Base and Large differ in ``embed_dim`` (96, 96, 128, 192), ``depths`` ((2, 2, 6, 2), else (2, 2, 18,
    2)) and ``num_heads`` ((3, 6, 12, 24) twice, (4, 8, 16, 32), (6, 12, 24, 48)); ``window_size`` is 7, or 12 in those
    pre-trained at 384 pixels. Pixels are ImageNet's: RGB, mean 123.675, 116.28, 103.53, std 58.395, 57.12, 57.375.

    Windows never shrink, shifts never vanish, and padding is added before the shift: as in the detectors of Swin's
    authors and all that follow them. timm, made for classification, does all three otherwise on maps that are no
    multiples of the window.

    Args:
        embed_dim: channels of the first stage; they double with every stage.
        depths: blocks of each stage.
        num_heads: of each stage.
        window_size: side of a window, in cells.
        mlp_ratio: hidden channels of a block's MLP, times its channels.
        drop_path: probability to skip the last block in training; grows linearly from 0 (stochastic depth).
        out_features: stages beyond the last one asked for are not built.
        stage_norm: "LN", or "" for none.
        norms: "frozen": scale and shift of the network's own norms (not of the stage norms) are not trained.
        freeze_at: parts that are not trained: 1: the patch embedding, 2: and the first stage, ...
        gradient_checkpointing: compute the activations of blocks again in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.2,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        stage_norm: StageNorm = "LN",
        norms: Norms = "trained",
        freeze_at: int = 0,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        check_choice("stage_norm", stage_norm, StageNorm)
        check_choice("norms", norms, Norms)
        check_range("drop_path", drop_path, 0, 1)
        check_range("freeze_at", freeze_at, 0, len(depths) + 1)
        if len(depths) != len(num_heads):
            raise ValueError(f"num_heads: expected one for each of the {len(depths)} depths, got {list(num_heads)}")
        strides = {stage_name(_PATCH * 2**i): _PATCH * 2**i for i in range(len(depths))}
        check_out_features(out_features, list(strides))
        self._stages = list(strides)[: 1 + max(list(strides).index(name) for name in out_features)]
        self.network = _make_network(
            embed_dim=embed_dim,
            depths=list(depths)[: len(self._stages)],
            num_heads=list(num_heads)[: len(self._stages)],
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path,
        )
        self._out_features = [name for name in self._stages if name in out_features]
        self._out_feature_strides = {name: strides[name] for name in self._out_features}
        self._out_feature_channels = {name: embed_dim * 2 ** self._stages.index(name) for name in self._out_features}
        self.stage_norms = make_stage_norms(stage_norm, self._out_feature_channels)
        self.gradient_checkpointing = gradient_checkpointing
        if norms == "frozen":
            freeze_norms(self.network)
        freeze([self.network.patch_embed, *self.network.layers][:freeze_at])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"res3": (B, C, H/8, W/8), ...}, sizes rounded up."""
        cells = self.network.patch_embed(pad_to_multiple(images, _PATCH))  # (B, H/4, W/4, C)
        maps = {}
        for name, stage in zip(self._stages, self.network.layers, strict=True):
            cells = self._run_stage(stage, cells)
            if name in self._out_features:
                maps[name] = self.stage_norms[name](cells.permute(0, 3, 1, 2).contiguous())
        return maps

    def _run_stage(self, stage: nn.Module, cells: Tensor) -> Tensor:
        cells = stage.downsample(cells)  # pads odd sides itself
        mask = None
        for block in stage.blocks:
            size, shift = block.window_size[0], block.shift_size[0]
            if shift and mask is None:  # the same for all blocks of a stage
                padded = [side + -side % size for side in cells.shape[1:3]]
                mask = shifted_window_mask(*padded, size, shift, like=cells)
            attention = partial(block.attn, mask=mask if shift else None)
            attend = partial(_attend, size=size, shift=shift, attention=attention)
            cells = run_block(block, cells, attend, gradient_checkpointing=self.gradient_checkpointing)
        return cells

    def shards(self) -> list[nn.Module]:
        """For FSDP: what holds most weights, and is called as a module (blocks are not)."""
        return shards_of_blocks([block for stage in self.network.layers for block in stage.blocks])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's name for ``gradient_checkpointing``."""
        self.gradient_checkpointing = enable

    def layers_to_output(self) -> dict[str, int]:
        """For layer-wise learning rates: parameter -> 0 for the norms of outputs, 1 for the last block, one more for
        each block before, and most for the patch embedding. Patch merging counts with the block that follows it."""
        depths = [len(stage.blocks) for stage in self.network.layers]
        layers = {}
        for name, _ in self.named_parameters():
            words = name.split(".")
            if words[0] == "stage_norms":
                layers[name] = 0
            elif words[1] == "patch_embed":
                layers[name] = sum(depths) + 1
            else:  # network.layers.STAGE.blocks.BLOCK..., or ...downsample...
                stage, block = int(words[2]), int(words[4]) if words[3] == "blocks" else 0
                layers[name] = sum(depths[stage:]) - block
        return layers


def _make_network(**settings) -> nn.Module:
    swin = import_timm("timm.models.swin_transformer", purpose="Swin")
    network = swin.SwinTransformer(
        # Windows and shifts as they are, whatever the size of the map.
        always_partition=True,
        strict_img_size=False,
        norm_layer=nn.LayerNorm,
        num_classes=0,
        global_pool="",
        **settings,
    )
    network.norm = nn.Identity()  # the classifier's
    return network


def _attend(cells: Tensor, *, size: int, shift: int, attention: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, H, W, C) -> same: attention in windows of the map that is rolled by ``shift`` after padding."""
    height, width = cells.shape[1:3]
    cells = pad_to_windows(cells, (size, size))
    if shift:
        cells = torch.roll(cells, (-shift, -shift), dims=(1, 2))
    cells = attend_in_windows(cells, (size, size), attention)
    if shift:
        cells = torch.roll(cells, (shift, shift), dims=(1, 2))
    return cells[:, :height, :width]
