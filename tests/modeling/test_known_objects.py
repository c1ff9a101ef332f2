"""Known objects (DN-DETR, section 5.7.1): what the groups learn, and what known objects do to detections."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes

from dinox.modeling import OneClassPerImage, SplitAtRandom, SplitByClass
from dinox.modeling.queries import DenoisingNoise
from dinox.structures import QueryContext, Targets

from ..small_models import assert_trains_one_step, build_small, loss_keys, make_input, make_memory, randomise_heads

SHAPES = "dn_detr/known_objects_shapes"  # deformable
COCO = "dn_detr/known_objects_70_30"  # dense
KNOWN, UNKNOWN = [1, 2, 5], [0, 3, 4]


@pytest.fixture(scope="module", params=[SHAPES, COCO])
def model(request):
    return randomise_heads(build_small(request.param, "model.num_classes=6", *SPLIT)).eval()


SPLIT = [f"model.query_groups.split.known={KNOWN}", f"model.query_groups.split.unknown={UNKNOWN}"]


def knowing(x: dict, labels, seed: int = 0) -> dict:
    height, width = x["image"].shape[-2:]
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(len(labels), 2, generator=generator) * 0.6
    size = torch.rand(len(labels), 2, generator=generator) * 0.3 + 0.05
    boxes = torch.cat([corner, corner + size], dim=1) * torch.tensor([width, height, width, height])
    return {**x, "known_boxes": boxes, "known_labels": labels}


def with_classes(*labels: int, seed: int = 0) -> dict:
    x = make_input(64, 96, len(labels), seed=seed)
    x["instances"].gt_classes = torch.tensor(labels, dtype=torch.int64)
    return x


def make_context(*labels: list[int], seed: int = 0) -> QueryContext:
    labels = [torch.tensor(each, dtype=torch.int64) for each in labels]
    targets = Targets.from_lists(labels, [torch.full((len(each), 4), 0.5) for each in labels])
    memory = make_memory(torch.zeros(len(labels), 1, 8))
    return QueryContext(memory, targets=targets, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------- training


def test_known_classes_reach_the_denoising_part_only():
    """Known objects moved and relabelled: other denoising targets, the same matching ones; and the other way round."""
    model = build_small(SHAPES)
    seen = {}
    assign = model.criterion.assign

    def spy(predictions, targets):
        seen.update({p.name: p.target_view(targets) for p in predictions})
        return assign(predictions, targets)

    model.criterion.assign = spy
    model([with_classes(0, 1, 3, 5), with_classes(2, 2, seed=1)])
    matching, denoising = seen["matching"], seen["denoising"]
    assert [row[:n].tolist() for row, n in zip(matching.labels, matching.counts, strict=True)] == [[0, 3], []]
    assert [row[:n].tolist() for row, n in zip(denoising.labels, denoising.counts, strict=True)] == [[1, 5], [2, 2]]


def test_known_objects_are_no_targets_of_matching_losses():
    """They change what the matching queries see, but with the predictions fixed nothing that those are to predict."""
    model = randomise_heads(build_small(SHAPES))
    inputs = [with_classes(0, 1, 3, 5)]
    predictions = model.predict(inputs, model.prepare_targets(inputs)).for_losses()
    matching = [p for p in predictions if p.name == "matching"]
    before = model.criterion(matching, model.prepare_targets(inputs))
    inputs[0]["instances"].gt_boxes.tensor[[1, 3]] *= 0.5
    inputs[0]["instances"].gt_classes[[1, 3]] = 2
    after = model.criterion(matching, model.prepare_targets(inputs))
    for key, value in before.items():
        assert torch.equal(value, after[key]), key


@pytest.mark.parametrize("config", [SHAPES, COCO])
@pytest.mark.parametrize(
    "classes", [[(0, 1), (3,)], [(1, 2), (5,)], [(0,), (3, 4)], [(), ()]], ids=["both", "known", "unknown", "none"]
)
def test_losses_and_gradients_are_the_same_whichever_objects_are_missing(config, classes):
    model = build_small(config, "model.num_classes=6", *SPLIT)
    inputs = [with_classes(*labels, seed=i) for i, labels in enumerate(classes)]
    assert set(assert_trains_one_step(model, inputs)) == loss_keys(encoder=False)


def test_a_baseline_without_denoising_learns_the_unknown_classes_only():
    model = build_small(SHAPES, "model.query_groups.denoising=null")
    losses = assert_trains_one_step(model, [with_classes(1, 2)])
    assert losses["loss_bbox"] == 0 and set(losses) == loss_keys(groups=("",), encoder=False)


def test_every_object_is_in_one_part_of_a_random_split():
    context = make_context([0, 1, 2, 3, 4], [5], [])
    for seed in range(5):
        context.generator.manual_seed(seed)
        views = SplitAtRandom()(context)
        known, matching = views["denoising"](context.targets), views["matching"](context.targets)
        together = [
            sorted(known.labels[b, : known.counts[b]].tolist() + matching.labels[b, : matching.counts[b]].tolist())
            for b in range(3)
        ]
        assert together == [[0, 1, 2, 3, 4], [5], []]
    assert SplitAtRandom(most=0.0)(context)["denoising"](context.targets).max_count == 0


def test_one_class_of_an_image_is_drawn_whatever_the_number_of_its_objects():
    context, drawn = make_context([4] * 9 + [2], [], [3, 3]), []
    for seed in range(200):
        context.generator.manual_seed(seed)
        chosen = OneClassPerImage()(context)["matching"](context.targets)
        assert chosen.counts[1:] == (0, 2)
        drawn.append(chosen.labels[0, 0].item())
        assert chosen.counts[0] == {4: 9, 2: 1}[drawn[-1]]
    assert 70 < drawn.count(2) < 130  # 100 expected; 4 standard deviations are 28


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"known": [0, 1], "unknown": [1, 2]}, "class 1 is both known and unknown"),
        ({"known": [0, 0], "unknown": [1]}, r"known: expected class indices.*each once, got \[0, 0\]"),
        ({"known": [0], "unknown": [-1]}, r"unknown: expected class indices of at least 0.*got \[-1\]"),
        ({"known": [3], "unknown": [0]}, "known has class 3, but the model has num_classes = 3"),
        ({"known": [0], "unknown": []}, "unknown: expected at least one class"),
    ],
)
def test_bad_splits_are_named(split, message):
    with pytest.raises(ValueError, match=message):
        SplitByClass(num_classes=3, **split)


def test_classes_that_the_model_does_not_have_are_named():
    with pytest.raises(ValueError, match=r"known has class 5, but the model has num_classes = 3"):
        build_small(SHAPES, "model.num_classes=3")


def test_a_split_beside_query_selection_is_an_error():
    split = "{_target_: dinox.modeling.SplitAtRandom, most: 0.5}"
    model = build_small("dino/dino_r50_4scale_12ep", f"model.query_groups.split={split}")
    with pytest.raises(ValueError, match="the encoder would learn to propose all objects"):
        model([with_classes(0, 1)])


# ------------------------------------------------------------------------------------------------------------ inference


def test_known_objects_change_the_detections_and_absent_keys_do_not(model):
    x = make_input(64, 96, 0)
    plain, told = model.raw_predictions([x]), model.raw_predictions([knowing(x, [1, 5])])
    nothing = model.raw_predictions([knowing(x, [])])
    assert plain.logits.shape == told.logits.shape
    assert (plain.logits - told.logits).abs().max() > 1e-3
    assert torch.equal(plain.logits, nothing.logits) and torch.equal(plain.boxes, nothing.boxes)


def test_without_the_keys_the_model_is_the_one_without_known_objects():
    overrides = ["model.query_groups.visibility=null", "model.query_groups.split=null"]
    told, plain = (randomise_heads(build_small(SHAPES, *each)).eval() for each in ([], overrides))
    x = make_input(64, 96, 0)
    assert torch.equal(told.raw_predictions([x]).logits, plain.raw_predictions([x]).logits)


def test_the_order_of_known_objects_does_not_matter(model):
    """1e-5: only the order of summation differs."""
    x = knowing(make_input(64, 96, 0), [1, 5, 2])
    turned = {**x, "known_boxes": x["known_boxes"].flip(0), "known_labels": x["known_labels"][::-1]}
    before, after = model.raw_predictions([x]), model.raw_predictions([turned])
    torch.testing.assert_close(before.logits, after.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(before.boxes, after.boxes, atol=1e-5, rtol=1e-5)


def test_images_that_know_different_numbers_of_objects_do_not_change_each_other(model):
    """1e-4, as for batches without known objects."""
    inputs = [
        knowing(make_input(64, 96, 0, seed=0), [1, 5, 2]),
        make_input(96, 64, 0, seed=1),
        knowing(make_input(64, 64, 0, seed=2), [2], seed=1),
    ]
    together = model.raw_predictions(inputs)
    for i, x in enumerate(inputs):
        alone = model.raw_predictions([x])
        torch.testing.assert_close(together.logits[:, i], alone.logits[:, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(together.boxes[:, i], alone.boxes[:, 0], atol=1e-4, rtol=0)


def test_boxes_and_labels_can_be_given_in_any_usual_type(model):
    x = knowing(make_input(64, 96, 0), [1, 5])
    boxes = x["known_boxes"]
    expected = model.raw_predictions([x]).logits
    for given, labels in (
        (boxes.tolist(), torch.tensor([1, 5])),
        (boxes.numpy(), np.array([1, 5])),
        (Boxes(boxes), [np.int64(1), 5]),
    ):
        told = {**x, "known_boxes": given, "known_labels": labels}
        assert torch.equal(model.raw_predictions([told]).logits, expected)


def test_labels_can_be_names_where_the_model_has_them():
    model = randomise_heads(build_small(SHAPES)).eval()
    model.class_names = ("disk", "ring", "square", "triangle", "star", "cross")
    x = knowing(make_input(64, 96, 0), [1, 5])
    named = {**x, "known_labels": ["ring", "cross"]}
    assert torch.equal(model.raw_predictions([x]).logits, model.raw_predictions([named]).logits)
    with pytest.raises(ValueError, match=r"0\.png: known_labels: the model has no class 'rin'\. Did you mean 'ring'"):
        model([{**x, "known_labels": ["rin", "cross"]}])


@pytest.mark.parametrize(
    "config",
    ["dn_anchor_detr_r50_dc5_12ep", "dn_conditional_detr_r50_50ep", "dn_vanilla_detr_r50_300ep", "dn_detr_r50_50ep"]
    + ["dn_deformable_detr_two_stage_r50_50ep", "dino_dn_r50_4scale_12ep"],
)
def test_every_detector_with_denoising_can_be_told_objects(config):
    visibility = "model.query_groups.visibility={_target_: dinox.modeling.FullVisibility}"
    depth = f"model.backbone.bottom_up.depth={50 if 'dc5' in config else 18}"
    model = randomise_heads(build_small(f"dn_detr/{config}", visibility, depth)).eval()
    x = knowing(make_input(64, 96, 0), [1, 5])
    with_it, without = model.raw_predictions([x, make_input(64, 96, 0)]).logits.unbind(1)
    assert torch.isfinite(with_it).all() and (with_it - without).abs().max() > 1e-4


NAN = float("nan")
BAD = {
    "three numbers": ({"known_boxes": [[1, 2, 3]], "known_labels": [1]}, r"shape \(n, 4\).*got shape \(1, 3\)"),
    "one box flat": ({"known_boxes": [1, 2, 3, 4], "known_labels": [1]}, r"got shape \(4,\)"),
    "no numbers": ({"known_boxes": "all", "known_labels": [1]}, "got str"),
    "rows of different lengths": ({"known_boxes": [[1, 2], [3]], "known_labels": [1]}, "known_boxes as numbers"),
    "not finite": ({"known_boxes": [[1, NAN, 3, 4]], "known_labels": [1]}, r"known_boxes\[0\].*expected finite"),
    "corners swapped": ({"known_boxes": [[1, 2, 9, 9], [9, 2, 3, 4]], "known_labels": [1, 1]}, r"\[1\].*x2 > x1"),
    "no area": ({"known_boxes": [[1, 2, 1, 4]], "known_labels": [1]}, "expected x2 > x1"),
    "another frame": ({"known_boxes": [[1, 2, 300, 40]], "known_labels": [1]}, "inside of the image, which is 96 x 64"),
    "negative": ({"known_boxes": [[-5, 2, 30, 40]], "known_labels": [1]}, "inside of the image"),
    "no labels": ({"known_boxes": [[1, 2, 3, 4]]}, "one of known_labels for each of known_boxes, got 0 for 1"),
    "no boxes": ({"known_labels": [1]}, "got 1 for 0 boxes"),
    "too many labels": ({"known_boxes": [[1, 2, 3, 4]], "known_labels": [1, 2]}, "got 2 for 1 boxes"),
    "label too large": ({"known_boxes": [[1, 2, 3, 4]], "known_labels": [6]}, "num_classes = 6, got 6"),
    "label negative": ({"known_boxes": [[1, 2, 3, 4]], "known_labels": [-1]}, "got -1"),
    "label a fraction": ({"known_boxes": [[1, 2, 3, 4]], "known_labels": [1.5]}, "whole numbers.*got 1.5"),
    "label a bool": ({"known_boxes": [[1, 2, 3, 4]], "known_labels": [True]}, "whole numbers.*got True"),
    "one label": ({"known_boxes": [[1, 2, 3, 4]], "known_labels": 1}, "expected a list of classes, got 1"),
    "one label as a tensor": (
        {"known_boxes": [[1, 2, 3, 4]], "known_labels": torch.tensor(1)},
        "expected a list of classes, got 1",
    ),
    "labels in rows": ({"known_boxes": [[1, 2, 3, 4]], "known_labels": torch.tensor([[1]])}, r"whole.*got \[1\]"),
    "a name": ({"known_boxes": [[1, 2, 3, 4]], "known_labels": ["ring"]}, "'ring' is a name, but the model does not"),
    "known classes": ({"known_classes": [1]}, "take no labels.*KnownLabelQueries"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_an_error_that_names_the_image(model, name):
    wrong, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        model([{**make_input(64, 96, 0), **wrong}])
    assert str(error.value).startswith("0.png: ") or "known_classes" in wrong


@pytest.mark.parametrize("config", ["dino/dino_r50_4scale_12ep", "detr/detr_r50_500ep"])
def test_known_objects_are_an_error_where_they_would_change_nothing(config):
    model = build_small(config, "model.num_classes=6").eval()
    with pytest.raises(ValueError, match=r"would change nothing.*FullVisibility"):
        model([knowing(make_input(64, 96, 0), [1])])
    assert len(model([knowing(make_input(64, 96, 0), [])])) == 1


def test_classes_that_the_model_was_never_told_are_an_error(model):
    known = {"known_boxes": torch.tensor([[10.0, 10.0, 30.0, 30.0]]), "known_labels": [0]}
    with pytest.raises(ValueError, match=r"class 0 is not one of the classes .* told: \[1, 2, 5\]"):
        model.eval()([{**make_input(64, 96, 0), **known}])


def test_boxes_of_which_nothing_lies_in_the_image_are_an_error(model):
    known = {"known_boxes": torch.tensor([[96.0, 0.0, 96.9, 10.0]]), "known_labels": [1]}
    with pytest.raises(ValueError, match="of which nothing lies in the image"):
        model.eval()([{**make_input(64, 96, 0), **known}])


def test_in_training_an_image_does_not_see_how_much_is_known_of_others():
    """Padded denoising queries, whose number is that of the fullest image, are seen by nobody. Norms and dropout are
    those of evaluation, so that nothing else mixes the images of a batch; 1e-5 for sums of another length.
    """
    model = randomise_heads(build_small(SHAPES, "model.num_classes=6", *SPLIT)).eval()
    other = [make_input(64, 96, count, num_classes=6, seed=1) for count in (1, 8)]
    for x in other:
        x["instances"].gt_classes[:] = KNOWN[0]
    logits = []
    for each in other:
        inputs = [make_input(64, 96, 2, num_classes=6, seed=0), each]
        inputs[0]["instances"].gt_classes[:] = torch.tensor([KNOWN[0], UNKNOWN[0]])
        targets = model.prepare_targets(inputs)
        model.query_groups["denoising"].sample_noise = without_noise
        logits.append(model.predict(inputs, targets).of_matching().logits[:, 0])
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


def without_noise(shape, copies, context):
    shape = (shape[0], copies, shape[1])
    zeros = torch.zeros(*shape, 4)
    return DenoisingNoise(torch.ones(shape), torch.zeros(shape, dtype=torch.int64), zeros, zeros)
