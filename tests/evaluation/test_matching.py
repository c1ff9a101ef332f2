"""The measures of matching: by hand, and with a model's own matcher."""

import dataclasses
import itertools

import pytest
import torch
from detectron2.config import LazyCall as L
from torch import nn

from dinox.config import load_config
from dinox.data.errors import DataError
from dinox.evaluation.matching import (
    GroundTruthImages,
    ImageMatches,
    anchor_target_distances,
    average_top_k_distance,
    instability,
    match_images,
    matched_distances,
    matched_queries,
    matching_metrics,
    require_matcher,
    unstable_scores,
)
from dinox.structures import MATCHING, PredictionSet
from tests.engine.conftest import TINY_DINO_CONFIG
from tests.engine.tiny import TinyDetector
from tests.small_models import build_small, make_input, randomise_heads

EPS = 1e-6  # float32, of numbers up to 1


def vectors(*rows):
    return [torch.tensor(row, dtype=torch.int32) for row in rows]


def image(index_vector, anchors, boxes, areas=None):
    """Two decoder layers, of which the first one must not matter."""
    last = torch.tensor(index_vector, dtype=torch.int32)
    return ImageMatches(
        name="a.png",
        target_index=torch.stack([torch.full_like(last, -1), last]),
        anchors=None if anchors is None else torch.tensor(anchors),
        boxes=torch.tensor(boxes).view(-1, 4),
        areas=torch.tensor([5000.0] * len(boxes) if areas is None else areas),
    )


# ------------------------------------------------------------------------------------------------------- by hand


def test_an_object_that_changes_its_query_counts_twice():
    # Equation 2 of DN-DETR: queries 1 and 2 differ.
    assert instability(vectors([0, 1, -1, -1]), vectors([0, -1, 1, -1])) == 2


def test_two_objects_that_swap_their_queries_count_twice():
    assert instability(vectors([0, 1, -1]), vectors([1, 0, -1])) == 2


def test_instability_is_averaged_over_images_and_those_without_objects_count():
    before = vectors([0, -1, -1], [-1, -1, -1], [-1, -1, 0], [0, 1, 2])
    now = vectors([-1, 0, -1], [-1, -1, -1], [-1, -1, 0], [0, 2, 1])
    assert instability(before, now) == (2 + 0 + 0 + 2) / 4


@pytest.mark.parametrize(
    "before, now, message",
    [
        (vectors([0]), vectors([0], [0]), "the same images, got 1 and 2"),
        ([], [], "the same images, got 0 and 0"),
        (vectors([0, -1]), vectors([0]), "the same queries, got 2 and 1"),
    ],
)
def test_matches_of_other_images_or_models_are_not_compared(before, now, message):
    with pytest.raises(ValueError, match=message):
        instability(before, now)


def test_distance_of_anchor_boxes_counts_centre_and_size():
    anchors, boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4]]), torch.tensor([[0.4, 0.7, 0.1, 0.1]])
    assert anchor_target_distances(anchors, boxes).tolist() == pytest.approx([0.1 + 0.2 + 0.1 + 0.3], abs=EPS)


def test_distance_of_anchor_points_counts_centres_only():
    anchors, boxes = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.4, 0.7, 0.1, 0.1]])
    assert anchor_target_distances(anchors, boxes).tolist() == pytest.approx([0.1 + 0.2], abs=EPS)


def test_average_top_k_distance():
    distances = torch.tensor([0.1, 0.5, 0.2, 0.4])
    assert average_top_k_distance(distances, 2) == pytest.approx((0.5 + 0.4) / 2, abs=EPS)
    assert average_top_k_distance(distances, 100) == pytest.approx(1.2 / 4, abs=EPS)  # no more than there are
    assert average_top_k_distance(distances[:0], 100) is None


ANCHORS = [[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]


def test_all_measures_of_two_images_and_an_empty_one():
    images = [
        image([1, -1, 0], ANCHORS, [[0.8, 0.9, 0.1, 0.1], [0.1, 0.1, 0.3, 0.1]], areas=[1023.9, 1024.0]),
        image([-1, 0, -1], ANCHORS, [[0.5, 0.1, 0.2, 0.2]], areas=[90.0]),
        image([-1, -1, -1], ANCHORS, []),
    ]
    assert matched_distances(images[0]).tolist() == pytest.approx([0.2, 0.1], abs=EPS)  # in the order of queries
    metrics = matching_metrics(images, previous=vectors([0, -1, 1], [-1, 0, -1], [-1, -1, -1]), top_k=2)
    assert metrics.instability == pytest.approx(2 / 3)
    assert metrics.anchor_target_l1 == pytest.approx((0.2 + 0.1 + 0.4) / 3, abs=EPS)
    assert metrics.atd == pytest.approx((0.4 + 0.2) / 2, abs=EPS)
    assert metrics.atd_small == pytest.approx((0.4 + 0.1) / 2, abs=EPS)
    assert (metrics.images, metrics.objects, metrics.matched, metrics.small) == (3, 3, 3, 2)
    assert list(metrics.scalars()) == [
        "matching/instability",
        "matching/anchor_target_l1",
        "matching/atd_2",
        "matching/atd_2_small",
        "matching/unstable_1",
    ]


def test_objects_without_a_query_have_no_distance():
    boxes = [[0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.9, 0.9], [0.5, 0.4, 0.2, 0.2], [0.9, 0.8, 0.1, 0.1]]
    metrics = matching_metrics([image([0, 2, 3], ANCHORS, boxes)])
    assert (metrics.objects, metrics.matched) == (4, 3)
    assert metrics.anchor_target_l1 == pytest.approx((0 + 0.1 + 0.1) / 3, abs=EPS)


def test_values_that_there_are_none_for_are_left_out():
    empty = matching_metrics([image([-1, -1, -1], ANCHORS, [])])
    assert empty.scalars() == {} and empty.anchors == "boxes"
    without_anchors = matching_metrics([image([0, -1], None, [[0.5, 0.5, 0.2, 0.2]])], previous=vectors([-1, 0]))
    assert without_anchors.scalars() == {"matching/instability": 2, "matching/unstable_1": 100}
    assert without_anchors.anchors is None
    points = matching_metrics([image([0], [[0.5, 0.4]], [[0.5, 0.5, 0.2, 0.2]])])
    assert points.anchors == "points" and points.anchor_target_l1 == pytest.approx(0.1, abs=EPS)
    assert points.atd_small is None


def layers(*rows, objects, encoder=None):
    """An image's matches, layer by layer."""
    return ImageMatches(
        name="a.png",
        target_index=torch.tensor(rows, dtype=torch.int32),
        anchors=None,
        boxes=torch.full((objects, 4), 0.5),
        areas=torch.full((objects,), 5000.0),
        encoder_index=None if encoder is None else torch.tensor(encoder, dtype=torch.int32),
    )


def test_one_of_ten_objects_with_another_query_is_ten_percent():
    """The paper's example."""
    before = [*range(10), -1, -1]
    now = [*range(9), -1, -1, 9]  # the last object goes from query 9 to query 11
    assert unstable_scores([layers(before, now, objects=10)]) == (None, 10)
    assert unstable_scores([layers(before, now, objects=10, encoder=now)]) == (10, 10)


def test_objects_that_swap_their_queries_have_both_changed():
    assert unstable_scores([layers([0, 1, -1], [1, 0, -1], objects=2)]) == (None, 100)


def test_unstable_scores_are_shares_of_all_objects_and_not_means_over_images():
    images = [
        layers([0, -1, -1, -1], [-1, 0, -1, -1], [-1, 0, -1, -1], objects=1, encoder=[0, -1, -1, -1]),
        layers([0, 1, 2, -1], [0, 1, 2, -1], [0, 2, 1, -1], objects=3, encoder=[-1, 1, 2, 0]),
        layers([-1] * 4, [-1] * 4, [-1] * 4, objects=0, encoder=[-1] * 4),
    ]
    # Of four objects, query by query: one is elsewhere in the encoder, then one of the first image, then two.
    assert unstable_scores(images) == (25, 25, 50)


def test_objects_without_a_query_have_changed_only_if_they_had_one():
    crowded = [layers([0, 1], [0, 1], [2, 1], objects=3, encoder=[2, 1])]
    # The encoder leaves object 0 and the next two layers object 2; the last one leaves object 0 again.
    assert unstable_scores(crowded) == (pytest.approx(200 / 3), 0, pytest.approx(200 / 3))


def test_a_proposal_that_no_query_starts_from_is_another_one():
    """Other groups take the rest of the encoder's proposals: object 0 is found at rank 3, beyond the two queries."""
    assert unstable_scores([layers([0, 1], objects=2, encoder=[-1, 1, -1, 0])]) == (50,)


def test_without_objects_or_without_the_encoder_of_an_image_there_is_no_score():
    assert unstable_scores([layers([-1, -1], [-1, -1], objects=0, encoder=[-1, -1])]) == (None, None)
    one, other = layers([0], objects=1, encoder=[0]), layers([0], objects=1)
    assert unstable_scores([one, other]) == (None,)


def test_the_query_of_every_object():
    assert matched_queries(torch.tensor([[-1, 2, 0], [1, -1, -1]]), 4).tolist() == [[2, -1, 1, -1], [-1, 0, -1, -1]]


# ------------------------------------------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def model():
    return randomise_heads(build_small())


def test_matches_are_those_of_the_models_matcher_on_its_last_layer(model):
    x = make_input(64, 96, 3)
    (found,) = match_images(model, [[x]])
    with torch.no_grad():
        model.eval()
        predicted, targets = model.raw_predictions([x]), model.prepare_targets([x])
        (expected,) = model.criterion.matcher([(predicted.logits, predicted.boxes)], targets)
    assert torch.equal(found.target_index, expected[:, 0].int())
    assert sorted(found.pairs()[1].tolist()) == [0, 1, 2]
    assert found.target_index.shape == (3, 20) and found.name == "0.png"
    assert torch.equal(found.anchors, predicted.encoder_boxes[0])  # of mixed query selection
    assert torch.equal(found.boxes, targets.boxes[0])
    assert found.areas.tolist() == pytest.approx(x["instances"].gt_boxes.area().tolist(), rel=1e-4)


def test_unstable_scores_of_a_model_are_those_of_matching_every_layer_on_its_own(model):
    inputs = [make_input(64, 96, 3, seed=1), make_input(64, 64, 5, seed=2), make_input(64, 64, 0, seed=3)]
    matched, objects = [], 0  # per layer, the encoder first: (image, object) -> query
    with torch.no_grad():
        model.eval()
        for number, x in enumerate(inputs):
            predicted, targets = model.raw_predictions([x]), model.prepare_targets([x])
            encoder = predicted.encoder_logits[None], predicted.encoder_boxes[None]
            sets = [encoder, *((predicted.logits[i : i + 1], predicted.boxes[i : i + 1]) for i in range(3))]
            for layer, own in enumerate(sets):
                (index,) = model.criterion.matcher([own], targets)
                if len(matched) == layer:
                    matched.append({})
                matched[layer] |= {(number, int(o)): q for q, o in enumerate(index[0, 0]) if o >= 0}
            objects += len(x["instances"])
    assert objects == len(matched[0]) == 8
    changes = [sum(now[key] != before[key] for key in now) for before, now in itertools.pairwise(matched)]
    assert any(changes) and unstable_scores(match_images(model, [inputs])) == pytest.approx(
        [100 * change / 8 for change in changes]
    )


@pytest.mark.parametrize(
    "config, compared",
    [
        ("dino/dino_r50_4scale_12ep", True),
        ("dino/ablation_static_queries", False),  # no proposals
        ("dab_detr/dab_deformable_detr_r50_two_stage_50ep", True),
        ("deformable_detr/deformable_detr_r50_two_stage_50ep", False),  # class-agnostic, of all tokens
        ("dn_detr/dn_detr_r50_50ep", False),
    ],
)
def test_the_first_layer_is_compared_with_selected_proposals_only(config, compared):
    (found,) = match_images(build_small(config), [[make_input(64, 96, 3)]])
    assert (found.encoder_index is not None) == compared
    scores = unstable_scores([found])
    assert (scores[0] is not None) == compared and None not in scores[1:]


def test_matches_do_not_depend_on_the_batch(model):
    inputs = [make_input(64, 96, 3, seed=1), make_input(64, 64, 0, seed=2), make_input(64, 64, 25, seed=3)]
    alone, together = match_images(model, [[x] for x in inputs]), match_images(model, [inputs])
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.target_index, other.target_index)
        assert torch.equal(one.encoder_index, other.encoder_index)
        torch.testing.assert_close(one.anchors, other.anchors, atol=1e-5, rtol=0)


def test_an_image_without_objects_and_one_with_more_objects_than_queries(model):
    empty, crowded = match_images(model, [[make_input(64, 64, 0), make_input(64, 64, 25, seed=3)]])
    assert (empty.index_vector == -1).all() and len(empty.boxes) == 0 and len(matched_distances(empty)) == 0
    assert sorted(set(crowded.index_vector.tolist())) == sorted(crowded.index_vector.tolist())
    assert (crowded.index_vector >= 0).all() and len(matched_distances(crowded)) == 20


def test_the_models_mode_and_gradients_are_those_of_before(model):
    model.train()
    (found,) = match_images(model, [[make_input(64, 64, 2)]])
    assert model.training and not found.anchors.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


class _Points(nn.Module):
    """A model whose queries have other anchors than DINO's."""

    def __init__(self, model, anchors):
        super().__init__()
        self.model, self.anchors, self.criterion = model, anchors, model.criterion
        self.prepare_targets = model.prepare_targets

    def predict(self, inputs):
        return dataclasses.replace(self.model.predict(inputs), anchors=self.anchors)


@pytest.mark.parametrize("anchors, kind", [(torch.full((1, 20, 2), 0.5), "points"), (None, None)])
def test_models_with_anchor_points_and_without_anchors_are_measured(model, anchors, kind):
    metrics = matching_metrics(match_images(_Points(model, anchors), [[make_input(64, 64, 4)]]))
    assert metrics.anchors == kind and metrics.matched == 4
    assert (metrics.anchor_target_l1 is None) == (anchors is None)


def test_a_model_without_a_matcher_is_named():
    with pytest.raises(ValueError, match=r"here: expected a detection transformer with a matcher.*got a TinyDetector"):
        require_matcher(TinyDetector(num_classes=3), origin="here")


# ------------------------------------------------------------------------------------------------------- images


@pytest.fixture
def cfg():
    return load_config(TINY_DINO_CONFIG)


def test_images_are_evenly_spread_over_the_test_set(cfg):
    everything = GroundTruthImages.of_test_set(cfg).names
    assert len(everything) == 8
    assert GroundTruthImages.of_test_set(cfg, num_images=4).names == everything[::2]
    assert GroundTruthImages.of_test_set(cfg, num_images=100).names == everything


def test_areas_are_those_in_the_image_file(cfg, model):
    images = GroundTruthImages.of_test_set(cfg)
    for record in images.records:
        for annotation in record["annotations"]:
            annotation["bbox"] = [float(side) for side in annotation["bbox"]]
    for record, found in zip(images.records, match_images(model, images.batches()), strict=True):
        expected = [a["bbox"][2] * a["bbox"][3] for a in record["annotations"] if not a["iscrowd"]]
        assert found.areas.tolist() == pytest.approx(expected, rel=1e-4)
    assert next(iter(images.batches()))[0]["image"].shape == (3, 64, 64)  # which is resized from 96 x 96


def test_a_mapper_or_a_dataset_without_objects_is_an_error(cfg):
    cfg.dataloader.test.mapper = L(_BlindMapper)()
    with pytest.raises(DataError, match=r"dataloader\.test\.mapper: expected one that gives `instances`"):
        GroundTruthImages.of_test_set(cfg)
    del cfg.dataloader.test.mapper
    with pytest.raises(DataError, match=r"dataloader\.test\.mapper: expected a part with a _target_.*got None"):
        GroundTruthImages.of_test_set(cfg)
    cfg.dataloader.test.mapper, cfg.dataloader.test.dataset = L(_BlindMapper)(), L(_only_crowds)()
    with pytest.raises(DataError, match="1 images without any object"):
        GroundTruthImages.of_test_set(cfg)


class _BlindMapper:
    def __call__(self, record):
        return {"image": torch.zeros(3, 8, 8), "height": 8, "width": 8}


def _only_crowds():
    return [{"file_name": "a.png", "annotations": [{"iscrowd": 1}]}]


def test_predictions_carry_the_anchors_that_the_matching_group_starts_with():
    model = build_small("dino/ablation_static_queries").eval()
    predictions = model.predict([make_input(64, 64, 0)])
    assert isinstance(predictions.groups[MATCHING], PredictionSet)
    assert predictions.anchors.shape == (1, 20, 4)
    other = model.predict([make_input(64, 64, 0, seed=5)])
    assert torch.equal(predictions.anchors, other.anchors)  # learned, whatever the image
