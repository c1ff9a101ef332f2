"""AdamW that clips the whole model's gradient itself, and the parameter groups of detection transformers.

Both are plain callables, so that a config reads ``L(ClippedAdamW)(params=L(get_optimizer_params)(...), ...)`` and
detectron2's own training script, which knows nothing of dinox, trains with them unchanged.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from detectron2.solver.build import reduce_param_groups
from torch import Tensor, nn

from dinox.utils.names import backbone_prefix
from dinox.utils.ranges import check_range
from dinox.utils.sharded_tensors import whole

NORM_LAYERS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
"""Layers whose scale and shift ``norm_weight_decay`` is for; the last one covers batch and instance norms."""


def get_optimizer_params(
    model: nn.Module,
    *,
    lr: float,
    backbone_lr_factor: float = 0.1,
    norm_weight_decay: float | None = None,
    lr_factors: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
    no_weight_decay: Sequence[str] = (),
) -> list[dict]:
    """Parameter groups for a torch optimizer: one per distinct learning rate and weight decay.

    Args:
        lr: of all parameters that no factor below names. Frozen parameters are left out.
        backbone_lr_factor: times ``lr`` is the learning rate of the pre-trained network (DETR, appendix A.4, and all
            its relatives): of ``backbone.bottom_up``, or of the whole ``backbone`` where nothing is wrapped around one.
        norm_weight_decay: weight decay of normalisation layers; None leaves them the optimizer's.
        lr_factors: further factors by parameter name, ``{regular expression: factor}``, searched anywhere in the name.
            The last expression that matches wins, also over ``backbone_lr_factor``. One that matches nothing is an
            error.
        layer_decay: the pre-trained network's layers learn the slower, the earlier they are: the learning rate of its
            last layer is times this, that of the one before times its square, ... (ViTDet; 0.8 for ViT-L). It comes on
            top of all other factors. None: they learn alike.
        no_weight_decay: regular expressions of parameter names, searched anywhere, of what has a weight decay of 0:
            ``["relative_position_bias_table"]`` in Swin's recipe, ``["pos_embed"]`` in ViTDet's. One that matches
            nothing is an error.
    """
    backbone = "^" + re.escape(backbone_prefix(name for name, _ in model.named_parameters()))
    factors = {backbone: backbone_lr_factor, **(lr_factors or {})}
    by_layer = {} if layer_decay is None else _layer_factors(model, layer_decay)
    groups, used = [], {backbone}
    for name, parameter, module in _trainable_parameters(model):
        matching = [pattern for pattern in factors if re.search(pattern, name)]
        undecayed = [pattern for pattern in no_weight_decay if re.search(pattern, name)]
        used.update(matching, undecayed)
        factor = (factors[matching[-1]] if matching else 1.0) * by_layer.get(name, 1.0)
        group = {"params": [parameter], "lr": lr * factor}
        if undecayed:
            group["weight_decay"] = 0.0
        elif norm_weight_decay is not None and isinstance(module, NORM_LAYERS):
            group["weight_decay"] = norm_weight_decay
        groups.append(group)
    for argument, patterns in (("lr_factors", factors), ("no_weight_decay", no_weight_decay)):
        unused = [pattern for pattern in patterns if pattern not in used]
        if unused:
            raise ValueError(
                f"optimizer.params.{argument}: no trainable parameter's name matches {', '.join(map(repr, unused))}"
            )
    return reduce_param_groups(groups)


def _layer_factors(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Parameter name -> factor of the learning rate, for the pre-trained network inside ``model``."""
    check_range("optimizer.params.layer_decay", layer_decay, 0, 1)
    prefix = backbone_prefix(name for name, _ in model.named_parameters())
    backbone = model.get_submodule(prefix.removesuffix("."))
    if not hasattr(backbone, "layers_to_output"):
        raise ValueError(
            f"optimizer.params.layer_decay: {type(backbone).__name__} does not say which layer a parameter is of "
            "(layers_to_output()), as those of timm's networks do: leave layer_decay out, or take one of those"
        )
    return {prefix + name: layer_decay**layers for name, layers in backbone.layers_to_output().items()}


def _trainable_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter, nn.Module]]:
    """(full name, parameter, module that owns it); a parameter shared by several modules comes once."""
    seen = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield f"{prefix}.{name}" if prefix else name, parameter, module


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """L2 norm of the gradient of all parameters together."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return whole(torch.nn.utils.clip_grad_norm_(parameters, float("inf")))


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that first scales the gradient of ALL parameters together to an L2 norm of at most ``max_grad_norm``.

    Defaults are DINO's; ``max_grad_norm=None`` clips nothing. ``fused=None`` is torch's choice on a GPU, and on the CPU
    one pass over the memory instead of its nine. Clipping lives here, and not in a hook, so that it
    happens in every training loop. A gradient scaler unscales before it calls ``step``, so the norm is the true one
    in fp16 too.
    """

    def __init__(
        self,
        params: Iterable,
        *,
        lr: float = 1e-4,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        max_grad_norm: float | None = 0.1,
        fused: bool | None = None,
    ):
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(
                f"optimizer.max_grad_norm: expected a number above 0, or None for no clipping, got {max_grad_norm}"
            )
        # A config's list would end up in the checkpoint, which could then not be loaded as plain tensors and numbers.
        betas = tuple(float(beta) for beta in betas)
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
        if fused is None and all(p.device.type == "cpu" for group in self.param_groups for p in group["params"]):
            for group in (self.defaults, *self.param_groups):
                group["fused"] = True
        # Fused kernels offer to unscale in ``step``, which would be after clipping.
        self._step_supports_amp_scaling = False
        self.max_grad_norm = max_grad_norm
        self._clipped = False

    @torch.no_grad()
    def clip_gradients(self) -> Tensor:
        """Clip now instead of in the next ``step``. Returns the norm before clipping, on the parameters' device."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        limit = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        self._clipped = True
        return whole(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._clipped = False
        super().zero_grad(set_to_none=set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._clipped and self.max_grad_norm is not None:
            self.clip_gradients()
        self._clipped = False
        super().step()
        return loss
