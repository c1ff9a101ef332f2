"""What parts of a training config need of the data, known before anything of the model is built."""

import pytest
import torch
from detectron2.config import LazyCall as L

from dinox.config import load_config
from dinox.data.errors import DataError
from dinox.data.training_checks import check_masks_for_heads

MASK_RCNN = "co_detr/ablation_mask_rcnn"
WITHOUT = r"model.auxiliary_heads.roi learns from masks, which .* set {}, or .* model.auxiliary_heads.roi=null"


class OwnMapper:
    """It may give masks or not; nobody knows before."""

    def __init__(self, *, size: int = 1):
        self.size = size


@pytest.mark.parametrize("how", ["set", "by default"])
def test_a_mask_head_without_masks_is_an_error_before_the_first_step(how):
    cfg = load_config(MASK_RCNN, ["dataloader.train.mapper.masks=none"])
    if how == "by default":
        del cfg.dataloader.train.mapper["masks"]
    with pytest.raises(DataError, match=WITHOUT.format("dataloader.train.mapper.masks=bitmask")):
        check_masks_for_heads(cfg)


def test_copy_paste_that_drops_the_masks_is_one_too():
    lsj = "co_detr/co_dino_r50_5scale_lsj_12ep"
    cfg = load_config(lsj)
    check_masks_for_heads(cfg)
    cfg.model.auxiliary_heads.roi.mask_branch = load_config(MASK_RCNN).model.auxiliary_heads.roi.mask_branch
    with pytest.raises(DataError, match=WITHOUT.format("dataloader.train.copy_paste.masks=keep")):
        check_masks_for_heads(cfg)
    cfg.dataloader.train.copy_paste.masks = "keep"
    check_masks_for_heads(cfg)


NOT_NEEDED = ["dataloader.train.mapper.masks=none", "model.auxiliary_heads.roi.mask_branch=null"]


@pytest.mark.parametrize("overrides", [[], NOT_NEEDED], ids=["given", "not needed"])
def test_masks_are_given_or_not_needed(overrides):
    state = torch.get_rng_state()
    check_masks_for_heads(load_config(MASK_RCNN, overrides))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mapper_that_says_nothing_of_masks_is_left_alone():
    cfg = load_config(MASK_RCNN)
    cfg.dataloader.train.mapper = L(OwnMapper)(size=2)
    check_masks_for_heads(cfg)


def test_heads_that_cannot_be_built_are_for_the_model_to_report():
    check_masks_for_heads(load_config(MASK_RCNN, ["dataloader.train.mapper.masks=none", "model.embed_dim=-1"]))
