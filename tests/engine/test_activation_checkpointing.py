import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dinox.engine.activation_checkpointing import PARTS, checkpoint_activations, recompute_in_backward
from dinox.engine.model_settings import apply_model_settings
from dinox.layers import DecoderLayer, EncoderLayer
from dinox.modeling import TimmBackbone, build_resnet
from tests.modeling.test_distributed import TIME_LIMIT, free_port
from tests.small_models import DINO, RCNN, build_small, make_input

DROPOUT = ("model.encoder.dropout=0.1", "model.decoder.dropout=0.1")
MODELS = {
    "DINO": (DINO, *DROPOUT),
    "DETR, dropout in its config": ("detr/detr_r50_500ep",),
    "DAB-DETR": ("dab_detr/dab_detr_r50_50ep",),
    "Stable-DINO": ("stable_dino/stable_dino_r50_4scale_12ep",),
    "Co-DETR": ("co_detr/co_deformable_detr_r50_12ep",),
    "Swin, stochastic depth": ("dino/dino_swin_large_4scale_12ep",),
    "ViT in windows": ("dino/dino_eva02_large_4scale_12ep",),
    "timm": ("dino/dino_convnext_large_4scale_12ep",),
}


def step(model, *, dtype=None):
    """Losses, gradients by name and what the random state has come to."""
    torch.manual_seed(3)
    model.zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        losses = model([make_input(64, 96, 3), make_input(50, 40, 2, seed=1)])
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {name: loss.detach() for name, loss in losses.items()}, gradients, torch.rand(1)


def assert_equal(one, other):
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


class Calls:
    """How often modules of a kind compute."""

    def __init__(self, model, kind):
        self.number = 0
        for module in model.modules():
            if isinstance(module, kind):
                module.register_forward_hook(self._count)

    def _count(self, *_):
        self.number += 1


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_losses_gradients_and_random_numbers_are_the_same_to_the_bit(config):
    model, other = build_small(*config), build_small(*config)
    checkpoint_activations(other, PARTS)
    assert list(model.state_dict()) == list(other.state_dict())
    computed = [[Calls(getattr(each, part), (nn.Linear, nn.Conv2d)) for part in PARTS] for each in (model, other)]
    assert_equal(step(model), step(other))
    assert all(again.number > once.number for once, again in zip(*computed, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_they_are_under_autocast(dtype):
    model, other = build_small(DINO, *DROPOUT), build_small(DINO, *DROPOUT)
    checkpoint_activations(other, PARTS)
    assert_equal(step(model, dtype=dtype), step(other, dtype=dtype))


@pytest.mark.parametrize("part", PARTS)
def test_only_the_named_part_is_computed_again(part):
    model = build_small()
    inside = {name: Calls(getattr(model, name), (nn.Linear, nn.Conv2d)) for name in PARTS}
    step(model)
    once = {name: calls.number for name, calls in inside.items()}
    checkpoint_activations(model, [part])
    step(model)
    twice = {name for name, calls in inside.items() if calls.number > 2 * once[name]}
    assert twice == {part}


def test_frozen_stages_and_detection_compute_once():
    model = build_small(DINO, "model.backbone.bottom_up.freeze_at=5")
    calls = Calls(model.backbone.bottom_up, nn.Conv2d)
    checkpoint_activations(model, PARTS)
    step(model)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.backbone.bottom_up.modules())
    assert calls.number == convolutions
    layers = Calls(model, nn.Linear)
    model.eval()([make_input(64, 96, 0)])
    assert layers.number == len(layers_called_once(model))


def layers_called_once(model):
    """The linear layers that detection of a copy without the setting calls."""
    plain = build_small(DINO)
    called = []
    for module in plain.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_: called.append(1))
    plain.eval()([make_input(64, 96, 0)])
    return called


def test_less_is_kept_for_the_backward_pass():
    """Bytes of the tensors that autograd saves, each storage once; weights do not count."""

    def kept(model):
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = model([make_input(128, 128, 3)])
        del losses
        return sum(storages.values())

    model = build_small()
    before = kept(model)
    checkpoint_activations(model, PARTS)
    assert kept(model) < 0.6 * before


def test_a_copy_computes_with_its_own_weights():
    """An average of weights is a deep copy of the model."""
    model = build_small()
    checkpoint_activations(model, PARTS)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    for part in ("encoder", "decoder"):
        layer = getattr(other, part).layers[0]
        assert layer.forward.args == (layer,)
        assert getattr(model, part).layers[0].forward.args[0] is not layer
    assert step(model)[0]["loss_bbox"] != step(other)[0]["loss_bbox"]


def test_random_states_are_those_of_the_layers_device(monkeypatch):
    """torch looks for devices among the arguments only, and finds none in a Memory."""
    seen = []
    monkeypatch.setattr(
        "dinox.engine.activation_checkpointing.checkpoint",
        lambda run, *args, **kwargs: seen.append(args[0]) or run(*args),
    )
    model = build_small()
    checkpoint_activations(model, ["encoder"])
    step(model)
    assert len(seen) == 2 and all(isinstance(first, nn.Parameter) for first in seen)


def test_layers_are_those_that_say_so():
    assert EncoderLayer.is_segment and DecoderLayer.is_segment


class Own(nn.Module):
    is_segment = True

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x, *, scale):
        return {"out": self.linear(x).tanh() * scale}


def test_a_layer_of_ones_own_takes_and_gives_what_it_likes():
    torch.manual_seed(0)
    layer, x = Own().double(), torch.rand(2, 3, dtype=torch.float64)
    plain = layer(x, scale=2)["out"].sum()
    plain.backward()
    before = layer.linear.weight.grad.clone()
    recompute_in_backward(layer)
    layer.zero_grad()
    again = layer(x, scale=2)["out"].sum()
    again.backward()
    assert torch.equal(plain, again) and torch.equal(before, layer.linear.weight.grad)


def test_a_part_that_is_not_there_is_an_error():
    model = build_small(RCNN)
    with pytest.raises(ValueError, match=r"train\.activation_checkpointing: this model has no part 'encoder': it has"):
        checkpoint_activations(model, ["encoder"])


def test_a_part_without_segments_is_an_error():
    model = build_small()
    model.encoder = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"'encoder', a Sequential, has neither layers with `is_segment = True`"):
        checkpoint_activations(model, ["encoder"])


@pytest.mark.parametrize(
    "backbone", [partial(build_resnet, depth=18, width=8, norm="BN"), partial(TimmBackbone, model_name="resnet18")]
)
def test_batch_norms_that_learn_would_count_twice(backbone):
    model = nn.Module()
    model.backbone = backbone()
    with pytest.raises(ValueError, match=r"'backbone' has batch norms that learn statistics .*norm=FrozenBN"):
        checkpoint_activations(model, ["backbone"])


def train_on_a_rank(rank: int, port: int, folder: str) -> None:
    """One rank has no objects. DDP notices a gradient that is missing in the next step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    gradients = []
    for parts in ((), PARTS):
        model = build_small(DINO, *DROPOUT)
        checkpoint_activations(model, parts)
        ddp = DistributedDataParallel(model)  # without find_unused_parameters
        for number in range(2):
            torch.manual_seed(number)
            ddp.zero_grad()
            sum(ddp([make_input(64, 64, 3 * rank, seed=number)]).values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    torch.save(gradients, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.timeout(TIME_LIMIT)
def test_ranks_come_to_the_same_gradients(tmp_path):
    mp.spawn(train_on_a_rank, (free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        once, twice = torch.load(tmp_path / f"{rank}.pth")
        assert all(gradient is not None for gradient in twice.values())
        torch.testing.assert_close(once, twice, rtol=0, atol=0)


def test_the_setting_is_read_from_a_config():
    model = build_small()
    apply_model_settings(model, OmegaConf.create({"activation_checkpointing": ["decoder"]}))
    changed = [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert changed == [f"decoder.layers.{i}" for i in range(3)]
    untouched = build_small()
    apply_model_settings(untouched, OmegaConf.create({}))
    assert not [module for module in untouched.modules() if "forward" in vars(module)]
