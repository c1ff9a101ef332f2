"""The numbers of Co-DETR's recipes: its paper's (tables 3 and 4, appendix B), or its code's where that says nothing."""

import pytest
from detectron2.config import instantiate
from omegaconf import OmegaConf

from dinox.config import load_config
from dinox.losses import ExactGIoULoss, QualityFocalLoss
from dinox.matching import ExactGIoUCost

# (drop path, epochs, epochs at which the learning rate drops, weight decay)
SWIN = {
    "co_deformable_detr_swin_tiny_12ep": (0.2, 12, [11], 0.05),
    "co_deformable_detr_swin_tiny_36ep": (0.3, 36, [30], 0.05),
    "co_deformable_detr_swin_small_12ep": (0.2, 12, [11], 0.05),
    "co_deformable_detr_swin_small_36ep": (0.4, 36, [30], 0.05),
    "co_deformable_detr_swin_base_12ep": (0.2, 12, [11], 0.05),
    "co_deformable_detr_swin_base_36ep": (0.4, 36, [30], 0.05),
    "co_deformable_detr_swin_large_12ep": (0.3, 12, [11], 0.05),
    "co_deformable_detr_swin_large_900queries_36ep": (0.6, 36, [30], 0.05),
    "co_dino_swin_large_5scale_12ep": (0.3, 12, [11], 1e-4),
    "co_dino_swin_large_5scale_24ep": (0.5, 24, [20], 1e-4),
    "co_dino_swin_large_5scale_36ep": (0.6, 36, [30], 1e-4),
    "co_dino_swin_large_5scale_lsj_12ep": (0.3, 12, [11], 1e-4),
    "co_dino_swin_large_5scale_lsj_24ep": (0.5, 24, [20], 1e-4),
    "co_dino_swin_large_5scale_lsj_36ep": (0.5, 36, [30], 1e-4),
    "co_dino_swin_large_5scale_lsj_lvis_36ep": (0.3, 36, [30], 1e-4),
    "co_dino_swin_large_5scale_objects365_coco_16ep": (0.3, 16, [8], 1e-4),
}


@pytest.mark.parametrize("name", SWIN)
def test_schedules_and_regularisation_of_swin(name):
    cfg = load_config(f"co_detr/{name}")
    schedule = cfg.schedule
    found = (
        cfg.model.backbone.bottom_up.drop_path,
        schedule.epochs,
        list(schedule.drop_epochs),
        cfg.optimizer.weight_decay,
    )
    assert found == SWIN[name]
    assert cfg.dataloader.train.total_batch_size == 16


# (batch, learning rate, weight decay, queries, denoising pairs, epochs, epochs at which the learning rate drops)
EVA02 = {
    "objects365_26ep": (224, 5e-5, 0.01, 1500, 1000, 26, [24]),
    "objects365_coco_12ep": (64, 5e-5, 0.01, 1500, 300, 12, [8]),
    "lsj_objects365_26ep": (192, 5e-5, 0.01, 900, 1000, 26, [24]),
    "lsj_lvis_16ep": (64, 5e-5, 0.05, 900, 300, 16, [9, 15]),
}


@pytest.mark.parametrize("name", EVA02)
def test_schedules_of_eva02(name):
    cfg = load_config(f"co_detr/co_dino_eva02_large_5scale_{name}")
    batch, schedule = cfg.dataloader.train.total_batch_size, cfg.schedule
    found = (batch, cfg.optimizer.lr, cfg.optimizer.weight_decay, cfg.model.num_queries)
    found += (cfg.model.query_groups.denoising.groups.num_queries, schedule.epochs, list(schedule.drop_epochs))
    assert found == EVA02[name]
    assert cfg.optimizer.params.layer_decay == 0.8
    warmup = cfg.lr_multiplier.warmup_epochs * schedule.images_per_epoch / batch
    assert (warmup, cfg.lr_multiplier.warmup_factor) == (pytest.approx(500), 0.01)
    assert instantiate(cfg.lr_multiplier)(1.0) == pytest.approx(0.1 ** len(schedule.drop_epochs))


@pytest.mark.parametrize(
    "name", ["co_dino_swin_large_5scale_lsj_lvis_36ep", "co_dino_eva02_large_5scale_lsj_lvis_16ep"]
)
def test_lvis_has_the_federated_loss_and_a_thousand_detections(name):
    cfg = load_config(f"co_detr/{name}")
    model = OmegaConf.to_container(cfg, resolve=True)["model"]
    class_loss, train = model["criterion"]["class_loss"], cfg.dataloader.train
    assert class_loss["_target_"].__name__ == "FederatedLoss"
    assert class_loss["loss"]["_target_"].__name__ == "QualityFocalLoss"
    assert class_loss["image_counts"]["source"] == train.dataset.names == "lvis_v1_train"
    assert model["num_classes"] == model["auxiliary_heads"]["roi"]["num_classes"] == 1203
    assert model["postprocess"]["num_detections"] == model["postprocess"]["ranking"]["num_detections"] == 1000
    assert train.sampler.threshold == 1e-3 and train.copy_paste.max_pasted == 100
    assert cfg.schedule.images_per_epoch == 100_170


EXACT = [
    "co_dino_r50_5scale_12ep",
    "co_dino_eva02_large_5scale_objects365_26ep",
    "co_deformable_detr_r50_12ep",
    "co_deformable_detr_plain_r50_12ep",
    "co_dab_detr_r50_36ep",
    "co_conditional_detr_r50_36ep",
    "co_h_deformable_detr_r50_12ep",
]


@pytest.mark.parametrize("name", EXACT)
def test_boxes_of_all_queries_learn_and_match_by_the_exact_giou(name):
    """Neither part has a group of its own: there is nothing but these."""
    criterion = load_config(f"co_detr/{name}").model.criterion
    assert isinstance(instantiate(criterion.giou_loss), ExactGIoULoss)
    cost = instantiate(criterion.matcher.giou_cost)
    assert isinstance(cost, ExactGIoUCost) and cost.weight == 2.0


@pytest.mark.parametrize("name", ["co_dino_r50_5scale_12ep", "co_dino_eva02_large_5scale_objects365_26ep"])
def test_classes_of_all_queries_of_co_dino_learn_by_the_quality_focal_loss(name):
    """One part for all groups, and no weight but 1."""
    criterion = load_config(f"co_detr/{name}").model.criterion
    loss = instantiate(criterion.class_loss)
    assert isinstance(loss, QualityFocalLoss) and loss.gamma == 2.0
    assert criterion.weights["class"] == 1.0 and not criterion.group_weights
