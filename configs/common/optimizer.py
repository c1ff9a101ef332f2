"""AdamW as DINO and its relatives use it (DINO, appendix D): the backbone ten times slower, gradients clipped at
0.1."""

from detectron2.config import LazyCall as L

from dinox.engine.optimizer import ClippedAdamW, get_optimizer_params

optimizer = L(ClippedAdamW)(
    params=L(get_optimizer_params)(
        # model: filled in by the training script
        lr="${..lr}",
        backbone_lr_factor=0.1,
        norm_weight_decay=0.0,  # layer and group norms; the authors' own code decays them too
        lr_factors={},  # more factors, {regular expression of parameter names: factor}
        layer_decay=None,  # of vision transformers: how much slower every earlier layer learns
        no_weight_decay=[],  # regular expressions of parameter names
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
    max_grad_norm=0.1,  # L2 norm of the whole model's gradient
)
