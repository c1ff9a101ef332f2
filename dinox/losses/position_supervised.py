"""Classification losses whose target is how well the box lies, not 1.

| loss | target of a matched query's class | source |
|---|---|---|
| ``PositionSupervisedLoss`` | a function of the IoU, scaled up per image | Stable-DINO (Liu et al. 2023), equation 3 |
| ``QualityFocalLoss`` | the IoU | GFL (Li et al. 2020), equation 2; Co-DETR's class loss |

Targets carry no gradient: it reaches the probabilities alone, never the boxes.

Legend: A prediction sets, B images, N queries, K classes, M objects.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from dinox.losses.focal import quality_focal_loss
from dinox.structures import MatchedPredictions, Targets, box_iou, clamped_box_iou, cxcywh_to_xyxy
from dinox.utils.ranges import check_range

Curve = Literal["exponential", "sine"]
Rescale = Literal["largest_iou", "one"]

_RESCALE_EPS = 1e-8  # beside the largest target of an image, as the authors' code


def matched_iou(matched: MatchedPredictions) -> Tensor:
    """(A, B, N): IoU of every positive with its object, 0 where background; no gradient. With 1e-6 beside the union,
    as Stable-DINO's code."""
    with torch.no_grad():
        iou, _ = box_iou(cxcywh_to_xyxy(matched.boxes), cxcywh_to_xyxy(matched.target_boxes))
        return iou * matched.positive


def exact_matched_iou(matched: MatchedPredictions) -> Tensor:
    """As :func:`matched_iou`, but exact where the union is at least 1e-6 of the image, as Co-DETR's code."""
    with torch.no_grad():
        iou = clamped_box_iou(cxcywh_to_xyxy(matched.boxes), cxcywh_to_xyxy(matched.target_boxes))
        return iou * matched.positive


def largest_iou(boxes: Tensor, targets: Targets) -> Tensor:
    """boxes: (A, B, N, 4) normalised cxcywh -> (A, B): the largest IoU of any query with any object of its image, 0 in
    images without objects; no gradient.
    """
    with torch.no_grad():
        wanted = cxcywh_to_xyxy(targets.boxes.to(boxes))[:, None]  # (B, 1, M, 4)
        iou, _ = box_iou(cxcywh_to_xyxy(boxes)[..., None, :], wanted)  # (A, B, N, M)
        return _largest((iou * targets.valid[:, None]).amax(-1))


def position_targets(
    iou: Tensor,
    probability: Tensor,
    *,
    iou_exponent: float = 2.0,
    probability_exponent: float = 0.0,
    curve: Curve | None = None,
) -> Tensor:
    """f1 of equation 3 and of table 7, elementwise and without gradient: t = p^a s^b for probability p and IoU s.

    curve: applied to t after that; "exponential": (e^t - 1) / (e - 1), "sine": sin(pi t / 2), None: t itself.
    """
    target = probability.detach() ** probability_exponent * iou.detach() ** iou_exponent
    if curve == "exponential":
        return target.expm1() / math.expm1(1)
    return target if curve is None else (target * (math.pi / 2)).sin()


def rescale_targets(targets: Tensor, highest: Tensor) -> Tensor:
    """Scale every image's targets so that its largest one is ``highest``; never down (section 2.2).

    targets: (A, B, N), 0 where background. highest: (A, B), or one that broadcasts. Images whose targets are all 0 keep
    them.
    """
    factor = highest / (_largest(targets) + _RESCALE_EPS)
    return targets * factor.clamp(min=1)[..., None]


class PositionSupervisedLoss:
    """Focal loss towards a positional target: alpha |t - p|^gamma BCE(p, t) for matched classes, (1 - alpha) p^gamma
    BCE(p, 0) for all other entries, summed over queries and classes.

    iou_exponent, probability_exponent, curve: see :func:`position_targets`; the paper's f1 is s^2. rescale: the largest
    target of an image becomes its largest IoU ("largest_iou", strategy 1, for many queries: DINO's 900), or 1 ("one",
    strategy 2, for 300 queries, and what the authors' code does with 900); None: targets stay as they are. Images and
    prediction sets are rescaled apart.
    """

    def __init__(
        self,
        *,
        iou_exponent: float = 2.0,
        probability_exponent: float = 0.0,
        curve: Curve | None = None,
        rescale: Rescale | None = "largest_iou",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ):
        check_range("iou_exponent", iou_exponent, 0)
        check_range("probability_exponent", probability_exponent, 0)
        for name, value, choices in (("curve", curve, get_args(Curve)), ("rescale", rescale, get_args(Rescale))):
            if value is not None and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))} or None, got {value!r}")
        self.iou_exponent, self.probability_exponent, self.curve = iou_exponent, probability_exponent, curve
        self.rescale = rescale
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, matched: MatchedPredictions) -> Tensor:
        """Returns (A,): one sum per prediction set."""
        return _loss_towards(matched, self.targets(matched), alpha=self.alpha, gamma=self.gamma)

    @torch.no_grad()
    def targets(self, matched: MatchedPredictions) -> Tensor:
        """(A, B, N): what the probability of a positive's class is to become; 0 where background."""
        labels = matched.labels.clamp(max=matched.logits.shape[-1] - 1)
        probability = matched.logits.gather(-1, labels[..., None])[..., 0].sigmoid()
        targets = position_targets(
            matched_iou(matched),
            probability,
            iou_exponent=self.iou_exponent,
            probability_exponent=self.probability_exponent,
            curve=self.curve,
        )
        targets = targets * matched.positive
        if self.rescale is None:
            return targets
        one = targets.new_ones(())
        highest = one if self.rescale == "one" else largest_iou(matched.boxes, matched.targets)
        return rescale_targets(targets, highest)


class QualityFocalLoss:
    """|s - p|^gamma BCE(p, s) for matched classes with IoU s, p^gamma BCE(p, 0) for all other entries, summed over
    queries and classes: the position-supervised loss with exponent 1, neither rescaled nor balanced.

    s is that of :func:`exact_matched_iou`: no 1e-6 beside the union of small boxes.
    """

    def __init__(self, *, gamma: float = 2.0):
        self.gamma = gamma

    def __call__(self, matched: MatchedPredictions) -> Tensor:
        """Returns (A,): one sum per prediction set."""
        return _loss_towards(matched, exact_matched_iou(matched), alpha=None, gamma=self.gamma)


def _largest(values: Tensor) -> Tensor:
    """(..., N), not negative -> (...); 0 where there are no queries (denoising without objects)."""
    return F.pad(values, (0, 1)).amax(-1)


def _loss_towards(matched: MatchedPredictions, quality: Tensor, *, alpha: float | None, gamma: float) -> Tensor:
    """quality: (A, B, N) of the queries' own classes -> (A,)."""
    present = matched.one_hot_labels()  # (A, B, N, K)
    loss = quality_focal_loss(matched.logits, quality[..., None] * present, present > 0, alpha=alpha, gamma=gamma)
    return loss.sum(dim=(1, 2, 3))
