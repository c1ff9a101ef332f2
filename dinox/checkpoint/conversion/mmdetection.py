"""mmdetection's names of Swin, and its order of merged neighbours.

Where Swin merges 2x2 cells into one, its authors put the channels of one cell after those of another, column by column;
mmdetection unfolds them, so that the four cells of a channel stand side by side, row by row.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dinox.checkpoint.conversion.backbones import PREFIX
from dinox.checkpoint.conversion.rules import Ignore, Rename, Rule

_LAYERS = PREFIX + "network.layers."
_UNFOLDED = ".unfolded"  # ends names until the channels are in our order
_OUR_CELLS = [0, 2, 1, 3]  # theirs: top left, top right, bottom left, bottom right
_BLOCK = {
    "norm1.{affine}": "norm1.{affine}",
    "attn.w_msa.qkv.{affine}": "attn.qkv.{affine}",
    "attn.w_msa.proj.{affine}": "attn.proj.{affine}",
    "attn.w_msa.relative_position_bias_table": "attn.relative_position_bias_table",
    "norm2.{affine}": "norm2.{affine}",
    "ffn.layers.0.0.{affine}": "mlp.fc1.{affine}",
    "ffn.layers.1.{affine}": "mlp.fc2.{affine}",
}


def swin(theirs: str) -> list[Rule]:
    """Rules for what differs from the names of Swin's authors; weights are to pass ``reorder_merged`` afterwards.

    theirs: what its names begin with.
    """
    block = theirs + "stages.{i}.blocks.{j}."
    constant = "a constant, which follows from the size of the window"
    return [
        Rename(theirs + "patch_embed.projection.{affine}", PREFIX + "network.patch_embed.proj.{affine}"),
        *(Rename(block + name, f"{_LAYERS}{{i}}.blocks.{{j}}.{ours}") for name, ours in _BLOCK.items()),
        Ignore(block + "attn.w_msa.relative_position_index", constant),
        *(
            Rename(f"{theirs}stages.{stage}.downsample.{name}", f"{_LAYERS}{stage + 1}.downsample.{name}{_UNFOLDED}")
            for stage in range(3)
            for name in ("norm.{affine}", "reduction.weight")
        ),
    ]


def reorder_merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict with merged channels in our order."""
    return {
        name.removesuffix(_UNFOLDED): _cell_by_cell(tensor) if name.endswith(_UNFOLDED) else tensor
        for name, tensor in weights.items()
    }


def _cell_by_cell(tensor: Tensor) -> Tensor:
    """(..., C * 4) -> (..., 4 * C)."""
    return tensor.unflatten(-1, (-1, 4))[..., _OUR_CELLS].transpose(-1, -2).flatten(-2)
