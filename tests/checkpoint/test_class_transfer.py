"""Training that starts from a detector of other classes: every class takes the weights of the class of its name."""

import logging

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, MaskRCNNConvUpsampleHead
from torch import nn

from dinox.checkpoint import CheckpointError, load_weights
from dinox.checkpoint.class_transfer import check_same_classes, match_classes, row_layouts
from dinox.structures import ClassRows
from tests.small_models import DINO, build_small, load_small, make_input

DETR, DN_DETR = "detr/detr_r50_300ep", "dn_detr/dn_detr_r50_50ep"
TWO_STAGE = "deformable_detr/deformable_detr_r50_two_stage_50ep"
CO_DETR, SIX_HEADS = "co_detr/co_deformable_detr_r50_12ep", "co_detr/ablation_six_heads"
MASKS = "co_detr/ablation_mask_rcnn"
RCNN = "dn_detr/dn_faster_rcnn_r50_fpn_1x"

THEIRS = ["disk", "ring", "Traffic Light"]
OURS = ["star", "traffic_light", "cross", "disk"]
SOURCES = [None, 2, None, 0]  # the classes of OURS in THEIRS


def save(model, names, path):
    content = {"model": model.state_dict()} | ({} if names is None else {"dinox": {"class_names": list(names)}})
    torch.save(content, path)
    return str(path)


def number_rows(model):
    """Every row of a tensor by class says its place: 1, 2, 3, ..."""
    state = model.state_dict()
    for name in row_layouts(model):
        rows = torch.arange(1, len(state[name]) + 1).to(state[name])
        state[name].copy_(rows.view(-1, *[1] * (state[name].dim() - 1)).expand_as(state[name]))
    return model


def rows_of_the_file(model, name):
    """For every row of a tensor, which of the file's numbered ones it is; None: another one."""
    tensor = model.state_dict()[name]
    rows = tensor.reshape(len(tensor), -1)
    return tuple(int(row[0]) if (row == row[0]).all() and row[0] in range(1, 99) else None for row in rows)


def with_classes(config, number, **options):
    """The small model of a config, for so many classes."""
    if config == RCNN:
        head = "model.roi_heads."
        return build_small(
            config, f"{head}num_classes={number}", f"{head}box_predictor.num_classes={number}", **options
        )
    return build_small(config, f"model.num_classes={number}", **options)


# ------------------------------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize(
    "theirs, ours, expected",
    [
        (["a", "b"], ["b", "a"], [1, 0]),
        (["Traffic Light", "cell_phone "], ["traffic_light", "Cell  Phone"], [0, 1]),
        (["traffic-light"], ["traffic light"], [None]),  # spelt otherwise: no guesses
        (["cat"], ["cats", "kitten"], [None, None]),
        (["Cat", "cat"], ["cat", "CAT"], [1, None]),  # as it is spelt; the other one would be a guess
        (["Cat", "cat"], ["CAT"], [None]),
        (["cat", "cat"], ["cat"], [None]),
        (["cat"], ["cat", "cat"], [None, None]),
        (["cat"], ["cat", "Cat"], [0, None]),
        (["Straße"], ["STRASSE"], [0]),
        ([], ["a"], [None]),
    ],
)
def test_names_match_but_for_capitals_blanks_and_underscores(theirs, ours, expected):
    assert match_classes(theirs, ours) == expected


# ---------------------------------------------------------------------------------------------- three classes into four


def heads(prefix, *kinds):
    return [f"{prefix}.{kind}" for kind in kinds or ("weight", "bias")]


LABELS = "query_groups.denoising.label_embedding.table.weight"
SHARED_LABELS = "query_groups.label_embedding.table.weight"
BOX_ROWS = (*[None] * 4, 9, 10, 11, 12, *[None] * 4, 1, 2, 3, 4)
EXPECTED = {
    # Row k of the new head -> row of the file, from 1; None: as initialised. The file has classes 1, 2, 3.
    DINO: {
        **dict.fromkeys(heads("heads.class_heads.0"), (None, 3, None, 1)),
        **dict.fromkeys(heads("query_selection.class_head"), (None, 3, None, 1)),
        LABELS: (None, 3, None, 1),
    },
    # "No object" comes last.
    DETR: dict.fromkeys(heads("heads.class_heads.0"), (None, 3, None, 1, 4)),
    # "Unknown" comes last, in the table that the groups share.
    DN_DETR: {
        **dict.fromkeys(heads("heads.class_heads.0"), (None, 3, None, 1)),
        SHARED_LABELS: (None, 3, None, 1, 4),
    },
    # The encoder's first row is "object", whatever the classes are.
    TWO_STAGE: {
        **{name: (None, 3, None, 1) for i in range(3) for name in heads(f"heads.class_heads.{i}")},
        **dict.fromkeys(heads("query_selection.class_head"), (1, 2, 3, None)),
    },
    CO_DETR: {
        **{name: (None, 3, None, 1) for i in range(3) for name in heads(f"heads.class_heads.{i}")},
        **dict.fromkeys(heads("query_selection.class_head"), (1, 2, 3, None)),
        **dict.fromkeys(heads("auxiliary_heads.atss.branches.class_output"), (None, 3, None, 1)),
        **dict.fromkeys(heads("auxiliary_heads.roi.predictor.cls_score"), (None, 3, None, 1, 4)),
        **dict.fromkeys(heads("auxiliary_heads.roi.predictor.bbox_pred"), BOX_ROWS),
    },
}


@pytest.mark.parametrize("config", EXPECTED)
def test_rows_go_to_the_class_of_their_name_and_others_stay_as_initialised(config, tmp_path):
    path = save(number_rows(with_classes(config, 3)), THEIRS, tmp_path / "a.pth")
    model, untouched = (with_classes(config, 4, seed=1) for _ in range(2))
    report = load_weights(model, path, class_names=OURS)
    assert {name: rows_of_the_file(model, name) for name in row_layouts(model)} == EXPECTED[config]
    for name, rows in EXPECTED[config].items():
        new = [place for place, row in enumerate(rows) if row is None]
        assert torch.equal(model.state_dict()[name][new], untouched.state_dict()[name][new])
    assert sorted(report.by_class) == sorted(EXPECTED[config])
    assert len(report.loaded) + len(report.by_class) == report.model_tensors
    assert (report.classes.taken, report.classes.new) == (("traffic_light", "disk"), ("star", "cross"))
    assert report.classes.unused == ("ring",) and not report.classes.refused


def test_every_anchor_of_a_cell_has_its_own_rows(tmp_path):
    """RetinaNet has nine; rows of the file are 3 classes of the first anchor, then those of the next."""
    path = save(number_rows(with_classes(SIX_HEADS, 3)), THEIRS, tmp_path / "a.pth")
    model = with_classes(SIX_HEADS, 4, seed=1)
    load_weights(model, path, class_names=OURS)
    rows = tuple(row for anchor in range(9) for row in (None, 3 + 3 * anchor, None, 1 + 3 * anchor))
    for name in heads("auxiliary_heads.retinanet.branches.class_output"):
        assert rows_of_the_file(model, name) == rows


def test_masks_follow_their_classes(tmp_path):
    path = save(number_rows(with_classes(MASKS, 3)), THEIRS, tmp_path / "a.pth")
    model = with_classes(MASKS, 4, seed=1)
    load_weights(model, path, class_names=OURS)
    assert rows_of_the_file(model, "auxiliary_heads.roi.mask_branch.head.predictor.weight") == (None, 3, None, 1)


# ---------------------------------------------------------------------------------------- the same classes, other order


def losses(model, labels):
    """Of one seeded batch with objects of these classes."""
    inputs = [make_input(64, 64, len(labels), num_classes=1, seed=3)]
    inputs[0]["instances"].gt_classes = torch.tensor(labels)
    torch.manual_seed(7)
    with torch.no_grad():
        return model.double()(inputs)


def spread_heads(model):
    """Rows that start alike, or as zeros, would not show which is which."""
    generator = torch.Generator().manual_seed(5)
    for name in row_layouts(model):
        tensor = model.state_dict()[name]
        tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.3)
    return model


@pytest.mark.parametrize("config", [DINO, DETR, DN_DETR, TWO_STAGE, SIX_HEADS])
def test_a_detector_of_the_same_classes_in_another_order_has_the_same_losses(config, tmp_path):
    """Objects are relabelled as their classes are renumbered. Labels are not flipped: a class drawn at random would be
    another one. Sums over classes come in another order, which in float64 makes less than 1e-9."""
    flip = "model.query_groups.denoising.flip_probability=0.0"
    overrides = ["model.num_classes=3"] + ([flip] if load_small(config).model.query_groups.get("denoising") else [])
    ours = ["b", "c", "a"]
    saved = spread_heads(build_small(config, *overrides))
    path = save(saved, ["a", "b", "c"], tmp_path / "a.pth")
    permuted, as_it_is = (build_small(config, *overrides, seed=1) for _ in range(2))
    report = load_weights(permuted, path, class_names=ours)
    load_weights(as_it_is, path)
    wanted, found, wrong = losses(saved, [0, 1, 1]), losses(permuted, [2, 0, 0]), losses(as_it_is, [2, 0, 0])
    assert wanted.keys() == found.keys()
    for name, loss in wanted.items():
        assert found[name] == pytest.approx(loss.item(), rel=1e-9, abs=1e-12), name
    assert wrong["loss_class"].item() != pytest.approx(wanted["loss_class"].item(), rel=1e-3)
    assert report.classes.taken == ("b", "c", "a") and not report.classes.new and not report.classes.unused


def test_the_logits_of_classes_taken_over_are_those_of_the_file(tmp_path):
    saved = spread_heads(with_classes(DETR, 3))
    model = with_classes(DETR, 4, seed=1)
    load_weights(model, save(saved, THEIRS, tmp_path / "a.pth"), class_names=OURS)
    inputs = [make_input(64, 64, 2)]
    theirs, ours = (each.eval().raw_predictions(inputs) for each in (saved, model))
    torch.testing.assert_close(ours.logits[..., [1, 3, 4]], theirs.logits[..., [2, 0, 3]])  # the last: "no object"
    assert torch.equal(ours.boxes, theirs.boxes)


@pytest.mark.parametrize("names", [THEIRS, ["DISK", "ring ", "traffic_light"]])
def test_the_same_classes_in_the_same_order_are_loaded_as_they_are(names, tmp_path, caplog):
    saved, model = with_classes(DETR, 3), with_classes(DETR, 3, seed=1)
    report = load_weights(model, save(saved, THEIRS, tmp_path / "a.pth"), class_names=names)
    assert report.is_complete and report.classes is None
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_as_many_classes_without_a_common_name_start_anew(tmp_path):
    """They had the other classes' weights before: shapes do not tell."""
    path = save(number_rows(with_classes(DINO, 3)), THEIRS, tmp_path / "a.pth")
    model = with_classes(DINO, 3, seed=1)
    report = load_weights(model, path, class_names=["one", "two", "three"])
    assert rows_of_the_file(model, LABELS) == (None,) * 3
    assert report.classes.taken == () and len(report.by_class) == 5


# ----------------------------------------------------------------------------------------------- names that are missing


@pytest.mark.parametrize(
    "theirs, ours, which", [(None, OURS[:3], "the file has no names"), (THEIRS, None, "the training data has no names")]
)
def test_without_names_the_order_is_taken_as_equal_and_that_is_said(theirs, ours, which, tmp_path, caplog):
    model = with_classes(DETR, 3, seed=1)
    report = load_weights(model, save(number_rows(with_classes(DETR, 3)), theirs, tmp_path / "a.pth"), class_names=ours)
    assert report.is_complete
    assert rows_of_the_file(model, "heads.class_heads.0.weight") == (1, 2, 3, 4)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "is taken to be class k of the training data" in warning and which in warning


def test_without_names_heads_of_another_number_start_anew(tmp_path, caplog):
    path = save(number_rows(with_classes(DETR, 3)), None, tmp_path / "a.pth")
    model = with_classes(DETR, 4, seed=1)
    with caplog.at_level(logging.INFO, logger="dinox"):
        report = load_weights(model, path, class_names=OURS)
    assert report.class_heads == heads("heads.class_heads.0")
    assert ["heads.class_heads.0.weight", "4", "5"] in [line.split() for line in caplog.text.splitlines()]
    assert "is taken to be" not in caplog.text


@pytest.mark.parametrize("purpose", ["evaluate", "resume"])
def test_only_what_weights_start_from_is_renumbered(purpose, tmp_path):
    model = with_classes(DETR, 3, seed=1)
    path = save(number_rows(with_classes(DETR, 3)), THEIRS, tmp_path / "a.pth")
    if purpose == "resume":
        with pytest.raises(
            CheckpointError, match=r"disk, ring, Traffic Light \(3\), .*ring, disk, Traffic Light \(3\)"
        ):
            load_weights(model, path, purpose=purpose, class_names=["ring", "disk", "Traffic Light"])
        load_weights(model, path, purpose=purpose, class_names=["Disk", "ring", "traffic light"])
    else:
        load_weights(model, path, purpose=purpose, class_names=["ring", "disk", "Traffic Light"])
    assert rows_of_the_file(model, "heads.class_heads.0.bias") == (1, 2, 3, 4)


def test_where_long_lists_of_classes_differ_is_said():
    theirs = [f"class {i}" for i in range(80)]
    ours = [*theirs[:60], "other", *theirs[61:]]
    with pytest.raises(CheckpointError, match=r": class 60 was 'class 60' and is 'other'\. A run"):
        check_same_classes(theirs, ours, path="a.pth")
    with pytest.raises(CheckpointError, match=r"\(80\), but .*\(79\)\. A run"):
        check_same_classes(theirs, theirs[:79], path="a.pth")
    check_same_classes(theirs, None, path="a.pth")
    check_same_classes(None, ours, path="a.pth")


def test_names_that_contradict_the_rows_take_none(tmp_path):
    """Five rows for three classes: whose they are nobody knows. Of the same shape as the model's, they would load."""
    path = save(number_rows(with_classes(DINO, 4)), THEIRS, tmp_path / "a.pth")
    model = with_classes(DINO, 4, seed=1)
    report = load_weights(model, path, class_names=OURS)
    assert rows_of_the_file(model, LABELS) == (None,) * 4
    assert sorted(report.class_heads) == sorted(EXPECTED[DINO]) and not report.by_class
    assert report.is_detector and len(report.loaded) == report.model_tensors - 5


# ----------------------------------------------------------------------------------------------------- models and files


class Foreign(nn.Module):
    """A meta-architecture none of whose parts says which tensors are by class: their names do."""

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.class_predictor = nn.Linear(2, num_classes + 1)
        self.label_table = nn.Embedding(num_classes, 2)
        self.class_tower = nn.Linear(2, 9)


def test_models_that_do_not_say_it_are_known_by_the_names_of_their_tensors(tmp_path):
    saved, model = Foreign(3), Foreign(4)
    with torch.no_grad():
        saved.class_predictor.bias.copy_(torch.arange(1, 5))
        saved.label_table.weight.copy_(torch.arange(1, 4.0)[:, None].expand(3, 2))
    before = model.class_predictor.bias[0].item()
    report = load_weights(model, save(saved, THEIRS, tmp_path / "a.pth"), class_names=OURS)
    assert model.class_predictor.bias.tolist()[1::2] == [3, 1] and model.class_predictor.bias[4] == 4  # background
    assert model.class_predictor.bias[0] == before
    assert rows_of_the_file(model, "label_table.weight")[1::2] == (3, 1)
    assert set(report.by_class) == {"class_predictor.weight", "class_predictor.bias", "label_table.weight"}
    assert torch.equal(model.class_tower.weight, saved.class_tower.weight)


def test_weights_of_a_wrapped_model_are_renumbered_too(tmp_path):
    state = {f"module.{name}": tensor for name, tensor in number_rows(with_classes(DETR, 3)).state_dict().items()}
    torch.save({"model": state, "dinox": {"class_names": THEIRS}}, tmp_path / "a.pth")
    model = with_classes(DETR, 4, seed=1)
    load_weights(model, str(tmp_path / "a.pth"), class_names=OURS)
    assert rows_of_the_file(model, "heads.class_heads.0.bias") == (None, 3, None, 1, 4)


@pytest.mark.parametrize("num_classes", [2, 3, 4])
@pytest.mark.parametrize("agnostic", [True, False])
def test_boxes_that_all_classes_share_have_no_rows_for_them(agnostic, num_classes):
    """Four rows are those of one box, also where there are as many classes, or half."""
    predictor = FastRCNNOutputLayers(
        ShapeSpec(channels=2),
        box2box_transform=Box2BoxTransform(weights=(1, 1, 1, 1)),
        num_classes=num_classes,
        cls_agnostic_bbox_reg=agnostic,
    )
    boxes = {} if agnostic else {"bbox_pred.weight": ClassRows(per_class=4), "bbox_pred.bias": ClassRows(per_class=4)}
    scores = {"cls_score.weight": ClassRows(others=1), "cls_score.bias": ClassRows(others=1)}
    assert row_layouts(predictor) == scores | boxes


def test_one_mask_for_all_classes_has_no_rows_for_them():
    head = MaskRCNNConvUpsampleHead(ShapeSpec(channels=2, height=2, width=2), num_classes=1, conv_dims=[2])
    assert row_layouts(head) == {}


@pytest.mark.parametrize("config", [DINO, DETR, DN_DETR, TWO_STAGE, SIX_HEADS, MASKS, RCNN])
def test_parts_name_all_of_their_tensors_that_depend_on_the_classes(config):
    with torch.device("meta"):
        models = [with_classes(config, number) for number in (3, 4)]
    three, four = ({name: tensor.shape for name, tensor in model.state_dict().items()} for model in models)
    assert set(row_layouts(models[0])) == {name for name in three if three[name] != four[name]}
