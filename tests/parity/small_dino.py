"""The small DINO of the recorded numbers: our config and overrides alone, its weights through the converter."""

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances

from dinox.checkpoint import convert
from dinox.config import load_config

from .golden import fill, load_json, load_npz

CASE = "case2_dino_small"
#: detrex's choices where they differ from the paper's, which are our defaults.
DETREX = [
    "model.heads.shared=False",
    "model.memory_builder.position_embedding.temperature=10000",
    "model.memory_builder.position_embedding.offset=-0.5",
]
SMALL = [
    "model.backbone.bottom_up.depth=18",
    "model.embed_dim=64",
    "model.num_classes=10",
    "model.num_queries=50",
    "model.encoder.num_layers=2",
    "model.encoder.num_heads=4",
    "model.encoder.feed_forward_dim=128",
    "model.decoder.num_layers=3",
    "model.postprocess.num_detections=40",
]


def build_small_dino(*overrides: str, config: str = "dino/dino_r50_4scale_12ep", case: str = CASE) -> torch.nn.Module:
    model = instantiate(load_config(config, [*DETREX, *SMALL, *overrides]).model)
    model.load_state_dict(convert(golden_state_dict(case), source="detrex"))
    return model


def golden_state_dict(case: str = CASE) -> dict[str, torch.Tensor]:
    """The reference model's weights by the fill rule, aliases included."""
    entries = load_json(case, "state_dict")
    return {key: fill(entry.get("alias_of", key), tuple(entry["shape"])) for key, entry in entries.items()}


def golden_inputs(case: str = CASE) -> list[dict]:
    """Images with ground truth in the frame of the image, and the output sizes that the recording used."""
    arrays = load_npz(case, "inputs")
    inputs = []
    for i in range(2):
        image = torch.from_numpy(arrays[f"image_{i}"])
        height, width = image.shape[1:]
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.from_numpy(arrays[f"gt_boxes_{i}"]))
        instances.gt_classes = torch.from_numpy(arrays[f"gt_classes_{i}"])
        sizes = {"height": int(1.5 * height), "width": int(1.25 * width)}
        inputs.append({"image": image, "instances": instances, **sizes})
    return inputs
