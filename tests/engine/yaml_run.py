"""A run that is configured by a yaml: the example of a project, small, and what it needs around it."""

import logging
import os
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

import dinox
from dinox.config import merge_yaml
from dinox.data import register_shapes

YAML = Path(__file__).parents[2] / "projects" / "dino" / "configs" / "yaml"

SMALL = [
    "model.embed_dim=16",
    "model.num_queries=10",
    "model.encoder.feed_forward_dim=16",
    "model.decoder.num_layers=2",
    "model.backbone.bottom_up.width=8",
]

TRAIN, TEST = "dinox_yaml_train", "dinox_yaml_val"


@pytest.fixture(scope="module", autouse=True)
def loggers():
    """DefaultTrainer sets up detectron2's logger for good; here until the last test of this file."""
    both = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in both]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    setup_logger.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def datasets():
    for seed, name in enumerate((TRAIN, TEST)):
        register_shapes(name, seed=200 + seed, num_images=8, size=96, root=os.environ["DINOX_TEST_DATASETS"])
    yield
    for name in (TRAIN, TEST):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def make_cfg(output_dir, *opts, overrides=()):
    """The example of the project, small, for four steps."""
    cfg = get_cfg()
    dinox.add_dinox_config(cfg)
    merge_yaml(cfg, str(YAML / "dino_shapes.yaml"))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (TRAIN,), (TEST,)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD = 2, 4, (3,), 2
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR, cfg.SEED = "cpu", str(output_dir), 1
    cfg.MODEL.DINOX.OVERRIDES = [*cfg.MODEL.DINOX.OVERRIDES, *SMALL, *overrides]
    cfg.merge_from_list(list(opts))
    return cfg
