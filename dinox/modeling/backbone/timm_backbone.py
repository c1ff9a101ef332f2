"""Any network of timm that gives maps of several strides, such as its ResNets and ConvNeXts, as a backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

from dinox.modeling.backbone.maps import (
    Norms,
    StageNorm,
    check_choice,
    check_out_features,
    crop_to_stride,
    freeze,
    freeze_batch_norms,
    freeze_norms,
    make_stage_norms,
    pad_to_multiple,
    stage_name,
)
from dinox.utils.ranges import check_range
from dinox.utils.suggest import did_you_mean
from dinox.utils.timm_library import import_timm

_REFUSED = {
    "pretrained": "weights come from train.init_checkpoint only",
    "pretrained_cfg": "weights come from train.init_checkpoint only",
    "pretrained_cfg_overlay": "weights come from train.init_checkpoint only",
    "checkpoint_path": "weights come from train.init_checkpoint only",
    "cache_dir": "weights come from train.init_checkpoint only",
    "features_only": "it always is",
    "out_indices": "out_features says it",
    "drop_path_rate": "drop_path says it",
}


class TimmBackbone(Backbone):
    """Maps "res2" (stride 4), "res3", ... of a network that takes images of any size.

    Swin, ViT and EVA-02 have parts of their own: ``Swin``, ``build_vit``, ``build_eva02``. Networks that would leave
    out the last rows and columns of an image (ConvNeXt) get it padded with zeros to the right and below. Pixels are
    those of the weights: ImageNet's for ResNets and most ConvNeXts.

    Args:
        model_name: one of ``timm.list_models()``. Nothing is ever downloaded.
        options: further arguments of timm's constructor (``depths`` and ``dims`` of ConvNeXt, ``layers`` of ResNet).
        drop_path: probability to skip the last block in training (stochastic depth); None: the network has none.
        out_features: stages beyond the last one asked for are not kept.
        stage_norm: "LN" or "" for none.
        norms: "frozen": batch norms use the statistics that they were pre-trained with, and no norm is trained.
        freeze_at: parts that are not trained: 1: the stem, 2: and the stage of stride 4, ...
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        *,
        model_name: str,
        options: Mapping[str, Any] | None = None,
        drop_path: float | None = None,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        stage_norm: StageNorm = "",
        norms: Norms = "trained",
        freeze_at: int = 0,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        check_choice("stage_norm", stage_norm, StageNorm)
        check_choice("norms", norms, Norms)
        check_range("freeze_at", freeze_at, 0)
        if drop_path is not None:
            check_range("drop_path", drop_path, 0, 1)
        settings = _settings(model_name, options, drop_path)
        plan = _Plan(model_name, settings)
        check_out_features(out_features, list(plan.strides))
        self._out_features = [name for name in plan.strides if name in out_features]
        self._out_feature_strides = {name: plan.strides[name] for name in self._out_features}
        self.network = _create(model_name, out_indices=[plan.indices[name] for name in self._out_features], **settings)
        channels = self.network.feature_info.channels()
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self._pad_to = plan.pad_to(self._out_features)
        self._model_name, self._stage_of = model_name, plan.stage_of_child
        self.stage_norms = make_stage_norms(stage_norm, self._out_feature_channels)
        if norms == "frozen":
            freeze_norms(self.network)
        self._freeze(freeze_at)
        if gradient_checkpointing:
            self.network.set_grad_checkpointing(True)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"res3": (B, C, H/8, W/8), ...}, sizes rounded up."""
        maps = self.network(pad_to_multiple(images, self._pad_to) if self._pad_to > 1 else images)
        return {
            name: self.stage_norms[name](crop_to_stride(m, images.shape[-2:], self._out_feature_strides[name]))
            for name, m in zip(self._out_features, maps, strict=True)
        }

    def shards(self) -> list[nn.Module]:
        """For FSDP: stem and stages."""
        return [child for child in self.network.children() if any(True for _ in child.parameters())]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's name for ``gradient_checkpointing``."""
        self.network.set_grad_checkpointing(enable)

    def layers_to_output(self) -> dict[str, int]:
        """For layer-wise learning rates: parameter -> 0 for the norms of outputs, 1 for the last stage, one more for
        each stage before, and most for the stem."""
        stages = self._known_stages("layer_decay")
        behind = max(stages[name] for name, _ in self.network.named_children()) + 1
        return {
            name: behind - stages[name.split(".")[1]] if name.startswith("network.") else 0
            for name, _ in self.named_parameters()
        }

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at == 0:
            return
        stages = self._known_stages("freeze_at")
        for name, module in list(self.network.named_children()):
            if stages[name] < freeze_at:
                frozen = freeze_batch_norms(module)
                freeze([frozen])
                self.network[name] = frozen

    def _known_stages(self, purpose: str) -> dict[str, int]:
        if self._stage_of is None:
            raise ValueError(f"{purpose}: timm does not tell the stages of {self._model_name} apart: leave it out")
        return self._stage_of


class _Plan:
    """What timm says of a network, without memory for one.

    strides: of every map that it can give from stride 4 on, by our name. indices: timm's numbers of these maps.
    stage_of_child: stage of each module directly below the network, 0 for the stem; None: they are no stages.
    """

    def __init__(self, model_name: str, settings: Mapping[str, Any]):
        self._model_name = model_name
        with torch.device("meta"):
            self._network = _create(model_name, **settings).eval()
        features = self._network.feature_info.info
        if len({f["reduction"] for f in features}) != len(features):
            raise ValueError(self._unsuitable("does not give one map for each stride"))
        coarse = [(i, f) for i, f in enumerate(features) if f["reduction"] >= 4]
        self.strides = {stage_name(f["reduction"]): f["reduction"] for _, f in coarse}
        self.indices = {stage_name(f["reduction"]): i for i, f in coarse}
        self.stage_of_child = _stages_of_children(self._network, [f["module"] for _, f in coarse])

    def pad_to(self, out_features: Sequence[str]) -> int:
        """What the sides of images have to be multiples of; 1: the network itself rounds up."""
        largest = max(self.strides.values())
        if self._rounds_up(2 * largest + 1, largest + 1):
            return 1
        if self._rounds_up(2 * largest, 3 * largest):
            return max(self.strides[name] for name in out_features)
        raise ValueError(self._unsuitable("takes images of one size only"))

    def _rounds_up(self, height: int, width: int) -> bool:
        try:
            with torch.no_grad():
                maps = self._network(torch.empty(1, 3, height, width, device="meta"))
        except (AssertionError, RuntimeError, ValueError):  # timm's ways to refuse a size
            return False
        strides = self._network.feature_info.reduction()
        return all(
            tuple(m.shape[-2:]) == (-(-height // stride), -(-width // stride))
            for m, stride in zip(maps, strides, strict=True)
        )

    def _unsuitable(self, reason: str) -> str:
        return (
            f"model_name: timm's {self._model_name} {reason}. Of Swin, ViT and EVA-02 take dinox.modeling's Swin, "
            "build_vit and build_eva02; else a network such as convnext_large or resnet50"
        )


def _settings(model_name: str, options: Mapping[str, Any] | None, drop_path: float | None) -> dict[str, Any]:
    """Arguments of timm's constructor. Raises ValueError for a name that is not timm's, and for what is not ours to
    pass on."""
    timm = import_timm(purpose=f"TimmBackbone(model_name={model_name!r})")
    if not timm.is_model(model_name) or ":" in model_name:
        hint = did_you_mean(model_name, timm.list_models())
        raise ValueError(f"model_name: expected one of timm.list_models(), got {model_name!r}.{hint}")
    settings = _plain(options or {})
    for name in settings:
        if name in _REFUSED:
            raise ValueError(f"options: {name!r} cannot be set: {_REFUSED[name]}")
    return settings if drop_path is None else {**settings, "drop_path_rate": drop_path}


def _create(model_name: str, **settings: Any) -> nn.Module:
    timm = import_timm(purpose=f"TimmBackbone(model_name={model_name!r})")
    try:
        return timm.create_model(model_name, pretrained=False, features_only=True, **settings)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"options: timm cannot build {model_name} as a backbone with {settings}: {error}") from error


def _stages_of_children(network: nn.Module, boundaries: Sequence[str]) -> dict[str, int] | None:
    """boundaries: timm's names of the modules that give the maps, in order. What comes before the first is the stem."""
    children = [name for name, _ in network.named_children()]
    ends = {name.replace(".", "_"): stage for stage, name in enumerate(boundaries, start=1)}
    if not isinstance(network, nn.ModuleDict) or not ends.keys() <= set(children):
        return None
    stages, ended = {}, 0
    for child in children:
        ended = ends.get(child, ended)
        # Between the end of one stage and that of the next everything is of the next.
        stages[child] = ended if child in ends or not ended else min(ended + 1, len(boundaries))
    return stages


def _plain(value: Any) -> Any:
    """Lists and dictionaries of a config as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
