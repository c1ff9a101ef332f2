"""Backbones compute what timm's own networks compute, before norms of ours."""

import pytest
import timm
import torch
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from dinox.modeling import Swin, TimmBackbone
from tests.modeling.backbone.tiny import CONVNEXT, RESNET, SWIN, WINDOWS, eva02, vit

# Equal operations; those of timm may run in another order (masks, reshapes).
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
VIT_OF_TIMM = {
    "img_size": 48,
    "patch_size": 16,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "class_token": False,
    "global_pool": "",
    "dynamic_img_size": True,
    "num_classes": 0,
}


def randomised(module):
    """Tables and scales that differ from cell to cell: timm starts them with zeros, ones or almost."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return module.eval()


def of_timm(network, images):
    with torch.no_grad():
        return network.forward_intermediates(images, intermediates_only=True)


def test_swin_is_timms_where_windows_fit():
    # 128 pixels: 32, 16, 8 and 4 cells, all multiples of the window.
    settings = {k: v for k, v in SWIN.items() if k != "drop_path"}
    network = randomised(SwinTransformer(img_size=128, always_partition=True, num_classes=0, **settings))
    ours = Swin(**SWIN, stage_norm="", out_features=("res2", "res3", "res4", "res5")).eval()
    ours.network.load_state_dict(network.state_dict(), strict=False)
    images = torch.rand(2, 3, 128, 128)
    for expected, got in zip(of_timm(network, images), ours(images).values(), strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)


def test_shifted_windows_do_not_see_across_the_edges_of_the_image():
    """timm pads after the shift, so that on maps that are no multiples of the window the top sees the bottom."""
    ours = randomised(Swin(**{**SWIN, "depths": (2,), "num_heads": (1,)}, out_features=("res2",), stage_norm=""))
    image = torch.rand(1, 3, 4 * 18, 16)  # 18 cells, windows of 4, shifted by 2
    changed = image.clone()
    changed[:, :, :4] = 0  # the first row of cells
    with torch.no_grad():
        difference = (ours(image)["res2"] - ours(changed)["res2"]).abs().amax((0, 1, 3))
    # Block 1: cells 0-3 see cell 0; block 2: windows of cells -2..1, 2..5.
    assert (difference[:6] > 0).all() and (difference[6:] == 0).all()


# timm's ConvNeXt leaves out the last rows and columns of images of other sizes.
@pytest.mark.parametrize("settings, size", [(CONVNEXT, (64, 96)), (RESNET, (64, 96)), (RESNET, (37, 53))])
def test_other_networks_are_timms(settings, size):
    torch.manual_seed(0)
    network = timm.create_model(
        settings["model_name"], features_only=True, out_indices=(-3, -2, -1), **settings["options"]
    )
    ours = TimmBackbone(**settings).eval()
    ours.network.load_state_dict(randomised(network).state_dict())
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        for expected, got in zip(network(images), ours(images).values(), strict=True):
            torch.testing.assert_close(got, expected, **CLOSE)


def vit_pair(**windows):
    network = VisionTransformer(**VIT_OF_TIMM, init_values=0.1)
    return network, vit(layer_scale=0.1, **windows)


def eva02_pair(**windows):
    network = Eva(
        **VIT_OF_TIMM,
        mlp_ratio=8 / 3,
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(16, 16),
    )
    return network, eva02(**windows)


PAIRS = pytest.mark.parametrize("pair", [vit_pair, eva02_pair], ids=["vit", "eva02"])


def last_map(ours, images):
    with torch.no_grad():
        return ours(images)["last_feat"]


@PAIRS
@pytest.mark.parametrize("size", [(48, 48), (64, 80)], ids=str)  # with and without interpolated positions
@pytest.mark.parametrize("windows", [{"window_size": None}, {"window_size": 8, "global_blocks": ()}], ids=str)
def test_global_attention_is_timms_and_so_are_windows_that_cover_the_map(pair, size, windows):
    network, ours = pair(**windows)
    ours.eval().network.load_state_dict(randomised(network).state_dict(), strict=False)
    images = torch.rand(2, 3, *size)
    torch.testing.assert_close(last_map(ours, images), of_timm(network, images)[-1], **CLOSE)


@PAIRS
def test_a_window_is_an_image_of_its_own(pair):
    """Embeddings of positions aside, which are zeroed, and rotary ones included: these are those of the window."""
    network, ours = pair(window_size=2, global_blocks=())
    randomised(network).pos_embed.data.zero_()
    ours.eval().network.load_state_dict(network.state_dict(), strict=False)
    images = torch.rand(1, 3, 64, 96)
    pieces = torch.cat([piece for row in images.split(32, 2) for piece in row.split(32, 3)])
    expected = of_timm(network, pieces)[-1]  # 6 windows of 2 x 2 patches, row by row
    expected = torch.cat([torch.cat(list(row), dim=-1) for row in expected.split(3)], dim=-2)
    torch.testing.assert_close(last_map(ours, images)[0], expected, **CLOSE)


@PAIRS
def test_blocks_that_are_not_named_do_not_see_beyond_their_windows(pair):
    _, ours = pair(window_size=2, global_blocks=())
    _, mixed = pair(**WINDOWS)
    image = torch.rand(1, 3, 64, 64)
    changed = image.clone()
    changed[:, :, :16, :16] = 0
    for backbone, reach in ((randomised(ours), 2), (randomised(mixed), 4)):
        difference = (last_map(backbone, image) - last_map(backbone, changed)).abs().amax((0, 1)) > 0
        expected = torch.zeros(4, 4, dtype=torch.bool)
        expected[:reach, :reach] = True
        assert torch.equal(difference, expected)


def attention_of_a_cell(attention, cells, row, column, *, size, shift):
    """What the cell of a padded map (H, W, C) gets, looked up one by one; one head. Cells see each other if a grid of
    windows that is shifted down and right has them in one window, and the map does not end between them."""
    height, width, _ = cells.shape
    query, keys, values = torch.nn.functional.linear(cells, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)
    side = 2 * size - 1
    logits, seen = [], []
    for r in range(height):
        for c in range(width):
            if (r - shift) // size == (row - shift) // size and (c - shift) // size == (column - shift) // size:
                position = (row - r + size - 1) * side + column - c + size - 1
                bias = attention.relative_position_bias_table[position, 0]
                logits.append(query[row, column] @ keys[r, c] * attention.scale + bias)
                seen.append(values[r, c])
    attended = torch.stack(logits).softmax(0) @ torch.stack(seen)
    return torch.nn.functional.linear(attended, attention.proj.weight, attention.proj.bias)


def test_swin_on_odd_maps_is_what_looking_up_each_cell_gives():
    size, shift = 4, 2
    ours = randomised(Swin(embed_dim=4, depths=(2,), num_heads=(1,), window_size=size, out_features=("res2",)))
    stage = ours.network.layers[0]
    cells = torch.randn(1, 5, 7, 4)
    expected = cells
    for block, moved in zip(stage.blocks, (0, shift)):
        padded = torch.zeros(8, 8, 4)
        padded[:5, :7] = block.norm1(expected)[0]
        attended = torch.stack(
            [
                torch.stack([attention_of_a_cell(block.attn, padded, r, c, size=size, shift=moved) for c in range(7)])
                for r in range(5)
            ]
        )
        expected = expected + attended
        expected = expected + block.mlp(block.norm2(expected))
    with torch.no_grad():
        torch.testing.assert_close(ours._run_stage(stage, cells), expected, rtol=1e-4, atol=1e-4)
