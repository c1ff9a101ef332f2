"""Plain vision transformers of timm (ViT, EVA-02) for detection: any image size, attention in windows (ViTDet)."""

from collections.abc import Callable, Sequence
from functools import partial

from detectron2.modeling import Backbone
from torch import Tensor, nn

from dinox.modeling.backbone.maps import (
    Norms,
    StageNorm,
    check_choice,
    freeze,
    freeze_norms,
    make_stage_norms,
    pad_to_multiple,
)
from dinox.modeling.backbone.windows import attend_in_windows, run_block, shards_of_blocks
from dinox.utils.ranges import check_range
from dinox.utils.timm_library import import_timm

_OUTPUT = "last_feat"  # detectron2's name


class PlainViT(Backbone):
    """One map, "last_feat", with the stride of a patch; ``SimpleFeaturePyramid`` makes more of it.

    Attention works inside windows but in ``global_blocks`` (Li et al. 2022, "ViTDet", section 3). A window is never
    larger than the map, so that one that covers it is global attention; else windows at the edges are padded with
    zeros. Rotary embeddings inside a window are those of a map of its size, as in EVA-02's detectors.

    Args:
        network: timm's, see ``build_vit`` and ``build_eva02``.
        window_size: side of a window, in patches; None: all blocks are global, whatever ``global_blocks`` says.
        global_blocks: numbers of the blocks with global attention, from 0.
        stage_norm: "LN", or "" for none; ViTDet's pyramid has norms of its own.
        norms: "frozen": scale and shift of the network's own norms are not trained.
        freeze_at: parts that are not trained: 1: embeddings of patches and positions, 2: and the first block, ...
        gradient_checkpointing: compute the activations of blocks again in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        window_size: int | None = None,
        global_blocks: Sequence[int] = (),
        stage_norm: StageNorm = "",
        norms: Norms = "trained",
        freeze_at: int = 0,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        check_choice("stage_norm", stage_norm, StageNorm)
        check_choice("norms", norms, Norms)
        if window_size is None:
            global_blocks = range(len(network.blocks))
        beyond = [number for number in global_blocks if not 0 <= number < len(network.blocks)]
        if beyond:
            raise ValueError(f"global_blocks: expected numbers from 0 to {len(network.blocks) - 1}, got {beyond}")
        check_range("freeze_at", freeze_at, 0, len(network.blocks) + 1)
        self.network = network
        self._resample = import_timm("timm.layers", purpose="PlainViT").resample_abs_pos_embed
        self.window_size = window_size
        self.global_blocks = frozenset(global_blocks)
        self.gradient_checkpointing = gradient_checkpointing
        self.stride = network.patch_embed.patch_size[0]
        self._out_features = [_OUTPUT]
        self._out_feature_strides = {_OUTPUT: self.stride}
        self._out_feature_channels = {_OUTPUT: network.embed_dim}
        self.stage_norms = _output_norm(stage_norm, network.embed_dim)
        if norms == "frozen":
            freeze_norms(network)
        embeddings = nn.ModuleList([network.patch_embed, network.norm_pre])
        if freeze_at > 0 and network.pos_embed is not None:
            freeze([network.pos_embed])
        freeze([embeddings, *network.blocks][:freeze_at])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"last_feat": (B, C, H/stride, W/stride)}, sizes rounded up."""
        cells = self.network.patch_embed(pad_to_multiple(images, self.stride))  # (B, h, w, C)
        cells = self.network.norm_pre(self.network.pos_drop(self._with_positions(cells)))
        size = (cells.shape[1], cells.shape[2])
        window = size if self.window_size is None else tuple(min(side, self.window_size) for side in size)
        rotary, rotary_in_window = self._rotary_embedding(size), self._rotary_embedding(window)
        for number, block in enumerate(self.network.blocks):
            is_global = number in self.global_blocks
            attention = _with_rotary(block.attn, rotary if is_global else rotary_in_window)
            attend = partial(attend_in_windows, size=size if is_global else window, attention=attention)
            cells = run_block(block, cells, attend, gradient_checkpointing=self.gradient_checkpointing)
        return {_OUTPUT: self.stage_norms[_OUTPUT](cells.permute(0, 3, 1, 2).contiguous())}

    def shards(self) -> list[nn.Module]:
        """For FSDP: what holds most weights, and is called as a module (blocks are not)."""
        return shards_of_blocks(self.network.blocks)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's name for ``gradient_checkpointing``."""
        self.gradient_checkpointing = enable

    def layers_to_output(self) -> dict[str, int]:
        """For layer-wise learning rates: parameter -> 0 for what follows the last block, 1 for the last block, one more
        for each block before, and most for the embeddings (ViTDet's rule)."""
        depth, layers = len(self.network.blocks), {}
        for name, _ in self.named_parameters():
            words = name.split(".")
            if words[:2] == ["network", "blocks"]:
                layers[name] = depth - int(words[2])
            else:
                layers[name] = 0 if words[0] == "stage_norms" else depth + 1
        return layers

    def _with_positions(self, cells: Tensor) -> Tensor:
        """Adds the learned embeddings, interpolated to the number of patches."""
        if self.network.pos_embed is None:
            return cells
        positions = self._resample(
            self.network.pos_embed,
            new_size=list(cells.shape[1:3]),
            old_size=list(self.network.patch_embed.grid_size),
            num_prefix_tokens=0,
        )
        return cells + positions.view(1, *cells.shape[1:])

    def _rotary_embedding(self, size: tuple[int, int]) -> Tensor | None:
        """(h * w, 2 * channels of a head), of a map of (h, w) cells; None: the network has none."""
        rotary = getattr(self.network, "rope", None)
        return None if rotary is None else rotary.get_embed(shape=list(size))


def _output_norm(kind: StageNorm, channels: int) -> nn.ModuleDict:
    return make_stage_norms(kind, {_OUTPUT: channels})


def _with_rotary(attention: nn.Module, rotary: Tensor | None) -> Callable[[Tensor], Tensor]:
    return attention if rotary is None else partial(attention, rope=rotary)
