"""Query selection: the encoder's best tokens become object proposals (Deformable DETR's "two-stage"; DINO, 3.4).

| selection | ranked by | the encoder learns |
|---|---|---|
| ``QuerySelection`` (DAB-Deformable-DETR, DINO) | a token's best class | on the selected tokens, the classes |
| ``ClassAgnosticSelection`` (Deformable DETR) | class 0 | on all tokens, objects as objects, of class 0 |

Legend: B images, S memory tokens, N proposals, D channels, K classes.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from dinox.layers import make_box_head, make_class_head, xavier_init
from dinox.structures import ClassRows, Memory, PlacedRows, Proposals, RowLayout, Targets
from dinox.utils.gather import gather_rows
from dinox.utils.numbers import fewer
from dinox.utils.precision import at_least_float32

BASE_SIZE = 0.05  # side of a proposal of level 0, as a share of the image; doubles from level to level
BORDER = 0.01  # proposals closer than this to 0 or 1 in any coordinate are rejected


def proposal_logits(memory: Memory) -> tuple[Tensor, Tensor]:
    """One anchor box per token, at its cell and with its level's size, in logit space.

    Returns (B, S, 4), +inf for rejected tokens (padding, and boxes at the border), and (B, S) bool, True = kept.
    """
    centers = memory.cell_centers
    sizes = torch.cat(  # (S, 2)
        [centers.new_full((h * w, 2), BASE_SIZE * 2**level) for level, (h, w) in enumerate(memory.spatial_shapes)]
    )
    boxes = torch.cat([centers, sizes.expand_as(centers)], dim=-1)  # (B, S, 4)
    kept = ((boxes > BORDER) & (boxes < 1 - BORDER)).all(-1) & ~memory.padding_mask
    return torch.log(boxes / (1 - boxes)).masked_fill(~kept[..., None], torch.inf), kept


class _TokenHeads(nn.Module):
    """The encoder's own projection and heads, and the ranking of its tokens. row_layout: of the class head.

    num_proposals: how many of the best tokens are proposed. more_in_training: so many of the next best too, for query
    groups that exist in training alone; the ranking stays one (H-DETR).
    """

    row_layout: ClassVar[RowLayout] = ClassRows()

    def __init__(self, *, embed_dim: int, num_classes: int, num_proposals: int, more_in_training: int = 0):
        super().__init__()
        self.num_proposals, self.more_in_training = num_proposals, more_in_training
        self.projection = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.class_head = make_class_head(embed_dim=embed_dim, num_classes=num_classes)
        self.box_head = make_box_head(embed_dim=embed_dim)
        xavier_init(self.projection)

    def class_rows(self) -> dict[str, RowLayout]:
        return {f"class_head.{name}": self.row_layout for name in self.class_head.state_dict()}

    @torch.no_grad()
    def token_scores(self, memory: Memory) -> Tensor:
        """(B, S): what the proposals are ranked by."""
        _, kept = proposal_logits(memory)
        return self._scores(memory.tokens * kept[..., None])

    def _scores(self, tokens: Tensor) -> Tensor:
        """In float32 also under autocast: the order gives every query its learned content, and half precision would
        leave hundreds of tokens with the same score.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            return self.class_score(self.class_head(self.norm(self.projection(at_least_float32(tokens)))))

    @staticmethod
    def class_score(logits: Tensor) -> Tensor:
        """(..., K) -> (...)."""
        return logits.amax(-1)

    def _propose(self, features: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, N, K) and boxes (B, N, 4) of tokens (B, N, D) with these anchor logits (B, N, 4)."""
        offsets = self.box_head(features)
        with torch.autocast(features.device.type, enabled=False):
            boxes = (offsets.to(anchors.dtype) + anchors).sigmoid()
        return self.class_head(features), boxes

    @torch.no_grad()
    def _best_tokens(self, scores: Tensor, memory: Memory) -> Tensor:
        """(B, N) indices of the tokens with the highest scores (B, S), in descending order."""
        if self.training:
            return scores.topk(min(self.num_proposals + self.more_in_training, scores.shape[1]), dim=1).indices
        scores = scores.masked_fill(memory.padding_mask, -torch.inf)
        return scores.topk(fewer(self.num_proposals, max(memory.token_counts)), dim=1).indices

    def _padding_mask(self, memory: Memory, selected: Tensor) -> Tensor | None:
        if self.training or min(memory.token_counts) >= selected.shape[1]:
            return None
        return memory.padding_mask.gather(1, selected)


class QuerySelection(_TokenHeads):
    """Scores all tokens with the encoder's own heads and keeps the ``num_proposals`` best of every image.

    Rejected tokens are scored too, with zeroed memory: they share one constant score and can be selected where tokens
    are few, as in the authors' code. The encoder's loss is of ``num_proposals``, also where more are proposed. In
    evaluation padding is never selected: images with fewer tokens than the batch selects get padded queries, so that an
    image's detections do not depend on its batch.
    """

    def forward(self, memory: Memory, selected: Tensor | None = None) -> Proposals:
        """``selected``: (B, N) tokens to propose instead of the best ones, as another runtime has ranked them."""
        anchors, kept = proposal_logits(memory)
        tokens = memory.tokens * kept[..., None]  # (B, S, D)
        if selected is None:
            with torch.no_grad():
                selected = self._best_tokens(self._scores(tokens), memory)
        # Heads run again on the selected tokens alone: nothing of the others has to be kept for the backward pass.
        features = self.norm(self.projection(gather_rows(tokens, selected)))  # (B, N, D)
        logits, boxes = self._propose(features, gather_rows(anchors, selected))
        return Proposals(
            features=features.detach(),
            anchors=boxes.detach(),
            logits=logits[:, : self.num_proposals],
            boxes=boxes[:, : self.num_proposals],
            padding_mask=self._padding_mask(memory, selected),
        )


class ClassAgnosticSelection(_TokenHeads):
    """Keeps the ``num_proposals`` tokens of every image that are most likely an object, whatever its class.

    Class 0 stands for "object" here: tokens are ranked by its logit, and the encoder's loss is taken on all tokens,
    with objects of class 0 and background, rejected tokens included (Deformable DETR, section 4.2 and its code).
    """

    row_layout: ClassVar[RowLayout] = PlacedRows()

    @staticmethod
    def class_score(logits: Tensor) -> Tensor:
        """(..., K) -> (...)."""
        return logits[..., 0]

    def forward(self, memory: Memory, selected: Tensor | None = None) -> Proposals:
        """``selected``: (B, N) tokens to propose instead of the best ones, as another runtime has ranked them."""
        anchors, kept = proposal_logits(memory)
        tokens = memory.tokens * kept[..., None]  # (B, S, D)
        features = self.norm(self.projection(tokens))
        logits, boxes = self._propose(features, anchors)
        if selected is None:
            rounded = logits.dtype in (torch.bfloat16, torch.float16)
            selected = self._best_tokens(self._scores(tokens) if rounded else self.class_score(logits), memory)
        return Proposals(
            features=gather_rows(features, selected).detach(),
            anchors=gather_rows(boxes, selected).detach(),
            logits=logits,
            boxes=boxes,
            padding_mask=self._padding_mask(memory, selected),
            target_view=Targets.as_one_class,
        )
