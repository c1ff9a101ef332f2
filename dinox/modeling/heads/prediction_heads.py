"""Class and box heads of the decoder layers.

Legend: B images, N queries, D channels, K classes.
"""

from torch import Tensor, nn

from dinox.layers import MLP, make_box_head, make_class_head, move_anchors
from dinox.structures import ClassRows


class PredictionHeads(nn.Module):
    """One class head and one box head for all decoder layers (DINO, appendix D.3), or a pair per layer.

    The box head serves twice where boxes are refined: it moves the anchors, and it predicts the layer's boxes.
    size_logit: where width and height of the first layer's boxes start, for anchors without a size (-2).
    """

    def __init__(
        self, *, embed_dim: int, num_classes: int, num_layers: int, shared: bool = True, size_logit: float = 0.0
    ):
        super().__init__()
        copies = 1 if shared else num_layers
        self.class_heads = nn.ModuleList(
            make_class_head(embed_dim=embed_dim, num_classes=num_classes) for _ in range(copies)
        )
        self.box_heads = nn.ModuleList(
            make_box_head(embed_dim=embed_dim, size_logit=size_logit if i == 0 else 0.0) for i in range(copies)
        )

    def class_rows(self) -> dict[str, ClassRows]:
        return {f"class_heads.{name}": ClassRows() for name in self.class_heads.state_dict()}

    def logits(self, layer: int, states: Tensor) -> Tensor:
        """states: (B, N, D) of decoder layer ``layer`` -> (B, N, K) class logits."""
        return self.class_heads[layer % len(self.class_heads)](states)

    def boxes(self, layer: int, states: Tensor, anchors: Tensor | None) -> Tensor:
        """Anchors moved by the box head: (B, N, D), (B, N, 4 or 2) in [0, 1] -> (B, N, 4) cxcywh in [0, 1]."""
        return move_anchors(self.box_heads[layer % len(self.box_heads)](states), anchors)


class SoftmaxHeads(nn.Module):
    """DETR's heads, shared by all layers: classes and, last, "no object" compete in a softmax; boxes have no anchor."""

    def __init__(self, *, embed_dim: int, num_classes: int):
        super().__init__()
        self.class_heads = nn.ModuleList([nn.Linear(embed_dim, num_classes + 1)])
        self.box_heads = nn.ModuleList([MLP(in_dim=embed_dim, hidden_dim=embed_dim, out_dim=4, num_layers=3)])

    def class_rows(self) -> dict[str, ClassRows]:
        return {f"class_heads.{name}": ClassRows(others=1) for name in self.class_heads.state_dict()}

    def logits(self, layer: int, states: Tensor) -> Tensor:
        """states: (B, N, D) -> (B, N, K + 1)."""
        return self.class_heads[0](states)

    def boxes(self, layer: int, states: Tensor, anchors: Tensor | None) -> Tensor:
        """states: (B, N, D) -> (B, N, 4) cxcywh in [0, 1]."""
        return move_anchors(self.box_heads[0](states), anchors)
