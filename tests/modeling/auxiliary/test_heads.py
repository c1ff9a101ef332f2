"""The container of auxiliary heads, when one of them detects."""

import pytest
import torch

from dinox.modeling import ATSSHead, AuxiliaryHeads, DownsampledPyramid, FasterRCNNHead, SingleScalePyramid

from ...small_models import make_memory
from .scenes import EMBED_DIM, NUM_CLASSES

SIZES = ((64, 96), (40, 50), (64, 96))
MEMORY_STRIDES = {DownsampledPyramid: (8, 16), SingleScalePyramid: (32,)}
NUM_LEVELS = {DownsampledPyramid: 3, SingleScalePyramid: 5}


def make_heads(adapter: type, kind: str) -> AuxiliaryHeads:
    torch.manual_seed(0)
    common = {"embed_dim": EMBED_DIM, "num_classes": NUM_CLASSES}
    if kind == "atss":
        head = ATSSHead(num_levels=NUM_LEVELS[adapter], **common)
    else:
        head = FasterRCNNHead(hidden_dims=(8, 8), **common)
    made = AuxiliaryHeads(
        adapter=adapter(embed_dim=EMBED_DIM),
        num_decoder_layers=2,
        strides=MEMORY_STRIDES[adapter],
        detect_with=kind,
        **{kind: head},
    )
    if kind == "atss":  # an untrained one is sure of nothing
        made.atss.branches.class_output.bias.data.zero_()
    return made.eval()


def cells(size: tuple[int, int], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    return [tuple(-(-pixels // stride) for pixels in size) for stride in strides]


@pytest.mark.parametrize("kind", ["atss", "roi"])
@pytest.mark.parametrize("adapter", MEMORY_STRIDES, ids=lambda adapter: adapter.__name__)
def test_an_image_is_detected_alike_alone_and_in_a_batch(adapter, kind):
    """The second of three images fills a part of the memory: its neighbours' size shows in no score and no box, and
    images of equal size are not mixed up. Tolerances: float32 sums of other shapes, in pixels."""
    strides = MEMORY_STRIDES[adapter]
    shapes, own = cells(SIZES[0], strides), cells(SIZES[1], strides)
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(3, EMBED_DIM, *shape, generator=generator) for shape in shapes]
    heads = make_heads(adapter, kind)

    def detect(maps, sizes, shapes, valid):
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        return heads.detect(make_memory(tokens, shapes, valid), sizes)

    together = detect(maps, SIZES, shapes, [shapes, own, shapes])
    alone = [detect([m[i : i + 1] for m in maps], SIZES[i : i + 1], shapes, [shapes]) for i in (0, 2)]
    small = detect([m[1:2, :, :h, :w] for m, (h, w) in zip(maps, own)], SIZES[1:2], own, [own])
    for found, (expected,) in zip(together, (alone[0], small, alone[1]), strict=True):
        assert len(found) == len(expected) > 0 and found.image_size == expected.image_size
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-2, rtol=0)


def test_heads_without_strides_cannot_detect():
    heads = AuxiliaryHeads(
        adapter=DownsampledPyramid(embed_dim=EMBED_DIM),
        num_decoder_layers=2,
        detect_with="atss",
        atss=ATSSHead(embed_dim=EMBED_DIM, num_classes=NUM_CLASSES, num_levels=3),
    )
    with pytest.raises(ValueError, match="AuxiliaryHeads knows no strides"):
        heads.detect(make_memory(torch.zeros(1, 1, EMBED_DIM)), [(8, 8)])
