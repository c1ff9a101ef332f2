"""ROI heads with denoising boxes: what they add to detectron2's, and that they change nothing else."""

from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import LazyCall as L
from detectron2.config import get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, Keypoints
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

import dinox
from dinox.config import ConfigError, add_roi_denoising_config, check_calls, lazy_config, load_config, merge_yaml
from dinox.layers import draw_box_noise
from dinox.modeling import (
    BoxDenoising,
    CenterShiftAndScale,
    ContrastiveBoxNoise,
    DenoisingCascadeROIHeads,
    DenoisingROIHeads,
    build_resnet,
)
from dinox.modeling.queries import DenoisingNoise
from dinox.structures import QueryContext, Targets

from ..small_models import RCNN, SMALL, assert_trains_one_step, build_small, make_input, make_memory

YAML = Path(__file__).parents[2] / "projects" / "dn_detr" / "configs" / "yaml" / "dn_faster_rcnn_R_50_FPN_1x.yaml"
STOCK = {"DenoisingROIHeads": "StandardROIHeads", "DenoisingCascadeROIHeads": "CascadeROIHeads"}
SIZE, STRIDE = (64, 96), 4
NUM_CLASSES = 5


def small_cfg(name: str, *opts, settings=add_roi_denoising_config):
    """ROI heads of a few thousand parameters, with masks and keypoints."""
    cfg = get_cfg()
    settings(cfg)
    model = cfg.MODEL
    model.MASK_ON = model.KEYPOINT_ON = True
    model.ROI_HEADS.merge_from_list(
        ["NAME", name, "IN_FEATURES", ["p2"], "NUM_CLASSES", NUM_CLASSES, "BATCH_SIZE_PER_IMAGE", 16]
    )
    model.ROI_BOX_HEAD.merge_from_list(
        ["NAME", "FastRCNNConvFCHead", "NUM_FC", 1, "FC_DIM", 16, "POOLER_RESOLUTION", 3]
    )
    model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "Cascade" in name
    model.ROI_MASK_HEAD.merge_from_list(
        ["NAME", "MaskRCNNConvUpsampleHead", "NUM_CONV", 1, "CONV_DIM", 8, "POOLER_RESOLUTION", 4]
    )
    model.ROI_KEYPOINT_HEAD.merge_from_list(["NUM_KEYPOINTS", 3, "CONV_DIMS", [8], "POOLER_RESOLUTION", 4])
    cfg.merge_from_list(list(opts))
    return cfg


def build_heads(name: str = "DenoisingROIHeads", *opts, **options):
    torch.manual_seed(0)
    heads = build_roi_heads(small_cfg(name, *opts, **options), {"p2": ShapeSpec(channels=8, stride=STRIDE)}).train()
    for parameter in heads.parameters():  # those of the regression are all but zero
        parameter.data = torch.randn_like(parameter) * 0.1
    return heads


def make_objects(count: int, *, boxes=None, size=SIZE, seed: int = 0) -> Instances:
    objects = make_input(*size, count, num_classes=NUM_CLASSES, seed=seed)["instances"]
    if boxes is not None:
        objects.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    objects.gt_masks = BitMasks(torch.ones(count, *size, dtype=torch.bool))
    centers = objects.gt_boxes.get_centers()
    visible = torch.full((count, 3, 1), 2.0)
    objects.gt_keypoints = Keypoints(torch.cat([centers[:, None].expand(-1, 3, -1), visible], dim=2))
    return objects


def make_features(num_images: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (num_images, 8, SIZE[0] // STRIDE, SIZE[1] // STRIDE)
    return {"p2": torch.randn(shape, generator=generator).requires_grad_()}


def make_proposals(num_images: int) -> list[Instances]:
    found = []
    for seed in range(num_images):
        proposals = Instances(SIZE)
        proposals.proposal_boxes = make_objects(12, seed=10 + seed).gt_boxes
        proposals.objectness_logits = torch.zeros(12)
        found.append(proposals)
    return found


def train(heads, targets: list[Instances], *, features=None, seed: int = 0, **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)  # of the sampling of proposals
    images = ImageList(torch.zeros(len(targets), 3, *SIZE), [SIZE] * len(targets))
    with EventStorage():
        features = make_features(len(targets)) if features is None else features
        return heads(images, features, make_proposals(len(targets)), targets, **options)[1]


def make_denoising(**options) -> BoxDenoising:
    noise = {key: options.pop(key) for key in ("center_shift", "scale") if key in options}
    return BoxDenoising(box_noise=CenterShiftAndScale(**noise), **options)


# ----------------------------------------------------------------------------------------------------- the noised boxes


def test_the_noise_is_that_of_the_denoising_queries():
    """The same draws give the same boxes."""
    cfg = load_config("dino/ablation_dn", SMALL)
    OmegaConf.resolve(cfg.model)
    queries = instantiate(cfg.model.query_groups.denoising)
    objects = make_objects(3)
    targets = Targets.from_instances([objects], num_classes=NUM_CLASSES, names=["image"], device=torch.device("cpu"))
    roi = BoxDenoising(box_noise=queries.box_noise, num_groups=33)  # of 100 queries, for 3 objects
    draws = draw_box_noise((1, 33, 3), generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(1, 33, 3)
    noise = DenoisingNoise(flip=labels + 1, new_labels=labels.long(), sign=draws.sign, magnitude=draws.magnitude)
    queries.sample_noise = lambda *args, **kwargs: noise
    roi.sample_noise = lambda *args, **kwargs: draws
    anchors = queries(QueryContext(make_memory(torch.zeros(1, 1, 32)), targets=targets)).anchors[0]
    half = anchors[:, 2:] / 2
    corners = torch.cat([anchors[:, :2] - half, anchors[:, :2] + half], dim=1).clamp(0, 1)
    noised = roi([objects])[0].proposal_boxes.tensor / torch.tensor([SIZE[1], SIZE[0]] * 2)
    # Anchors went through logits and back, a few roundings of numbers in [0, 1].
    torch.testing.assert_close(noised, corners, rtol=0, atol=1e-5)


def test_noise_stays_within_lambda_1_and_lambda_2():
    objects = make_objects(1, boxes=[[30, 20, 50, 40]])
    (noised,) = make_denoising(num_groups=200, center_shift=0.2, scale=0.1)([objects])
    moved = (noised.proposal_boxes.get_centers() - torch.tensor([40.0, 30.0])).abs()
    sides = noised.proposal_boxes.tensor[:, 2:] - noised.proposal_boxes.tensor[:, :2]
    assert moved.max() <= 0.2 * 10 + 1e-3 and moved.max() > 0.15 * 10  # half sizes
    assert (sides / 20 - 1).abs().max() <= 0.1 + 1e-3 and (sides / 20 - 1).abs().max() > 0.08


def test_a_noised_box_belongs_to_its_object_whatever_it_overlaps():
    """Shifted halfway onto its neighbour, it still has to become the object that it was."""
    objects = make_objects(2, boxes=[[10, 10, 30, 30], [18, 10, 38, 30]])
    denoising = make_denoising(num_groups=1, center_shift=1.0, scale=0.0)
    draws = draw_box_noise((1, 1, 2))
    draws.sign.fill_(1.0), draws.magnitude.zero_()
    draws.magnitude[0, 0, 0, 0] = 0.8  # the first object by 8 pixels to the right: on the second
    denoising.sample_noise = lambda *args, **kwargs: draws
    (noised,) = denoising([objects])
    torch.testing.assert_close(noised.proposal_boxes.tensor[0], objects.gt_boxes.tensor[1])
    assert torch.equal(noised.gt_boxes.tensor, objects.gt_boxes.tensor)
    assert torch.equal(noised.gt_classes, objects.gt_classes)


def test_every_object_is_noised_once_in_each_group():
    objects = [make_objects(2), make_objects(0), make_objects(3, seed=1)]
    noised = make_denoising(num_groups=4)(objects)
    assert [len(x) for x in noised] == [8, 0, 12]
    assert torch.equal(noised[2].gt_boxes.tensor, objects[2].gt_boxes.tensor.repeat(4, 1))


def test_noised_boxes_are_clipped_to_their_own_image():
    small, large = make_objects(1, boxes=[[0, 0, 20, 16]], size=(16, 20)), make_objects(1, boxes=[[0, 0, 96, 64]])
    for objects, noised in zip((small, large), make_denoising(num_groups=50)([small, large])):
        height, width = objects.image_size
        boxes = noised.proposal_boxes.tensor
        assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
        assert boxes[:, 2].max() == width and boxes[:, 0].min() == 0  # some were clipped


def test_an_object_of_no_size_is_left_out():
    objects = make_objects(2, boxes=[[20, 20, 20, 40], [10, 10, 30, 30]])
    noised = make_denoising(num_groups=5)([objects])
    assert torch.equal(noised[0].gt_boxes.tensor, objects.gt_boxes.tensor[1:].repeat(5, 1))


@pytest.mark.parametrize("box", [[20, 20, 20, 40], [120, 10, 140, 30], [95.9, 0, 150, 30], [20, 20, 20.01, 20.01]])
def test_no_box_makes_the_loss_infinite(box):
    """No width, outside of the image, hardly inside, hardly there; other people's mappers may not clip or filter."""
    loss = train(build_heads(), [make_objects(2, boxes=[box, [10, 10, 30, 30]])])["loss_box_reg_dn"]
    assert torch.isfinite(loss) and 0 < loss < 100  # 20 boxes, a few units each


def test_a_box_that_is_scaled_to_nothing_is_left_out():
    denoising = make_denoising(num_groups=3, scale=1.0)
    draws = draw_box_noise((1, 3, 1))
    draws.sign.fill_(-1.0), draws.magnitude.fill_(1.0)
    denoising.sample_noise = lambda *args, **kwargs: draws
    assert len(denoising([make_objects(1)])[0]) == 0


def test_a_generator_makes_the_noise_repeatable():
    heads, targets = build_heads(), [make_objects(2)]
    first, same, other = (
        train(heads, targets, generator=torch.Generator().manual_seed(seed))["loss_box_reg_dn"] for seed in (1, 1, 2)
    )
    assert first == same and first != other


# ------------------------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_the_box_loss_of_noised_boxes_over_the_number_of_proposals():
    """An untrained head that moves nothing is as far from the objects as the noise brought the boxes."""
    heads, targets = build_heads(), [make_objects(2), make_objects(3, seed=1)]
    heads.box_predictor.bbox_pred.weight.data.zero_(), heads.box_predictor.bbox_pred.bias.data.zero_()
    noised = heads.denoising(targets, torch.Generator().manual_seed(5))
    deltas = [
        heads.box_predictor.box2box_transform.get_deltas(x.proposal_boxes.tensor, x.gt_boxes.tensor) for x in noised
    ]
    expected = torch.cat(deltas).abs().sum() / (2 * heads.batch_size_per_image)
    # 12 proposals and the objects themselves are sampled down to 16 of 14 and 15: all of them.
    expected = expected * (2 * heads.batch_size_per_image) / (12 + 2 + 12 + 3)
    losses = train(heads, targets, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(losses["loss_box_reg_dn"], expected)


@pytest.mark.parametrize("key", ["MODEL.DINOX.ROI_DENOISING.LOSS_WEIGHT", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT"])
def test_the_weights_of_denoising_and_of_box_regression_multiply_the_loss(key):
    plain, weighted = (train(build_heads("DenoisingROIHeads", key, weight), [make_objects(2)]) for weight in (1.0, 3.0))
    torch.testing.assert_close(weighted["loss_box_reg_dn"], plain["loss_box_reg_dn"] * 3)


def test_the_loss_teaches_the_box_regression_and_the_features_only():
    heads, features = build_heads(), make_features(2)
    train(heads, [make_objects(2), make_objects(0)], features=features)["loss_box_reg_dn"].backward()
    taught = {name for name, parameter in heads.named_parameters() if parameter.grad is not None}
    assert taught == {
        name for name, _ in heads.named_parameters() if name.startswith(("box_head.", "box_predictor.bbox_pred."))
    }
    assert features["p2"].grad[0].abs().sum() > 0 and features["p2"].grad[1].abs().sum() == 0


def test_only_the_outputs_of_the_object_s_class_are_taught():
    heads, objects = build_heads(), make_objects(1)
    train(heads, [objects])["loss_box_reg_dn"].backward()
    by_class = heads.box_predictor.bbox_pred.weight.grad.view(NUM_CLASSES, 4, -1).abs().sum((1, 2))
    assert by_class.nonzero().flatten().tolist() == objects.gt_classes.tolist()


@pytest.mark.parametrize("loss", ["smooth_l1", "giou", "diou", "ciou"])
@pytest.mark.parametrize("counts", [(0, 0), (2, 0)])
def test_images_without_objects_keep_the_loss_and_its_gradient(loss, counts):
    heads = build_heads("DenoisingROIHeads", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", loss)
    objects = [make_objects(count) for count in counts]
    denoising = train(heads, objects)["loss_box_reg_dn"]
    assert torch.isfinite(denoising) and (denoising > 0) == any(counts)
    denoising.backward()
    assert all(torch.isfinite(p.grad).all() for p in heads.box_head.parameters())


def test_each_stage_of_a_cascade_restores_the_same_objects():
    heads, targets = build_heads("DenoisingCascadeROIHeads"), [make_objects(2), make_objects(0)]
    seen = []
    run_stage = heads._run_stage
    heads._run_stage = lambda features, proposals, stage: (
        seen.append(proposals) or run_stage(features, proposals, stage)
    )
    losses = train(heads, targets)
    assert [key for key in losses if "_dn" in key] == [f"loss_box_reg_dn_stage{stage}" for stage in range(3)]
    stages = seen[-3:]
    for proposals in stages[1:]:
        assert torch.equal(proposals[0].gt_boxes.tensor, stages[0][0].gt_boxes.tensor)
        assert not torch.equal(proposals[0].proposal_boxes.tensor, stages[0][0].proposal_boxes.tensor)
        assert not proposals[0].proposal_boxes.tensor.requires_grad
    losses["loss_box_reg_dn_stage1"].backward()
    taught = {name for name, parameter in heads.named_parameters() if parameter.grad is not None}
    assert taught and all(name.startswith(("box_head.1.", "box_predictor.1.bbox_pred.")) for name in taught)


# --------------------------------------------------------------------------------------------- all else is detectron2's


@pytest.mark.parametrize("name", STOCK)
def test_the_other_losses_are_those_of_detectron2_to_the_last_bit(name):
    ours, theirs = build_heads(name), build_heads(STOCK[name])
    assert theirs.load_state_dict(ours.state_dict()).missing_keys == []
    targets = [make_objects(3), make_objects(0), make_objects(1, seed=1)]
    losses, expected = train(ours, targets), train(theirs, targets)
    assert {key for key in losses if "_dn" not in key} == expected.keys()
    assert {key for key in expected if "mask" in key or "keypoint" in key} == {"loss_mask", "loss_keypoint"}
    assert all(torch.equal(losses[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", STOCK)
def test_detections_are_those_of_detectron2_with_its_weights(name):
    ours, theirs = build_heads(name).eval(), build_heads(STOCK[name]).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = ImageList(torch.zeros(2, 3, *SIZE), [SIZE] * 2)
    with torch.no_grad(), EventStorage():
        (found, losses), (expected, _) = (
            heads(images, make_features(2), make_proposals(2), None) for heads in (ours, theirs)
        )
    assert losses == {}
    for mine, other in zip(found, expected):
        assert len(mine) > 0 and torch.equal(mine.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(mine.scores, other.scores) and torch.equal(mine.pred_masks, other.pred_masks)


def test_without_denoising_the_heads_are_detectron2s():
    heads = build_heads()
    heads.denoising = None
    assert "loss_box_reg_dn" not in train(heads, [make_objects(2)])


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make_denoising(num_groups=0), "num_groups must be at least 1, got 0"),
        (lambda: make_denoising(loss_weight=-1.0), "loss_weight must be at least 0, got -1.0"),
        (lambda: make_denoising(loss_weight=float("nan")), "loss_weight must be at least 0, got nan"),
        (lambda: make_denoising(scale=-0.1), r"scale must lie in \[0, 1\], got -0.1"),
        (lambda: make_denoising(center_shift=1.5), r"center_shift must lie in \[0, 1\], got 1.5"),
        (lambda: BoxDenoising(box_noise=ContrastiveBoxNoise()), "expected CenterShiftAndScale, got Contrastive"),
        (
            lambda: build_heads("DenoisingROIHeads", "MODEL.DINOX.ROI_DENOISING.NUM_GROUPS", 0),
            "num_groups must be at least 1, got 0",
        ),
        (
            lambda: build_heads("DenoisingROIHeads", "MODEL.DINOX.ROI_DENOISING.CENTER_SHIFT", -0.4),
            r"center_shift must lie in \[0, 1\], got -0.4",
        ),
    ],
)
def test_bad_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_yaml_settings_reach_the_heads():
    settings = {"NUM_GROUPS": 3, "CENTER_SHIFT": 0.1, "SCALE": 0.2, "LOSS_WEIGHT": 0.5}
    opts = [x for key, value in settings.items() for x in (f"MODEL.DINOX.ROI_DENOISING.{key}", value)]
    denoising = build_heads("DenoisingROIHeads", *opts).denoising
    assert (denoising.num_groups, denoising.loss_weight) == (3, 0.5)
    assert (denoising.box_noise.center_shift, denoising.box_noise.scale) == (0.1, 0.2)


@pytest.mark.parametrize("settings", [lambda cfg: None, add_roi_denoising_config, dinox.add_dinox_config])
def test_the_name_alone_means_the_papers_settings(settings):
    denoising = build_heads(settings=settings).denoising
    assert (denoising.num_groups, denoising.loss_weight) == (10, 1.0)
    assert (denoising.box_noise.center_shift, denoising.box_noise.scale) == (0.4, 0.4)


def test_roi_settings_for_a_transformer_are_said_to_have_no_effect(caplog):
    cfg = get_cfg()
    dinox.add_dinox_config(cfg)
    cfg.MODEL.DINOX.CONFIG = "dino/dino_r50_4scale_12ep"
    cfg.MODEL.DINOX.ROI_DENOISING.NUM_GROUPS = 7
    lazy_config(cfg)
    assert "MODEL.DINOX.ROI_DENOISING.NUM_GROUPS have no effect" in caplog.text


def test_roi_settings_alone_do_not_make_a_transformers_config():
    cfg = get_cfg()
    add_roi_denoising_config(cfg)
    with pytest.raises(ConfigError, match=r"call dinox\.add_dinox_config"):
        lazy_config(cfg)


# ------------------------------------------------------------------------------------------------ the project's configs


def flat(cfg, prefix: str = "") -> dict:
    leaves = {}
    for key, value in cfg.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


@pytest.mark.parametrize("settings", [add_roi_denoising_config, dinox.add_dinox_config])
def test_the_yaml_config_is_detectron2s_faster_rcnn_but_for_denoising(settings):
    ours, theirs = get_cfg(), get_cfg()
    settings(ours)
    merge_yaml(ours, str(YAML))
    theirs.merge_from_file(detectron2_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    ours, theirs = flat(ours), flat(theirs)
    without_effect = ("MODEL.ROI_MASK_HEAD.", "SOLVER.CLIP_GRADIENTS.")  # there is no mask head, and no clipping
    changed = {key for key, value in theirs.items() if ours[key] != value and not key.startswith(without_effect)}
    assert changed == {"MODEL.ROI_HEADS.NAME", "OUTPUT_DIR"}
    assert not ours["SOLVER.CLIP_GRADIENTS.ENABLED"] and not ours["MODEL.MASK_ON"]


def test_build_model_of_the_yaml_config_trains_and_takes_the_weights_of_the_lazy_config():
    cfg = get_cfg()
    dinox.add_dinox_config(cfg)
    merge_yaml(
        cfg, str(YAML), ["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20]
    )
    model = build_model(cfg).train()
    assert type(model.roi_heads) is DenoisingROIHeads
    inputs = [make_input(64, 96, 2), make_input(50, 40, 0)]
    losses = assert_trains_one_step(model, inputs)
    assert losses["loss_box_reg_dn"] > 0
    lazy = build_small(RCNN)
    assert assert_trains_one_step(lazy, inputs).keys() == losses.keys()
    model.load_state_dict(lazy.state_dict(), strict=True)


def test_the_lazy_config_is_detectron2s_faster_rcnn_with_other_roi_heads():
    cfg, theirs = load_config(RCNN), detectron2_zoo.get_config("common/models/mask_rcnn_fpn.py")
    for key in ("mask_in_features", "mask_pooler", "mask_head"):
        theirs.model.roi_heads.pop(key)
    model, stock = (instantiate(x.model) for x in (cfg, theirs))
    model.load_state_dict(stock.state_dict(), strict=True)
    assert type(model.roi_heads) is DenoisingROIHeads and model.roi_heads.denoising.num_groups == 10
    assert cfg.train.max_iter == 90_000 and cfg.dataloader.train.mapper.image_format == "BGR"
    schedule, stock_schedule = instantiate(cfg.lr_multiplier), detectron2_zoo.get_config("common/coco_schedule.py")
    expected = instantiate(stock_schedule.lr_multiplier_1x)
    for iteration in (0, 500, 1_000, 59_999, 60_001, 79_999, 80_001, 89_999):
        assert schedule(iteration / 90_000) == pytest.approx(expected(iteration / 90_000), rel=1e-3), iteration


def test_without_denoising_the_lazy_config_is_the_baseline():
    losses = assert_trains_one_step(build_small(RCNN, "model.roi_heads.denoising=null"), [make_input(64, 96, 2)])
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}


def test_the_heads_are_plain_calls_of_a_lazy_config():
    cascade = detectron2_zoo.get_config("common/models/cascade_rcnn.py").model.roi_heads
    cascade.update(
        _target_=DenoisingCascadeROIHeads, denoising=L(BoxDenoising)(box_noise=L(CenterShiftAndScale)(scale=0.2))
    )
    heads = instantiate(cascade)
    assert type(heads) is DenoisingCascadeROIHeads and heads.denoising.box_noise.scale == 0.2
    cascade.denoising.num_group = 3
    with pytest.raises(ConfigError, match=r"BoxDenoising takes no argument 'num_group'\. Did you mean 'num_groups'"):
        check_calls(OmegaConf.create({"roi_heads": cascade}, flags={"allow_objects": True}), file="config")


def make_visible(x: dict) -> dict:
    """Objects as rectangles on black, in the colour of their class."""
    x["image"].zero_()
    boxes = x["instances"].gt_boxes.tensor.round().long().tolist()
    for (left, top, right, bottom), label in zip(boxes, x["instances"].gt_classes.tolist()):
        x["image"][label % 3, top:bottom, left:right] = 255
    return x


def test_the_denoising_loss_falls_in_training():
    cfg = load_config(
        RCNN,
        [
            "model.backbone.norm=BN",
            "model.backbone.out_channels=32",
            "model.proposal_generator.head.in_channels=32",
            "model.proposal_generator.post_nms_topk=[50,50]",
            "model.roi_heads.box_head.fc_dims=[64,64]",
            "model.roi_heads.batch_size_per_image=32",
            f"model.roi_heads.num_classes={NUM_CLASSES}",
        ],
    )
    names = list(cfg.model.backbone.bottom_up.out_features)
    cfg.model.backbone.bottom_up = L(build_resnet)(depth=18, width=32, norm="BN", freeze_at=0, out_features=names)
    torch.manual_seed(0)
    model = instantiate(cfg.model).train()
    inputs = [make_visible(make_input(64, 64, 1 + i % 3, num_classes=NUM_CLASSES, seed=i)) for i in range(4)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    with EventStorage():
        for _ in range(40):
            losses = model(inputs)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append({key: loss.item() for key, loss in losses.items()})
    first, last = ({key: sum(x[key] for x in part) / 5 for key in part[0]} for part in (history[:5], history[-5:]))
    assert last["loss_box_reg_dn"] < 0.8 * first["loss_box_reg_dn"], (first, last)
    assert sum(last.values()) < 0.8 * sum(first.values()), (first, last)
