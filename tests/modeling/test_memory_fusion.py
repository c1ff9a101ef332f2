"""Memory fusion, by hand and in whole models."""

import pytest
import torch
from detectron2.config import instantiate
from torch import nn
from torch.nn import functional as F

from dinox.config import load_config
from dinox.modeling import DeformableEncoder, DenseEncoder, DenseFusion, RowColumnEncoder, SimpleFusion, ULikeFusion
from dinox.modeling.encoder import refine_layer_by_layer

from ..small_models import (
    assert_trains_one_step,
    build_small,
    make_input,
    make_memory,
    randomise_heads,
    small_overrides,
)

FUSIONS = {
    "simple": lambda layers, dim: SimpleFusion(embed_dim=dim, num_layers=layers),
    "simple_normed": lambda layers, dim: SimpleFusion(embed_dim=dim, num_layers=layers, norm=nn.LayerNorm(dim)),
    "u_like": lambda layers, dim: ULikeFusion(embed_dim=dim, num_layers=layers),
    "dense": lambda layers, dim: DenseFusion(embed_dim=dim, num_layers=layers),
}


class Power(nn.Module):
    """A layer that is a known function: tokens ** exponent + 1."""

    def __init__(self, exponent: int):
        super().__init__()
        self.exponent = exponent

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens**self.exponent + 1


def run(exponents: list[int], fusion: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    memory = make_memory(tokens, [(1, tokens.shape[1])])
    layers = [Power(exponent) for exponent in exponents]
    return refine_layer_by_layer(memory, layers, lambda layer, m: m.with_tokens(layer(m.tokens)), fusion=fusion).tokens


def set_weights(projection: nn.Linear, *blocks: float, bias: float = 0.0) -> None:
    """Every input enters with one factor: projection(cat(a, b)) = blocks[0] a + blocks[1] b + bias."""
    dim = projection.out_features
    projection.weight.data = torch.cat([factor * torch.eye(dim) for factor in blocks], dim=1)
    projection.bias.data.fill_(bias)


def norm(tokens: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:])


X0 = torch.tensor([[[1.0, 2.0], [0.0, -1.0]]])  # B = 1, S = 2, D = 2


def test_simple_fusion_joins_the_last_layer_with_the_input():
    """x1 = x0^2 + 1 = (2, 5), (1, 2); x2 = x1^1 + 1 = (3, 6), (2, 3); fused: 10 x2 + 1 x0 + 0.5."""
    fusion = SimpleFusion(embed_dim=2, num_layers=2)
    set_weights(fusion.projection, 10.0, 1.0, bias=0.5)
    expected = torch.tensor([[[31.5, 62.5], [20.5, 29.5]]])
    torch.testing.assert_close(run([2, 1], fusion, X0), expected, rtol=0, atol=0)
    fusion.norm = nn.LayerNorm(2)
    torch.testing.assert_close(run([2, 1], fusion, X0), norm(expected), rtol=0, atol=0)


def test_dense_fusion_joins_all_layers_and_the_input_in_their_order():
    """x0, x1 and x2 as above; 100 x0 + 10 x1 + 1 x2 = (123, 256), (12, -77), then the norm."""
    fusion = DenseFusion(embed_dim=2, num_layers=2)
    set_weights(fusion.projection, 100.0, 10.0, 1.0)
    expected = torch.tensor([[[123.0, 256.0], [12.0, -77.0]]])
    torch.testing.assert_close(run([2, 1], fusion, X0), norm(expected), rtol=0, atol=0)


def test_with_one_layer_all_fusions_join_the_same_two():
    """x1 = x0^2 + 1; the order beside each other is the only difference."""
    dense, u_like = DenseFusion(embed_dim=2, num_layers=1), ULikeFusion(embed_dim=2, num_layers=1)
    simple = SimpleFusion(embed_dim=2, num_layers=1, norm=nn.LayerNorm(2))
    set_weights(dense.projection, 1.0, 3.0)
    set_weights(simple.projection, 3.0, 1.0)
    set_weights(u_like.joins[0].projection, 3.0, 1.0)
    expected = norm(X0 + 3 * (X0**2 + 1))
    for fusion in (dense, simple, u_like):
        torch.testing.assert_close(run([2], fusion, X0), expected, rtol=0, atol=1e-6)  # one rounding of sums


def test_u_like_fusion_of_six_layers_joins_the_inputs_of_the_last_three_with_the_early_ones():
    """x2 joins layer 4, x1 layer 5, x0 layer 6; what is joined goes into the next layer."""
    fusion = ULikeFusion(embed_dim=2, num_layers=6)
    assert len(fusion.joins) == 3
    for i, join in enumerate(fusion.joins):
        set_weights(join.projection, 1.0, float(i + 2))
    x1 = X0**2 + 1
    x2 = x1 + 1
    x3 = x2 + 1
    x4 = norm((x3 + 1) + 4 * x2)
    x5 = norm((x4 + 1) + 3 * x1)
    x6 = norm((x5**2 + 1) + 2 * X0)
    torch.testing.assert_close(run([2, 1, 1, 1, 1, 2], fusion, X0), x6, rtol=0, atol=1e-6)  # rounding of the norms


@pytest.mark.parametrize(("layers", "joined"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)])
def test_u_like_fusion_skips_from_the_layers_before_the_middle(layers, joined):
    """i < L / 2."""
    fusion = ULikeFusion(embed_dim=2, num_layers=layers)
    assert len(fusion.joins) == joined
    for join in fusion.joins:
        set_weights(join.projection, 0.0, 1.0)  # what is skipped alone
    torch.testing.assert_close(run([3] * layers, fusion, X0), norm(X0), rtol=0, atol=0)  # the last one is x0


def test_fusions_start_as_the_transformer_does_with_biases_at_zero():
    """Xavier-uniform: within +-sqrt(6 / (7 D + D)), and near that bound somewhere among 7 D^2 numbers."""
    fusion = DenseFusion(embed_dim=32, num_layers=6)
    bound = (6 / (8 * 32)) ** 0.5
    assert fusion.projection.bias.eq(0).all() and fusion.projection.weight.shape == (32, 7 * 32)
    assert 0.99 * bound < fusion.projection.weight.abs().max() <= bound


@pytest.mark.parametrize("make", FUSIONS.values(), ids=FUSIONS)
@pytest.mark.parametrize("encoder", [DeformableEncoder, DenseEncoder, RowColumnEncoder])
def test_every_encoder_takes_every_fusion(encoder, make):
    torch.manual_seed(0)
    levels = {"num_levels": 1} if encoder is DeformableEncoder else {}
    sizes = dict(embed_dim=16, num_layers=3, num_heads=4, feed_forward_dim=16, **levels)
    plain, fused = encoder(**sizes), encoder(**sizes, fusion=make(3, 16))
    missing, unexpected = fused.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("fusion.") for name in missing)
    memory = make_memory(torch.randn(1, 6, 16), [(2, 3)])
    if encoder is RowColumnEncoder:
        memory = type(memory)(**{**vars(memory), "positions": torch.zeros(1, 6, 32)})
    assert not torch.allclose(plain(memory).tokens, fused(memory).tokens)
    fused(memory).tokens.square().sum().backward()
    assert all(parameter.grad.ne(0).any() for parameter in fused.fusion.parameters())


def test_a_fusion_of_another_encoder_is_an_error():
    sizes = {"embed_dim": 16, "num_heads": 4, "feed_forward_dim": 16}
    with pytest.raises(ValueError, match="num_layers = 6, but this one has 3"):
        DenseEncoder(**sizes, num_layers=3, fusion=DenseFusion(embed_dim=16, num_layers=6))
    with pytest.raises(ValueError, match="embed_dim = 32, but this one has 16"):
        DenseEncoder(**sizes, num_layers=3, fusion=DenseFusion(embed_dim=32, num_layers=3))
    with pytest.raises(ValueError, match="nothing to fuse in an encoder of 0 layers"):
        DenseFusion(embed_dim=32, num_layers=0)


def build_fused(fusion: str, config: str = "dino/dino_r50_4scale_12ep", seed: int = 0) -> nn.Module:
    cfg = load_config(config, small_overrides(config))
    cfg.model.encoder.fusion = load_config("configs/common/models/memory_fusion.py")[fusion]
    torch.manual_seed(seed)
    return instantiate(cfg.model).train()


@pytest.mark.parametrize("fusion", ["simple_fusion", "u_like_fusion", "dense_fusion"])
@pytest.mark.parametrize(
    "config", ["dino/dino_r50_4scale_12ep", "detr/detr_r50_500ep", "anchor_detr/anchor_detr_r50_50ep"]
)
def test_fused_detectors_train_a_step_and_take_the_weights_of_their_base(fusion, config):
    model = build_fused(fusion, config)
    missing, unexpected = model.load_state_dict(build_small(config).state_dict(), strict=False)
    assert missing and not unexpected and all(name.startswith("encoder.fusion.") for name in missing)
    assert_trains_one_step(model, [make_input(64, 96, 2), make_input(50, 40, 0)])
    parameters = dict(model.encoder.fusion.named_parameters())
    assert all(parameter.grad.ne(0).any() for parameter in parameters.values())


@pytest.mark.parametrize("fusion", ["simple_fusion", "u_like_fusion", "dense_fusion"])
def test_query_selection_and_decoder_read_the_fused_memory(fusion):
    """Proposals change with the fusion's weights; and so do predictions of static queries, that see memory alone."""
    inputs = [make_input(64, 96, 2)]
    for config in ("dino/dino_r50_4scale_12ep", "dino/ablation_static_queries"):
        model = randomise_heads(build_fused(fusion, config)).eval()
        before = model.raw_predictions(inputs)
        for parameter in model.encoder.fusion.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        after = model.raw_predictions(inputs)
        assert not torch.allclose(before.logits, after.logits)
        if before.encoder_logits is not None:
            assert not torch.allclose(before.encoder_logits, after.encoder_logits)


@pytest.mark.parametrize("fusion", ["simple_fusion", "u_like_fusion", "dense_fusion"])
def test_padded_tokens_are_fused_without_a_mask_and_change_no_detection(fusion):
    """1e-4 on logits and boxes, as for the base: only the order of summation differs."""
    model = randomise_heads(build_fused(fusion)).eval()
    inputs = [make_input(64, 96, 2, seed=0), make_input(96, 64, 2, seed=1)]
    together = model.raw_predictions(inputs)
    for i, x in enumerate(inputs):
        alone = model.raw_predictions([x])
        torch.testing.assert_close(together.logits[:, i], alone.logits[:, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(together.boxes[:, i], alone.boxes[:, 0], atol=1e-4, rtol=0)
