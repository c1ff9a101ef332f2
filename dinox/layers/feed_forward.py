"""Position-wise networks."""

from functools import partial
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """``num_layers`` linear layers with ReLU between them."""

    def __init__(self, *, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


Activation = Literal["relu", "prelu"]
_ACTIVATIONS = {"relu": partial(nn.ReLU, inplace=True), "prelu": nn.PReLU}  # in place: the hidden layer is the largest


class FeedForward(nn.Module):
    """Linear, activation, dropout, linear, dropout; the residual is the caller's. DAB-DETR's activation is PReLU."""

    def __init__(self, *, embed_dim: int, hidden_dim: int, dropout: float = 0.0, activation: Activation = "relu"):
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
        self.expand = nn.Linear(embed_dim, hidden_dim)
        self.activation = _ACTIVATIONS[activation]()
        self.contract = nn.Linear(hidden_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        xavier_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """(..., embed_dim) -> (..., embed_dim)."""
        # Of more than two dimensions, a linear layer's output is a view, of which autograd copies what is changed in
        # place, and the gradient too.
        hidden = self.dropout(self.activation(self.expand(x.reshape(-1, x.shape[-1]))))
        return self.dropout(self.contract(hidden)).view_as(x)


def xavier_init(module: nn.Module) -> None:
    """Xavier-uniform for every matrix in ``module``; biases and norms keep their default (both DINO repositories)."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
