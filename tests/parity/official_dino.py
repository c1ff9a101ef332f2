"""The names that DINO's authors give to the weights of a small DINO of detrex: ResNet, 3 + 1 levels, 3 decoder layers.

Written out from the facts about both formats, independently of the converter's tables.
"""

import re

ENCODER_HEAD = 3
"""detrex numbers the encoder's head after those of the decoder layers."""

_LAYER = {
    "encoder": {
        "attentions.0": "self_attn",
        "norms.0": "norm1",
        "norms.1": "norm2",
        "ffns.0.layers.0.0": "linear1",
        "ffns.0.layers.1": "linear2",
    },
    "decoder": {
        "attentions.0.attn": "self_attn",
        "attentions.1": "cross_attn",
        "norms.0": "norm2",
        "norms.1": "norm1",
        "norms.2": "norm3",
        "ffns.0.layers.0.0": "linear1",
        "ffns.0.layers.1": "linear2",
    },
}


def official_name(name: str) -> str:
    """detrex's name -> the authors'."""
    if name.startswith("backbone."):
        return f"backbone.0.body.{_torchvision_name(name.removeprefix('backbone.'))}"
    neck = re.fullmatch(r"neck\.(extra_)?convs\.(\d)\.(conv|norm)\.(\w+)", name)
    if neck:
        level = int(neck[2]) + (3 if neck[1] else 0)
        return f"input_proj.{level}.{'01'[neck[3] == 'norm']}.{neck[4]}"
    layer = re.fullmatch(r"transformer\.(encoder|decoder)\.layers\.(\d)\.(.+)", name)
    if layer:
        stack, number, rest = layer.groups()
        theirs = next(old for old in _LAYER[stack] if rest.startswith(old + "."))
        return f"transformer.{stack}.layers.{number}.{_LAYER[stack][theirs]}{rest.removeprefix(theirs)}"
    name = name.replace("level_embeds", "level_embed")
    name = re.sub(rf"^class_embed\.{ENCODER_HEAD}\.", "transformer.enc_out_class_embed.", name)
    return re.sub(rf"^bbox_embed\.{ENCODER_HEAD}\.", "transformer.enc_out_bbox_embed.", name)


def _torchvision_name(name: str) -> str:
    stage = re.match(r"res(\d)\.", name)
    if stage:
        name = f"layer{int(stage[1]) - 1}.{name.removeprefix(stage[0])}"
    name = name.removeprefix("stem.")
    name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    return re.sub(r"conv(\d)\.norm", r"bn\1", name)


def is_duplicate(name: str) -> bool:
    """Whether this is a head under the second name that detrex has for it."""
    return name.startswith(("transformer.decoder.class_embed.", "transformer.decoder.bbox_embed."))


def with_duplicates(weights: dict) -> dict:
    """The authors' state dict with the heads of the decoder layers under their second names."""
    heads = {name: tensor for name, tensor in weights.items() if name.startswith(("class_embed.", "bbox_embed."))}
    return weights | {f"transformer.decoder.{name}": tensor for name, tensor in heads.items()}
