"""Test-time augmentation on the command line."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from dinox.inference import AugmentedDetector, NMSFusion, OneToOneEnsemble, make_views

FUSIONS = {"one-to-one": OneToOneEnsemble, "nms": NMSFusion}


def add_tta_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("test-time augmentation (DINO, appendix A)")
    group.add_argument(
        "--tta",
        metavar="SCALES",
        help="look at each image at these scales of its size, the main one first (1,0.8,1.25), and mirrored at each",
    )
    group.add_argument("--tta-no-flip", action="store_true", help="not mirrored")
    group.add_argument(
        "--tta-fusion",
        choices=tuple(FUSIONS),
        help="one-to-one: the main view's detections, boxes averaged with their partners in the other views (default); "
        "nms: those of all views, without those that overlap a better one",
    )
    group.add_argument(
        "--tta-iou", type=float, metavar="IOU", help="overlap above which two detections are of one object"
    )


@dataclass(frozen=True)
class TTAOptions:
    """As the command line has them, not looked at yet."""

    scales: str | None = None
    no_flip: bool = False
    fusion: str | None = None
    iou: float | None = None

    @staticmethod
    def of(args: argparse.Namespace) -> "TTAOptions":
        """Nothing, from the arguments of a command without them."""
        names = {"scales": "tta", "no_flip": "tta_no_flip", "fusion": "tta_fusion", "iou": "tta_iou"}
        return TTAOptions(**{field: getattr(args, name) for field, name in names.items() if name in args})

    def wrapper(self) -> Callable[..., nn.Module] | None:
        """Makes an AugmentedDetector of ``model=...``; None without ``--tta``. Raises ValueError."""
        if self.scales is None:
            if self != TTAOptions():
                raise ValueError("--tta-no-flip, --tta-fusion and --tta-iou say how to do --tta SCALES: give that too")
            return None
        try:
            scales = [float(text) for text in self.scales.split(",")]
        except ValueError:
            raise ValueError(f"--tta: expected scales such as 1,0.8,1.25, got {self.scales!r}") from None
        options = {} if self.iou is None else {"iou_threshold": self.iou}
        fusion = FUSIONS[self.fusion or "one-to-one"](**options)
        return partial(AugmentedDetector, views=make_views(scales, flip=not self.no_flip), fusion=fusion)
