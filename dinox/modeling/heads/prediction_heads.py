"""Class and box heads of the decoder layers.

Legend: B images, N queries, D channels, K classes.
"""

import torch
from torch import Tensor, nn

from dinox.layers import make_box_head, make_class_head
from dinox.structures import inverse_sigmoid


class PredictionHeads(nn.Module):
    """One class head and one box head for all decoder layers (DINO, appendix D.3), or a pair per layer.

    The box head serves twice in every layer: it refines the anchor boxes, and it predicts the layer's boxes.
    """

    def __init__(self, *, embed_dim: int, num_classes: int, num_layers: int, shared: bool = True):
        super().__init__()
        copies = 1 if shared else num_layers
        self.class_heads = nn.ModuleList(
            make_class_head(embed_dim=embed_dim, num_classes=num_classes) for _ in range(copies)
        )
        self.box_heads = nn.ModuleList(make_box_head(embed_dim=embed_dim) for _ in range(copies))

    def logits(self, layer: int, states: Tensor) -> Tensor:
        """states: (B, N, D) of decoder layer ``layer`` -> (B, N, K) class logits."""
        return self.class_heads[layer % len(self.class_heads)](states)

    def boxes(self, layer: int, states: Tensor, anchors: Tensor) -> Tensor:
        """Anchor boxes moved by the box head: (B, N, D), (B, N, 4) in [0, 1] -> (B, N, 4) cxcywh in [0, 1]."""
        offsets = self.box_heads[layer % len(self.box_heads)](states)
        with torch.autocast(offsets.device.type, enabled=False):
            return (offsets.to(anchors.dtype) + inverse_sigmoid(anchors)).sigmoid()
