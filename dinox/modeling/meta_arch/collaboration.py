"""How auxiliary heads (Co-DETR) fit into the model: what has to agree, and what detection leaves out."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.structures import Instances
from torch import nn

from dinox.modeling.auxiliary import AuxiliaryHeads
from dinox.modeling.queries import PositiveQueries, QueryGroups
from dinox.utils.suggest import did_you_mean


def join_heads(heads: AuxiliaryHeads | None, backbone: nn.Module, query_groups: nn.Module) -> None:
    """Tell the heads the backbone's strides.

    Raises ValueError: strides that do not fit a head, positive queries of a head that does not exist.
    """
    if heads is not None:
        _tell_strides(heads, backbone)
    names = [] if heads is None else list(heads)
    for maker in query_groups.modules():
        if isinstance(maker, PositiveQueries) and maker.head not in names:
            has = f"has {', '.join(names)}" if names else "is None"
            raise ValueError(
                f"positive queries need the auxiliary head {maker.head!r}, but model.auxiliary_heads {has}."
                f"{did_you_mean(maker.head, names)} Leave the query group out (model.query_groups.<group>=null), or "
                "add the head"
            )


def _tell_strides(heads: AuxiliaryHeads, backbone: nn.Module) -> None:
    if hasattr(backbone, "output_shape"):
        strides = [shape.stride for shape in backbone.output_shape().values()]
        given = heads.strides
        heads.fit(strides)
        if given is not None and given != heads.strides:
            raise ValueError(
                f"model.auxiliary_heads.strides make a pyramid of strides {list(given)}, but the backbone's maps have "
                f"{strides}: leave them out, or give these"
            )
    elif heads.strides is None:
        raise ValueError(
            f"model.auxiliary_heads.strides: the backbone, a {type(backbone).__name__}, has no output_shape() that "
            "tells its strides. Give the strides of its maps, highest resolution first"
        )


def require_fields(heads: AuxiliaryHeads | None, instances: Sequence[Instances], names: Sequence[str]) -> None:
    """Raise ValueError unless all images with objects have what the heads learn from. ``names``: of the images."""
    for field in sorted(heads.needs) if heads is not None else ():
        for each, name in zip(instances, names, strict=True):
            if len(each) > 0 and not each.has(field):
                which = [head for head in heads if field in getattr(heads[head], "needs", ())]
                raise ValueError(
                    f"{name}: the auxiliary head {which[0]!r} learns from instances.{field}, which are missing; there "
                    f"are {', '.join(each.get_fields())}. Load them with the data (masks: "
                    f"dataloader.train.mapper.masks=bitmask), or leave the head out with "
                    f"model.auxiliary_heads.{which[0]}=null"
                )


def without_training_parts(heads: AuxiliaryHeads | None, query_groups: nn.Module) -> AuxiliaryHeads | None:
    """What detection needs of the heads; makers that are ``training_only`` are deleted from ``query_groups``."""
    if isinstance(query_groups, QueryGroups):
        for name in [name for name in query_groups if getattr(query_groups[name], "training_only", False)]:
            del query_groups[name]
    if heads is None or heads.training_only:
        return None
    heads.drop_training_parts()
    return heads


def drop_training_parts(model: nn.Module) -> None:
    """Delete what detection has no use for, of models that know what that is (``DetectionTransformer``)."""
    if hasattr(model, "drop_training_parts"):
        model.drop_training_parts()
