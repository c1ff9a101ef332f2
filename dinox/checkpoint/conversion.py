"""State dicts of other implementations under dinox's names.

A source is a table of (pattern, replacement): the first pattern that matches a whole key names it anew; a replacement
of ``None`` drops the key (a duplicate, or a constant that the config holds).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from dinox.utils.suggest import did_you_mean

Rules = Sequence[tuple[str, str | None]]

# detrex registers the heads twice; "transformer.decoder.*_embed" are the same tensors as "*_embed".
_DETREX_DINO: Rules = (
    (r"backbone\.(.+)", r"backbone.bottom_up.\1"),
    (r"neck\.((?:extra_)?convs\..+)", r"backbone.\1"),
    (r"transformer\.level_embeds", "memory_builder.level_embeddings"),
    (r"transformer\.tgt_embed\.weight", "query_groups.matching.content.embedding.weight"),
    (r"transformer\.enc_output\.(.+)", r"query_selection.projection.\1"),
    (r"transformer\.enc_output_norm\.(.+)", r"query_selection.norm.\1"),
    (r"transformer\.encoder\.layers\.(\d+)\.attentions\.0\.(.+)", r"encoder.layers.\1.self_attention.\2"),
    (
        r"transformer\.decoder\.layers\.(\d+)\.attentions\.0\.attn\.(.+)",
        r"decoder.layers.\1.self_attention.attention.\2",
    ),
    (r"transformer\.decoder\.layers\.(\d+)\.attentions\.1\.(.+)", r"decoder.layers.\1.cross_attention.\2"),
    (
        r"transformer\.(encoder|decoder)\.layers\.(\d+)\.ffns\.0\.layers\.0\.0\.(.+)",
        r"\1.layers.\2.feed_forward.expand.\3",
    ),
    (
        r"transformer\.(encoder|decoder)\.layers\.(\d+)\.ffns\.0\.layers\.1\.(.+)",
        r"\1.layers.\2.feed_forward.contract.\3",
    ),
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.norms\.0\.(.+)", r"\1.layers.\2.self_attention_norm.\3"),
    (r"transformer\.encoder\.layers\.(\d+)\.norms\.1\.(.+)", r"encoder.layers.\1.feed_forward_norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norms\.1\.(.+)", r"decoder.layers.\1.cross_attention_norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norms\.2\.(.+)", r"decoder.layers.\1.feed_forward_norm.\2"),
    (r"transformer\.decoder\.ref_point_head\.(.+)", r"decoder.position_head.\1"),
    (r"transformer\.decoder\.norm\.(.+)", r"decoder.norm.\1"),
    (r"transformer\.decoder\.(class|bbox)_embed\..+", None),
    (r"label_enc\.weight", "query_groups.denoising.label_embedding.table.weight"),
    (r"pixel_(mean|std)", None),
    # The heads depend on their number, see _detrex_heads.
    (r"(class_embed|bbox_embed)\.(\d+)\.(.+)", r"\1.\2.\3"),
)

_SOURCES: dict[str, Rules] = {"detrex": _DETREX_DINO}


def convert(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Rename a foreign state dict; tensors are shared, not copied.

    Args:
        state_dict: the foreign model's weights (of a ``{"model": ...}`` file: that entry).
        source: "detrex" (its DINO; heads separate by layer, load into a model with ``heads.shared=False``).

    Raises:
        ValueError: unknown source, or a key that no rule knows; nothing is dropped in silence.
    """
    if source not in _SOURCES:
        raise ValueError(f"unknown checkpoint source {source!r}{did_you_mean(source, _SOURCES)}")
    converted, unknown = {}, []
    last_head = _last_head(state_dict)
    for key, tensor in state_dict.items():
        name, known = _rename(key, _SOURCES[source])
        if not known:
            unknown.append(key)
        elif name is not None:
            converted[_rename_head(name, last_head)] = tensor
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(state_dict)} keys are not those of a {source} checkpoint that dinox knows, "
            f"the first: {', '.join(unknown[:5])}. Is the source right?"
        )
    return converted


def _rename(key: str, rules: Rules) -> tuple[str | None, bool]:
    """The new name (None: drop it), and whether a rule matched."""
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return (None if replacement is None else match.expand(replacement)), True
    return None, False


def _last_head(state_dict: Mapping[str, Tensor]) -> int:
    """Number of the encoder's head: the one after the decoder layers' heads."""
    numbers = (re.match(r"class_embed\.(\d+)\.", key) for key in state_dict)
    return max((int(match[1]) for match in numbers if match), default=-1)


def _rename_head(name: str, last_head: int) -> str:
    match = re.fullmatch(r"(class|bbox)_embed\.(\d+)\.(.+)", name)
    if not match:
        return name
    kind, number, rest = {"class": "class", "bbox": "box"}[match[1]], int(match[2]), match[3]
    if number == last_head:
        return f"query_selection.{kind}_head.{rest}"
    return f"heads.{kind}_heads.{number}.{rest}"
