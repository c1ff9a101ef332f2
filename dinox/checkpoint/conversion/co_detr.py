"""Names of Co-DETR's authors, who built on mmdetection 2: the detector, its auxiliary heads and its positive queries.

Backbones are named as by their authors, Swin as in mmdetection too (where its third version has Co-DETR). Everything of
the transformer stands below ``query_head.``, its layers are named as in detrex. The heads are numbered, RoI heads
before one-stage heads; ours have names, those of our configs. Two things are not as here:

* their neck's convolutions have no bias, for a norm follows; ours have one, which is 0 then;
* they tell the heads' queries apart by one number per head, which is added to all channels; ours is a vector.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dinox.checkpoint.conversion import mmdetection
from dinox.checkpoint.conversion.backbones import torchvision_resnet
from dinox.checkpoint.conversion.deformable_detr import PROPOSALS
from dinox.checkpoint.conversion.detrex import DEFORMABLE_LAYERS
from dinox.checkpoint.conversion.parts import count_decoder_layers, repeat_shared_heads
from dinox.checkpoint.conversion.rules import Ignore, Rename, Rule, count_unknown, same_tensor
from dinox.checkpoint.conversion.transformers import swin, swin_norms

_HEAD_NUMBERS = "query_groups.positive_numbers.weight"  # (heads, 1), until they are vectors

TRAINING_PARTS = ("auxiliary_heads.", "query_groups.positive_")
"""What our names begin with that only training needs."""

_QUERY_HEAD = "query_head."
_TRANSFORMER = _QUERY_HEAD + "transformer."

THEIR_TRAINING_PARTS = (
    "rpn_head.{rest}",
    "roi_head.{rest}",
    "bbox_head.{rest}",
    _QUERY_HEAD + "downsample.{rest}",
    *(_TRANSFORMER + part + "{rest}" for part in ("aux_pos_trans", "pos_feats", "head_pos_embed")),
)
"""The same of theirs, of any number of heads and whatever is in them."""

NECK_NOTE = "convolutions of the neck have no bias there; here they have one, which is 0"

_HEADS = {"roi": "roi_head.0.", "atss": "bbox_head.0.", "second": "bbox_head.1."}
"""Our heads in the order in which theirs are numbered, and what their names begin with."""
_USUAL_HEADS = ("roi", "atss")

_LINEAR_LAYERS = range(3)  # of an MLP; a ReLU lies between two of them, and is counted
_MASK_CONVS = range(4)
_NECK_CONVOLUTION = re.compile(r"(backbone\.(?:convs|extra_convs)\.\d+\.conv\.)(weight|bias)")


def co_dino_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """With ResNet or Swin, any number of encoder and decoder layers and of levels."""
    return (
        *_shared_parts(weights),
        *(
            Rename(
                f"{_TRANSFORMER}decoder.ref_point_head.{2 * i}.{{affine}}",
                f"decoder.position_head.layers.{i}.{{affine}}",
            )
            for i in _LINEAR_LAYERS
        ),
        Rename(_TRANSFORMER + "decoder.norm.{affine}", "decoder.norm.{affine}"),
        Rename(_TRANSFORMER + "query_embed.weight", "query_groups.matching.content.embedding.weight"),
        Rename(_QUERY_HEAD + "label_embedding.weight", "query_groups.denoising.label_embedding.table.weight"),
    )


def co_deformable_detr_table(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    """Of the two-stage detector with mixed query selection, the only one that is published."""
    return (
        *_shared_parts(weights),
        Rename(_QUERY_HEAD + "query_embedding.weight", "query_groups.matching.content.embedding.weight"),
        Rename(_TRANSFORMER + "pos_trans.{affine}", "query_groups.anchor_embedding.projection.{affine}"),
        Rename(_TRANSFORMER + "pos_trans_norm.{affine}", "query_groups.anchor_embedding.norm.{affine}"),
        Rename(_TRANSFORMER + "head_pos_embed.weight", _HEAD_NUMBERS),
    )


def _shared_parts(weights: Mapping[str, Tensor]) -> Sequence[Rule]:
    heads = _heads(weights)
    return (
        Ignore("ema_{rest}", "copies from the last step: the averages have the plain names"),
        *_counters(),
        *torchvision_resnet("backbone."),
        *swin("backbone."),
        *swin_norms("backbone."),
        *mmdetection.swin("backbone."),
        *_NECK,
        *(replace(rule, theirs=_QUERY_HEAD + rule.theirs) for rule in DEFORMABLE_LAYERS if isinstance(rule, Rename)),
        *(replace(rule, theirs=_QUERY_HEAD + rule.theirs) for rule in PROPOSALS),
        *_prediction_heads(count_decoder_layers(weights)),
        Rename(_QUERY_HEAD + "downsample.{i}.{affine}", "auxiliary_heads.adapter.downsample.{i}.{affine}"),
        *_ROI_HEAD,
        *(rule for name in heads if name != "roi" for rule in _atss_head(_HEADS[name], name)),
        *(rule for number, name in enumerate(heads) for rule in _positive_queries(number, name)),
    )


def _counters() -> list[Rule]:
    """In front of the batch norms' other names."""
    norms = ["bn1", "layer{i}.{j}.bn{k}", "layer{i}.{j}.downsample.1"]
    return [Ignore(f"backbone.{norm}.num_batches_tracked", "counters of frozen batch norms") for norm in norms]


_NECK: Sequence[Rule] = tuple(
    rule
    for convs in ("convs", "extra_convs")
    for rule in (
        Rename(f"neck.{convs}.{{i}}.conv.weight", f"backbone.{convs}.{{i}}.conv.weight"),
        Rename(f"neck.{convs}.{{i}}.gn.{{affine}}", f"backbone.{convs}.{{i}}.norm.{{affine}}"),
    )
)


def _prediction_heads(num_layers: int) -> list[Rule]:
    """Those of the encoder are numbered after those of the decoder layers."""
    classes, boxes = _QUERY_HEAD + "cls_branches.", _QUERY_HEAD + "reg_branches."
    rules: list[Rule] = [Rename(f"{classes}{num_layers}.{{affine}}", "query_selection.class_head.{affine}")]
    for i in _LINEAR_LAYERS:
        encoder = f"{boxes}{num_layers}.{2 * i}.{{affine}}"
        rules.append(Rename(encoder, f"query_selection.box_head.layers.{i}.{{affine}}"))
    rules.append(Rename(classes + "{i}.{affine}", "heads.class_heads.{i}.{affine}"))
    for i in _LINEAR_LAYERS:
        rules.append(Rename(f"{boxes}{{i}}.{2 * i}.{{affine}}", f"heads.box_heads.{{i}}.layers.{i}.{{affine}}"))
    return rules


def explain_unknown(names: Sequence[str]) -> str | None:
    """What names say that no rule fits, as a sentence with the cure."""
    if any(name.startswith("backbone.") for name in names):
        return (
            "Of Co-DETR's backbones, ResNet and Swin can be read, and this is another one, or one that was changed. "
            "To convert the rest, leave out what stands below backbone and neck (and --partial writes what fits)."
        )
    if count_unknown(names, [Ignore(template, "") for template in THEIR_TRAINING_PARTS]) == 0:
        return (
            "Only training needs them; heads may be missing, or be others than those of our configs. For detection, "
            "leave them out: --training-parts drop (training_parts='drop')."
        )
    return None


# ------------------------------------------------------------------------------------------------ for training only


def _heads(names: Iterable[str]) -> Sequence[str]:
    """Which heads there are, of their names or of ours; the usual two if none is in the file, as after training."""
    names = list(names)

    def has(name: str, theirs: str) -> bool:
        return any(
            each.startswith((theirs, f"auxiliary_heads.{name}.", f"query_groups.positive_{name}.")) for each in names
        )

    return tuple(name for name, theirs in _HEADS.items() if has(name, theirs)) or _USUAL_HEADS


# Rows and channels are in the same order: anchors of a cell ratio by ratio, boxes class by class, background as the
# last class, pooled features channel by channel.
_ROI = "auxiliary_heads.roi."
_ROI_HEAD: Sequence[Rule] = (
    Rename("rpn_head.rpn_conv.{affine}", _ROI + "proposals.head.conv.{affine}"),
    Rename("rpn_head.rpn_cls.{affine}", _ROI + "proposals.head.objectness_logits.{affine}"),
    Rename("rpn_head.rpn_reg.{affine}", _ROI + "proposals.head.anchor_deltas.{affine}"),
    *(
        Rename(f"roi_head.0.bbox_head.shared_fcs.{i}.{{affine}}", f"{_ROI}box_head.fc{i + 1}.{{affine}}")
        for i in range(2)
    ),
    Rename("roi_head.0.bbox_head.fc_cls.{affine}", _ROI + "predictor.cls_score.{affine}"),
    Rename("roi_head.0.bbox_head.fc_reg.{affine}", _ROI + "predictor.bbox_pred.{affine}"),
    *(
        Rename(f"roi_head.0.mask_head.convs.{i}.conv.{{affine}}", f"{_ROI}mask_branch.head.mask_fcn{i + 1}.{{affine}}")
        for i in _MASK_CONVS
    ),
    Rename("roi_head.0.mask_head.upsample.{affine}", _ROI + "mask_branch.head.deconv.{affine}"),
    Rename("roi_head.0.mask_head.conv_logits.{affine}", _ROI + "mask_branch.head.predictor.{affine}"),
)


def _atss_head(theirs: str, name: str) -> list[Rule]:
    ours = f"auxiliary_heads.{name}.branches."
    rules: list[Rule] = []
    for convs, tower in (("cls_convs", "class_tower"), ("reg_convs", "box_tower")):
        rules += [
            Rename(f"{theirs}{convs}.{{i}}.conv.weight", f"{ours}{tower}.{{i}}.conv.weight"),
            Rename(f"{theirs}{convs}.{{i}}.gn.{{affine}}", f"{ours}{tower}.{{i}}.norm.{{affine}}"),
        ]
    outputs = {"atss_cls": "class_output", "atss_reg": "box_output", "atss_centerness": "quality_output"}
    rules += [Rename(f"{theirs}{their}.{{affine}}", f"{ours}{own}.{{affine}}") for their, own in outputs.items()]
    return [*rules, Rename(theirs + "scales.{i}.scale", ours + "level_scales.factors.{i}")]


def _positive_queries(number: int, name: str) -> list[Rule]:
    ours = f"query_groups.positive_{name}.embedding."
    pairs = {
        "aux_pos_trans": "boxes.projection",
        "aux_pos_trans_norm": "boxes.norm",
        "pos_feats_trans": "features.projection",
        "pos_feats_norm": "features.norm",
    }
    return [
        Rename(f"{_TRANSFORMER}{their}.{number}.{{affine}}", f"{ours}{own}.{{affine}}") for their, own in pairs.items()
    ]


# -------------------------------------------------------------------------------------------- what no name stands for


def finish(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ours, with the neck's biases and a vector for each head's queries."""
    finished: dict[str, Tensor] = {}
    for name, tensor in mmdetection.reorder_merged(weights).items():
        finished[name] = tensor
        match = _NECK_CONVOLUTION.fullmatch(name)
        if match and match[2] == "weight":
            finished[match[1] + "bias"] = tensor.new_zeros(len(tensor))
    if _HEAD_NUMBERS in finished:
        numbers = finished.pop(_HEAD_NUMBERS)
        width = (
            weights["memory_builder.level_embeddings"].shape[1] if "memory_builder.level_embeddings" in weights else 1
        )
        for name, number in zip(_heads(weights), numbers, strict=True):
            finished[_head_embedding(name)] = number.expand(width).clone()
    return finished


def prepare_writing(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of ``finish``. What it did not make stays, and has no name there: biases that are not zero, vectors
    whose numbers differ."""
    prepared = repeat_shared_heads(weights)
    for name, tensor in weights.items():
        match = _NECK_CONVOLUTION.fullmatch(name)
        if match and match[2] == "bias" and not tensor.is_meta and not tensor.any():
            del prepared[name]
    names = [name for name in map(_head_embedding, _heads(weights)) if name in prepared]
    if names and all(same_tensor(prepared[name], prepared[name][:1].expand_as(prepared[name])) for name in names):
        prepared[_HEAD_NUMBERS] = torch.stack([prepared.pop(name)[:1] for name in names])
    return prepared


def _head_embedding(name: str) -> str:
    return f"query_groups.positive_{name}.embedding.head_embedding.weight"
