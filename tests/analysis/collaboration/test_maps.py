"""Maps and curves by hand."""

import itertools
import math

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from dinox.analysis.collaboration import (
    Curve,
    activated_share,
    as_distribution,
    average_levels,
    discriminability,
    foreground_mask,
    grad_cam,
    iof_and_iob,
)
from dinox.analysis.collaboration.discrimination import CurveSum, thresholds
from dinox.analysis.collaboration.pictures import line_of


def test_discriminability_is_the_norm_over_its_maximum_at_each_level_and_the_mean_of_levels():
    fine = torch.tensor([[3.0, 0.0], [0.0, 6.0]]) * torch.tensor([1.0, 4.0 / 3])[:, None, None]  # norms 5 and 10
    coarse = torch.full((2, 1, 1), 7.0)  # 1 everywhere, whatever its size
    expected = torch.tensor([[0.75, 0.5], [0.5, 1.0]])
    torch.testing.assert_close(discriminability([fine, coarse], (2, 2)), expected)


def test_levels_are_resized_to_the_image_bilinearly():
    # Centres of the four pixels lie at 1/4 of a cell outside of, and inside of the centres of the two cells.
    row = average_levels([torch.tensor([[0.0, 2.0]])], (1, 4))
    torch.testing.assert_close(row, torch.tensor([[0.0, 0.25, 0.75, 1.0]]))


def test_a_level_that_is_zero_counts_as_zero():
    maps = [torch.zeros(2, 2), torch.ones(2, 2)]
    assert average_levels(maps, (2, 2)).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_grad_cam_weighs_channels_by_their_mean_gradient_and_keeps_what_speaks_for_the_score():
    features = torch.tensor([[[1.0, 2.0]], [[3.0, 1.0]]])  # (2 channels, 1, 2)
    gradients = torch.tensor([[[2.0, 4.0]], [[-1.0, -1.0]]])  # means 3 and -1: maps 3 - 3 = 0 and 6 - 1 = 5
    assert grad_cam([features], [gradients], (1, 2)).tolist() == [[0.0, 1.0]]
    assert grad_cam([features], [-gradients.abs()], (1, 2)).tolist() == [[0.0, 0.0]]


def test_a_distribution_adds_up_to_one_and_is_positive_where_the_map_is_zero():
    cam = torch.tensor([[0.0, 1.0]])
    expected = torch.tensor([[1 / (1 + math.e), math.e / (1 + math.e)]], dtype=torch.float64)
    torch.testing.assert_close(as_distribution(cam), expected)
    assert as_distribution(torch.zeros(2, 2)).tolist() == [[0.25, 0.25], [0.25, 0.25]]


# --------------------------------------------------------------------------------------------------------------- curves


def test_a_map_that_is_the_mask_has_all_of_the_foreground_and_nothing_of_the_background():
    mask = torch.tensor([[True, False, False], [False, True, False]])
    at = thresholds(mask.float())
    iof, iob = iof_and_iob(mask.float(), mask, at)
    assert (iof[:-1] == 1).all() and (iob == 0).all()
    assert iof[-1] == 0  # nothing is above 1
    assert Curve(at, iof, iob, 1).area == pytest.approx(1)
    iof, iob = iof_and_iob(1 - mask.float(), mask, at)
    assert Curve(at, iof, iob, 1).area == pytest.approx(0)


def test_a_flat_map_knows_nothing():
    mask = torch.tensor([[True, False]])
    at = torch.tensor([0.0, 0.7])
    assert Curve(at, *iof_and_iob(torch.full((1, 2), 0.7), mask, at), 1).area == pytest.approx(0.5)


def test_a_map_of_a_narrow_range_still_tells_objects():
    """As norms of layer-normed features are: all of them within 1 % of their maximum."""
    mask = torch.tensor([[True, False, False]])
    scores = torch.tensor([[1.0, 0.996, 0.991]])
    at = thresholds(scores)
    curve = Curve(at, *iof_and_iob(scores, mask, at), 1)
    assert curve.area == pytest.approx(1)


def test_a_thinned_curve_keeps_its_steps():
    at = torch.linspace(0, 1, 6)
    iof, iob = torch.tensor([1, 1, 1, 0.5, 0.4999, 0]), torch.tensor([1, 0.3, 0.3, 0.3, 0.3, 0])
    thinned = Curve(at, iof, iob, 3).thinned()
    torch.testing.assert_close(thinned.thresholds, at[[0, 1, 3, 5]])
    torch.testing.assert_close(thinned.iof, iof[[0, 1, 3, 5]])
    assert thinned.images == 3


def test_a_share_is_of_the_pixels_of_the_mask_that_are_above_the_threshold():
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    mask = torch.tensor([[True, True, True, False]])
    shares = activated_share(scores, mask, torch.tensor([0.0, 0.1, 0.15, 0.25, 0.35]))
    torch.testing.assert_close(shares, torch.tensor([1, 2 / 3, 2 / 3, 1 / 3, 0]))


@pytest.mark.parametrize("mask", [torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)])
def test_an_image_of_one_kind_has_no_curve(mask):
    assert iof_and_iob(torch.rand(2, 2), mask, torch.tensor([0.5])) is None
    total = CurveSum()
    total.add(torch.rand(2, 2), mask)
    assert total.curve() is None


def test_curves_are_means_over_images_not_over_pixels():
    total = CurveSum()
    mask = torch.tensor([[True, False]])
    total.add(mask.float(), mask)
    wide = torch.tensor([[True] * 9 + [False]])
    total.add((~wide).float(), wide)  # the wrong way round, with more foreground
    curve = total.curve()
    assert curve.images == 2
    assert curve.iof[0] == pytest.approx(0.5) and curve.iob[0] == pytest.approx(0.5)


def area_of(scores: torch.Tensor, mask: torch.Tensor) -> float:
    total = CurveSum()
    total.add(scores, mask)
    return total.curve().area


def test_a_map_with_a_peak_still_tells_objects():
    """As of attention: one pixel is 1, and all others within a thousandth of 1e-6. A pair of pixels, one of the object
    and one of the background, is in the right order but for those with the peak, which is background: 9999 of 10000."""
    mask = torch.zeros(200, 100, dtype=torch.bool)
    mask[:100] = True
    scores = torch.linspace(1.001e-6, 1e-6, 20000, dtype=torch.float64).view(200, 100)
    scores[199, 99] = 1
    # Shares are exact to half a thousandth.
    assert area_of(scores, mask) == pytest.approx(0.9999, abs=1e-3)


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    """Against a loop over pairs, at a scale where all values lie below 1e-4; pairs of equals count a half."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(20, 20, generator=generator) < 0.3
    scores = (torch.randint(30, (20, 20), generator=generator) + 8 * mask) / 1e6
    pairs = scores[mask][:, None] - scores[~mask]
    expected = ((pairs > 0).double() + (pairs == 0).double() / 2).mean()
    assert area_of(scores, mask) == pytest.approx(float(expected), abs=1e-5)  # the area is of single precision


def test_images_share_their_thresholds():
    """Two maps that both tell the object. Between the values of the smaller one and those of the larger one, everything
    is active in the one image and nothing in the other: half in the mean."""
    total = CurveSum()
    mask = torch.tensor([[True, False]])
    for scale in (1.0, 1e-6):
        total.add(torch.tensor([[scale, scale / 2]]), mask)
    curve = total.curve()
    torch.testing.assert_close(curve.thresholds, torch.tensor([5e-7, 1e-6, 0.5, 1.0]))
    torch.testing.assert_close(curve.iof, torch.tensor([1, 0.5, 0.5, 0], dtype=torch.float64))
    torch.testing.assert_close(curve.iob, torch.tensor([0.5, 0.5, 0, 0], dtype=torch.float64))


def test_thresholds_are_no_more_than_asked_for_and_spread_as_the_values_are():
    assert thresholds(torch.arange(100.0), most=4).tolist() == [12, 37, 62, 87]
    assert thresholds(torch.tensor([3.0, 1.0, 3.0])).tolist() == [1, 3]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_maps_that_are_not_finite_are_errors(wrong):
    with pytest.raises(ValueError, match="scores: expected a map of finite numbers"):
        CurveSum().add(torch.tensor([[wrong, 0.0]]), torch.tensor([[True, False]]))


def test_curves_of_two_models_differ_in_colour_and_style():
    lines = [line_of(i) for i in range(28)]
    assert len({(line["color"], line["linestyle"]) for line in lines}) == 28
    for one, next_one in itertools.pairwise(lines):
        assert one["color"] != next_one["color"] and one["linestyle"] != next_one["linestyle"]


def objects(**fields) -> Instances:
    boxes = Boxes(torch.tensor([[1.0, 0.0, 3.0, 1.0], [2.0, 0.0, 4.0, 2.0]]))
    return Instances((3, 4), gt_boxes=boxes, gt_classes=torch.zeros(2, dtype=torch.long), **fields)


def test_the_foreground_is_the_union_of_boxes():
    assert foreground_mask(objects()).int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert not foreground_mask(objects()[:0]).any()


def test_a_pixel_is_in_a_box_if_its_centre_is():
    part = Instances((1, 3), gt_boxes=Boxes(torch.tensor([[0.6, 0.0, 2.4, 1.0]])))
    assert foreground_mask(part).int().tolist() == [[0, 1, 0]]


def test_the_foreground_is_the_union_of_masks_where_there_are_any():
    bits = torch.zeros(2, 3, 4, dtype=torch.bool)
    bits[0, 0, 1] = bits[1, 2, 3] = True
    assert torch.equal(foreground_mask(objects(gt_masks=BitMasks(bits))), bits.any(0))
    square = [[1.0, 0.0, 3.0, 0.0, 3.0, 2.0, 1.0, 2.0]]
    polygons = PolygonMasks([square, square])
    assert foreground_mask(objects(gt_masks=polygons)).int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
