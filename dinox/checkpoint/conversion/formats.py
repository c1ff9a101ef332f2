"""Whose weights we can read and write: one entry for each implementation and kind of model.

Another detector of a known project is another entry with its own table; ``FORMATS`` is all that has to know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dinox.checkpoint.conversion import backbones, co_detr, detrex, dino, dn_detr, h_detr, transformers
from dinox.checkpoint.conversion.deformable_detr import join_queries, refines_boxes, selects_mixed, split_queries
from dinox.checkpoint.conversion.parts import repeat_shared_heads, share_equal_heads
from dinox.checkpoint.conversion.rules import Rule

OURS = "dinox"

Weights = Mapping[str, Tensor]
Settings = Mapping[str, float | bool | str | None]


@dataclass(frozen=True)
class Format:
    """How one implementation stores one kind of model.

    source: what users call the implementation. name: what messages call implementation and model.
    table: the rules for given weights, theirs or ours.
    settings: config key -> the value that this implementation computes with, where implementations differ and the
    weights do not show it. settings_of: more of them, which its names do show.
    prepare: their weights before the table is applied. finish: ours after it.
    class_rows: which rows of the tensors that have one for each class are classes, where not all are; from our weights
    and the ``category_ids`` of ``convert``. unknown_row: the label embedding has one row more, and it is used.
    object_row: row 0 of the encoder's class head is that of any object, whatever the other ones are.
    notes: what a user has to know of weights from there.
    training_parts: what our names begin with that only training needs. their_training_parts: names of theirs, as in
    rules, that are of such parts even where no rule knows them.
    explain_unknown: a sentence on names that no rule fits; None where there is nothing to say.
    write: our weights before the table is read from right to left; None: we cannot write this format.
    is_backbone: a pre-trained network alone.
    """

    source: str
    name: str
    table: Callable[[Weights], Sequence[Rule]]
    settings: Settings = field(default_factory=dict)
    settings_of: Callable[[Weights], Settings] = lambda weights: {}
    prepare: Callable[[Weights], dict[str, Tensor]] = dict
    finish: Callable[[Weights], dict[str, Tensor]] = dict
    class_rows: Callable[[Weights, Sequence[int] | None], Sequence[int]] | None = None
    unknown_row: bool = False
    object_row: bool = False
    notes: Sequence[str] = ()
    training_parts: tuple[str, ...] = ()
    their_training_parts: tuple[str, ...] = ()
    explain_unknown: Callable[[Sequence[str]], str | None] = lambda names: None
    write: Callable[[Weights], dict[str, Tensor]] | None = None
    is_backbone: bool = False


_POSITIONS = "model.memory_builder.position_embedding."
_TEMPERATURE, _OFFSET = _POSITIONS + "temperature", _POSITIONS + "offset"
MASK_MEMORY = "model.decoder.mask_memory"
_LOOK_FORWARD = "model.decoder.look_forward"

_DETREX_LEVELS = {_TEMPERATURE: 10000, _OFFSET: -0.5}
_IDEA_LEVELS = {_TEMPERATURE: 20, _OFFSET: 0.0}


def _refinement(table: str) -> Callable[[Weights], Settings]:
    """Mixed selection and looking forward twice, which the names do not show, came into Deformable DETR together."""

    def settings(weights: Weights) -> Settings:
        refined = "twice" if selects_mixed(weights, table) else "once"
        return {_LOOK_FORWARD: refined if refines_boxes(weights) else None}

    return settings


def _split_and_share(weights: Weights) -> dict[str, Tensor]:
    return share_equal_heads(split_queries(weights))


def _join_and_repeat(weights: Weights) -> dict[str, Tensor]:
    return repeat_shared_heads(join_queries(weights))


FORMATS: Sequence[Format] = (
    Format(
        source="detrex",
        name="detrex's DINO",
        table=detrex.dino_table,
        settings=_DETREX_LEVELS,
        write=repeat_shared_heads,
    ),
    Format(
        source="detrex",
        name="detrex's Deformable DETR",
        table=detrex.deformable_detr_table,
        settings=_DETREX_LEVELS,
        settings_of=_refinement(detrex.QUERY_TABLE),
        finish=_split_and_share,
        write=_join_and_repeat,
    ),
    Format(
        source="detrex",
        name="detrex's DAB-Deformable-DETR",
        table=detrex.dab_deformable_detr_table,
        settings=_DETREX_LEVELS,
        write=repeat_shared_heads,
    ),
    Format(
        source="detrex",
        name="detrex's DETR",
        table=detrex.detr_table,
        settings={_TEMPERATURE: 10000, _OFFSET: 0.0},
        write=dict,
    ),
    Format(
        source="detrex",
        name="detrex's Conditional DETR",
        table=detrex.conditional_detr_table,
        settings={_TEMPERATURE: 10000, _OFFSET: 0.0, MASK_MEMORY: False},
        write=dict,
    ),
    Format(
        source="detrex",
        name="detrex's DAB-DETR",
        table=detrex.dab_detr_table,
        settings={_TEMPERATURE: 20, _OFFSET: 0.0, MASK_MEMORY: False},
        write=dict,
    ),
    Format(
        source="detrex",
        name="detrex's Anchor DETR",
        table=detrex.anchor_detr_table,
        finish=share_equal_heads,
        write=repeat_shared_heads,
    ),
    Format(
        source="dino",
        name="IDEA-Research's DINO",
        table=dino.dino_table,
        settings=_IDEA_LEVELS,
        finish=share_equal_heads,
        class_rows=dino.class_rows,
    ),
    Format(
        source="dn-detr",
        name="IDEA-Research's DN-DETR",
        table=dn_detr.dense_decoder_table,
        settings={**_IDEA_LEVELS, MASK_MEMORY: True},
        class_rows=dino.class_rows,
        unknown_row=True,
    ),
    Format(
        source="dn-detr",
        name="IDEA-Research's DN-Deformable-DETR",
        table=dn_detr.deformable_decoder_table,
        settings=_IDEA_LEVELS,
        finish=share_equal_heads,
        class_rows=dino.class_rows,
        unknown_row=True,
    ),
    Format(
        source="stable-dino",
        name="IDEA-Research's Stable-DINO",
        table=detrex.stable_dino_table,
        settings=_DETREX_LEVELS,
        write=repeat_shared_heads,
    ),
    Format(
        source="h-detr",
        name="H-DETR's Deformable DETR",
        table=h_detr.deformable_detr_table,
        settings=_DETREX_LEVELS,
        settings_of=_refinement(h_detr.QUERY_TABLE),
        finish=_split_and_share,
        class_rows=dino.class_rows,
        object_row=True,
    ),
    Format(
        source="co-detr",
        name="Co-DETR's Co-DINO",
        table=co_detr.co_dino_table,
        settings={**_IDEA_LEVELS, _LOOK_FORWARD: "twice"},
        finish=co_detr.finish,
        notes=[co_detr.NECK_NOTE],
        training_parts=co_detr.TRAINING_PARTS,
        their_training_parts=co_detr.THEIR_TRAINING_PARTS,
        explain_unknown=co_detr.explain_unknown,
        write=co_detr.prepare_writing,
    ),
    Format(
        source="co-detr",
        name="Co-DETR's Co-Deformable-DETR",
        table=co_detr.co_deformable_detr_table,
        settings={**_DETREX_LEVELS, _LOOK_FORWARD: "twice"},
        finish=co_detr.finish,
        notes=[co_detr.NECK_NOTE],
        training_parts=co_detr.TRAINING_PARTS,
        their_training_parts=co_detr.THEIR_TRAINING_PARTS,
        explain_unknown=co_detr.explain_unknown,
        write=co_detr.prepare_writing,
    ),
    Format(source="torchvision", name="torchvision's ResNet", table=backbones.torchvision_table, is_backbone=True),
    Format(source="timm", name="timm's ResNet", table=backbones.torchvision_table, is_backbone=True),
    Format(
        source="detectron2",
        name="detectron2's ResNet",
        table=backbones.detectron2_table,
        prepare=backbones.from_caffe2,
        is_backbone=True,
    ),
    Format(source="timm", name="timm's Swin", table=transformers.timm_swin_table, is_backbone=True),
    Format(
        source="timm",
        name="timm's ViT or EVA-02",
        table=transformers.timm_vit_table,
        finish=transformers.without_class_position,
        is_backbone=True,
    ),
    Format(source="microsoft", name="Microsoft's Swin", table=transformers.microsoft_swin_table, is_backbone=True),
    Format(source="detectron2", name="detectron2's Swin", table=transformers.detectron2_swin_table, is_backbone=True),
)

SOURCES: Sequence[str] = tuple(dict.fromkeys([*(entry.source for entry in FORMATS), OURS]))
TARGETS: Sequence[str] = tuple(dict.fromkeys([OURS, *(entry.source for entry in FORMATS if entry.write)]))
