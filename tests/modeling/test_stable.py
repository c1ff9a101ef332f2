"""Stable matching with every memory fusion, denoising and one-to-many group: whatever the slots allow trains a step."""

import itertools
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate

from dinox.config import load_config
from dinox.losses import FocalLoss, LossByGroup, PositionSupervisedLoss
from dinox.matching import FocalCost, PositionModulatedCost, ReleasedPositionModulatedCost
from dinox.modeling import (
    CenterShiftAndScale,
    ContrastiveBoxNoise,
    DenseFusion,
    LearnedContent,
    SameRangeBoxNoise,
    SelectedAnchors,
    SimpleFusion,
    TrainingQueries,
    ULikeFusion,
)

from ..small_models import DINO, SMALL, assert_trains_one_step, build_small, loss_keys, make_input

ROOT = Path(__file__).parents[2]
STABLE = "stable_dino/stable_dino_r50_4scale_12ep"

SIZES = {"embed_dim": "${...embed_dim}", "num_layers": "${..num_layers}"}

CLASS_LOSSES = {"position_supervised": L(PositionSupervisedLoss)(), "focal": L(FocalLoss)()}
CLASS_COSTS = {
    "modulated": L(PositionModulatedCost)(),
    "released": L(ReleasedPositionModulatedCost)(),
    "plain": L(FocalCost)(),
}
FUSIONS = {
    "none": None,
    "simple": L(SimpleFusion)(**SIZES),
    "u_like": L(ULikeFusion)(**SIZES),
    "dense": L(DenseFusion)(**SIZES),
}
BOX_NOISE = {
    "contrastive": L(ContrastiveBoxNoise)(),
    "released": L(SameRangeBoxNoise)(),
    "denoising": L(CenterShiftAndScale)(),
    "none": None,
}
ONE_TO_MANY = {
    "one_to_one": None,
    "one_to_many": L(TrainingQueries)(
        content=L(LearnedContent)(num_queries=30, embed_dim="${....embed_dim}"),
        anchors=L(SelectedAnchors)(first="${....num_queries}", num_queries="${..content.num_queries}"),
        repeats=6,
    ),
}


@pytest.mark.parametrize(
    ("class_loss", "class_cost", "fusion", "box_noise", "group"),
    list(itertools.product(CLASS_LOSSES, CLASS_COSTS, FUSIONS, BOX_NOISE, ONE_TO_MANY)),
)
def test_every_combination_trains_a_step(class_loss, class_cost, fusion, box_noise, group):
    model = load_config(DINO, [*SMALL, "model.decoder.num_layers=2"]).model
    model.criterion.class_loss = CLASS_LOSSES[class_loss]
    model.criterion.matcher.class_cost = CLASS_COSTS[class_cost]
    model.encoder.fusion = FUSIONS[fusion]
    suffixes = [""]
    if box_noise == "none":
        model.query_groups.denoising = None
    else:
        model.query_groups.denoising.box_noise = BOX_NOISE[box_noise]
        suffixes.append("_dn")
    if group == "one_to_many":
        model.query_groups.one_to_many = ONE_TO_MANY[group]
        model.query_selection.more_in_training = ONE_TO_MANY[group].content.num_queries
        suffixes.append("_one_to_many")
    torch.manual_seed(0)
    losses = assert_trains_one_step(instantiate(model).train(), [make_input(48, 64, 2), make_input(32, 32, 0)])
    assert losses.keys() == loss_keys(2, groups=tuple(suffixes))


def test_the_class_loss_weighs_6_and_1_in_denoising():
    criterion = build_small(STABLE).criterion
    assert [criterion.weight(group, "class") for group in ("matching", "encoder", "denoising")] == [6.0, 6.0, 1.0]
    assert [criterion.weight("denoising", loss) for loss in ("bbox", "giou")] == [5.0, 2.0]
    assert criterion.matcher.costs["class_cost"].weight == 2.0


def test_denoising_can_keep_the_focal_loss():
    """Losses of matching and encoder are those of the position-supervised loss, those of denoising DINO's."""
    inputs = [make_input(64, 96, 3)]

    def losses_with(class_loss):
        model = build_small(STABLE, "model.criterion.group_weights={}")
        model.criterion.losses["class"] = class_loss
        torch.manual_seed(7)
        return model(inputs)

    both = losses_with(LossByGroup(otherwise=PositionSupervisedLoss(), denoising=FocalLoss()))
    stable, focal = losses_with(PositionSupervisedLoss()), losses_with(FocalLoss())
    for key, value in both.items():
        assert torch.equal(value, (focal if "_dn" in key else stable)[key]), key
    assert not torch.equal(stable["loss_class_dn"], focal["loss_class_dn"])
    assert not torch.equal(stable["loss_class"], focal["loss_class"])


def test_the_choices_of_the_common_config_are_what_they_are_called():
    """Also nodes that no config of ours takes, and which share a node."""
    nodes = LazyConfig.load(str(ROOT / "configs" / "common" / "models" / "stable_matching.py"))
    both = instantiate(nodes.focal_denoising)
    assert isinstance(both.otherwise, PositionSupervisedLoss) and both.otherwise.rescale == "largest_iou"
    assert isinstance(both.exceptions["denoising"], FocalLoss)
    assert type(instantiate(nodes.class_cost)) is PositionModulatedCost
    assert type(instantiate(nodes.released_class_cost)) is ReleasedPositionModulatedCost


def test_a_loss_of_a_group_that_nobody_has_is_an_error():
    model = build_small(STABLE)
    model.criterion.losses["class"] = LossByGroup(otherwise=FocalLoss(), denosing=FocalLoss())
    with pytest.raises(ValueError, match=r"class_loss: there is no query group 'denosing'\. Did you mean 'denoising'"):
        model([make_input(64, 96, 1)])
