"""Proof that a converted model computes what the original did: outputs of one against outputs of the other.

A dump is one ``.npz`` or ``.safetensors`` file. For every image, i = 0, 1, ..., it holds

    image_i    uint8 (3, H, W)     in the channel order of the model (RGB for DINO), not normalised
    logits_i   float (A, N, K)     class logits of the last A decoder layers, one is enough
    boxes_i    float (A, N, 4)     their boxes, cxcywh as a share of the image, in [0, 1]
    anchors_i  float (N, 4)        optional: the decoder's initial anchor boxes, of the same kind, by query

as the model gives them in evaluation for this image alone. The images are noise: ``make_images`` draws image i from
``numpy.random.default_rng(seed + i)``.

Query selection ranks thousands of tokens, and the rank decides which learned content a box gets. Two correct
implementations may swap ranks whose scores differ by less than their rounding errors, and then differ in these queries
by far more. (DINO-R50 in float32 against float64: a few of 900 ranks are swapped in each image, and logits differ by
1.0; with equal ranks by 1e-5.) With ``anchors_i`` the comparison takes the ranks of the original; without them it takes
the model's own.

This writes a dump in detrex's environment (on the CPU, where convolutions are exact):

    import numpy as np, torch
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import LazyConfig, instantiate

    cfg = LazyConfig.load("projects/dino/configs/dino-resnet/dino_r50_4scale_12ep.py")
    cfg.model.device = "cpu"
    model = instantiate(cfg.model).eval()
    DetectionCheckpointer(model).load("dino_r50_4scale_12ep.pth")
    dump, seen = {}, {}
    model.transformer.register_forward_hook(lambda module, inputs, outputs: seen.update(anchors=outputs[1][0]))
    model.inference = lambda logits, boxes, sizes: seen.update(logits=logits, boxes=boxes) or []
    for i in range(2):
        dump[f"image_{i}"] = np.random.default_rng(i).integers(0, 256, (3, 480, 640), dtype=np.uint8)
        with torch.no_grad():
            model([{"image": torch.from_numpy(dump[f"image_{i}"]), "height": 480, "width": 640}])
        dump |= {f"{name}_{i}": tensor.numpy() for name, tensor in seen.items()}
    np.savez("dump.npz", **dump)

Legend: A decoder layers, N queries, K classes, H and W image sides.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dinox.checkpoint.reading import CheckpointError
from dinox.checkpoint.writing import check_target, writing_errors
from dinox.structures import Proposals
from dinox.utils.whole_files import written_whole

TOLERANCE = 1e-3
"""Greatest difference of logits and of boxes between two right implementations in float32: rounding errors of 12
layers reach a hundredth of it, and a wrong setting (a temperature, an offset) exceeds it by far."""

IMAGE_SIZE = (480, 640)  # height, width: more tokens than any published model has queries

_ENDINGS = (".npz", ".safetensors")


@dataclass(frozen=True)
class Dump:
    """One image and what a model made of it. image: (3, H, W) uint8. logits: (A, N, K). boxes: (A, N, 4), normalised
    cxcywh. anchors: (N, 4) likewise, or None."""

    image: Tensor
    logits: Tensor
    boxes: Tensor
    anchors: Tensor | None = None


@dataclass(frozen=True)
class Certificate:
    """Greatest differences over all images, layers and queries.

    reordered: queries whose rank was taken from the original, since their scores are as good as equal.
    """

    path: str
    num_images: int
    num_layers: int
    logits: float
    boxes: float
    reordered: int
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.logits <= self.tolerance and self.boxes <= self.tolerance  # false for NaN

    def require(self) -> None:
        """Raises CheckpointError if a difference exceeds the tolerance."""
        if not self.holds:
            raise CheckpointError(
                f"{self.path}: the outputs differ by up to {self.logits:.2g} (logits) and {self.boxes:.2g} (boxes), "
                f"more than {self.tolerance:g}. Were the dump's weights these, and is the config the original's "
                "(temperature and offset of the position embedding, number of queries, pixel statistics)? A dump "
                "without anchors_i cannot tell swapped ranks from errors"
            )


def make_images(num_images: int = 2, size: tuple[int, int] = IMAGE_SIZE, seed: int = 0) -> list[Tensor]:
    """Noise, each image from its own seed: uint8 (3, height, width)."""
    return [
        torch.from_numpy(np.random.default_rng(seed + i).integers(0, 256, (3, *size), dtype=np.uint8))
        for i in range(num_images)
    ]


def compute_dump(model: nn.Module, images: Sequence[Tensor]) -> list[Dump]:
    """The outputs of a ``DetectionTransformer`` in evaluation, each image alone. The model's mode is kept."""
    with torch.no_grad(), _evaluating(model):
        return [_outputs(model, image) for image in images]


def compare(
    model: nn.Module, path: str | os.PathLike, *, tolerance: float = TOLERANCE, rows: Sequence[int] | None = None
) -> Certificate:
    """Hold a model against the dump at ``path``; the certificate says whether it holds.

    rows: which of the dump's classes are the model's, where it has more.

    Raises CheckpointError if there is no such dump, or it is of another number of queries, layers or classes.
    """
    reference = read_dump(path)
    differences = {"logits": 0.0, "boxes": 0.0}
    reordered = 0
    for i, theirs in enumerate(reference):
        if rows is not None and theirs.logits.shape[-1] > max(len(rows), max(rows)):
            theirs = replace(theirs, logits=theirs.logits[..., list(rows)])
        ours, moved = _in_their_order(model, theirs)
        reordered += moved
        for name in differences:
            mine, other = getattr(ours, name), getattr(theirs, name)
            if mine[-len(other) :].shape != other.shape:
                raise CheckpointError(
                    f"{path}: {name}_{i} has the shape {tuple(other.shape)}, the model's have {tuple(mine.shape)}: "
                    "(layers, queries, classes or 4). Is this the right config?"
                )
            difference = (mine[-len(other) :] - other).abs().max().item()
            differences[name] = max(difference, differences[name], key=_nan_first)
    return Certificate(
        path=str(path),
        num_images=len(reference),
        num_layers=min(len(dump.logits) for dump in reference),
        reordered=reordered,
        tolerance=tolerance,
        **differences,
    )


def _nan_first(number: float) -> float:
    return math.inf if math.isnan(number) else number


def _outputs(model: nn.Module, image: Tensor) -> Dump:
    raw = model.raw_predictions([{"image": image}])
    anchors = None if raw.encoder_boxes is None else raw.encoder_boxes[0].float().cpu()
    return Dump(image, raw.logits[:, 0].float().cpu(), raw.boxes[:, 0].float().cpu(), anchors)


def _in_their_order(model: nn.Module, theirs: Dump) -> tuple[Dump, int]:
    """The model's outputs for their image, with its proposals in the order of their anchors, and how many moved."""
    if theirs.anchors is None or model.query_selection is None:
        return compute_dump(model, [theirs.image])[0], 0
    moved = 0

    def reorder(module: nn.Module, inputs: tuple, proposals: Proposals) -> Proposals:
        nonlocal moved
        own = proposals.boxes[0]
        if own.shape != theirs.anchors.shape:
            return proposals  # the shapes of the outputs will be found to differ
        order = _nearest_one_to_one(theirs.anchors.to(own), own)
        moved = int((order != torch.arange(len(order), device=order.device)).sum())
        return replace(
            proposals,
            **{name: getattr(proposals, name)[:, order] for name in ("features", "anchors", "logits", "boxes")},
        )

    hook = model.query_selection.register_forward_hook(reorder)
    try:
        return compute_dump(model, [theirs.image])[0], moved
    finally:
        hook.remove()


def _nearest_one_to_one(wanted: Tensor, available: Tensor) -> Tensor:
    """(N,) which of ``available`` (N, 4) goes to which of ``wanted`` (N, 4): first those that agree by rank."""
    distances = torch.cdist(wanted, available, p=torch.inf)
    order = torch.full((len(wanted),), -1, device=wanted.device)
    in_place = distances.diagonal() <= _SAME_BOX
    order[in_place] = in_place.nonzero()[:, 0]
    distances[:, in_place] = torch.inf
    for query in (~in_place).nonzero()[:, 0].tolist():
        order[query] = distances[query].argmin()
        distances[:, order[query]] = torch.inf
    return order


_SAME_BOX = 1e-4  # two anchors whose coordinates differ by less are the same token's


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


# ---------------------------------------------------------------------------------------------------------------- files


def check_dump_target(path: str | os.PathLike) -> None:
    """Raises CheckpointError if ``write_dump`` could not write there."""
    check_target(path, endings=_ENDINGS)


def write_dump(path: str | os.PathLike, dumps: Sequence[Dump]) -> None:
    """Write a dump, whole or not at all. Raises CheckpointError if the disk is full or breaks."""
    arrays = {
        f"{name}_{i}": getattr(dump, name).contiguous()
        for i, dump in enumerate(dumps)
        for name in ("image", "logits", "boxes", "anchors")
        if getattr(dump, name) is not None
    }
    with writing_errors(path), written_whole(path) as temporary:
        if Path(path).suffix == ".npz":
            with open(temporary, "wb") as file:  # a name of its own would get another ending
                np.savez(file, **{name: array.numpy() for name, array in arrays.items()})
        else:
            save_file(arrays, str(temporary))


def read_dump(path: str | os.PathLike) -> list[Dump]:
    """Read a dump. Raises CheckpointError that names the file and what is wrong with it."""
    if Path(path).suffix not in _ENDINGS:
        raise CheckpointError(f"{path}: expected a dump, which ends in {' or '.join(_ENDINGS)}")
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file. Expected a dump of the original's outputs (see --dump)")
    try:
        if Path(path).suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        else:
            arrays = load_file(path)
    except Exception as error:  # whatever zip and safetensors make of something else
        raise CheckpointError(f"{path}: not a readable dump ({type(error).__name__}: {error})") from error
    num_images = sum(name.startswith("image_") for name in arrays)
    if num_images == 0:
        raise CheckpointError(f"{path}: expected image_0, logits_0, boxes_0, ...; got {', '.join(arrays) or 'nothing'}")
    return [_parse_image(arrays, i, path) for i in range(num_images)]


def _parse_image(arrays: dict[str, Tensor], i: int, path: str | os.PathLike) -> Dump:
    missing = [name for name in ("image", "logits", "boxes") if f"{name}_{i}" not in arrays]
    if missing:
        raise CheckpointError(f"{path}: {missing[0]}_{i} is missing (image_i, logits_i, boxes_i go together)")
    image = arrays[f"image_{i}"]
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise CheckpointError(
            f"{path}: image_{i}: expected uint8 (3, height, width), got {image.dtype} {tuple(image.shape)}"
        )
    outputs = {name: arrays[f"{name}_{i}"].float() for name in ("logits", "boxes")}
    for name, tensor in outputs.items():
        if tensor.dim() != 3 or (name == "boxes" and tensor.shape[-1] != 4):
            expected = "(layers, queries, 4)" if name == "boxes" else "(layers, queries, classes)"
            raise CheckpointError(f"{path}: {name}_{i}: expected {expected}, got {tuple(tensor.shape)}")
    anchors = arrays.get(f"anchors_{i}")
    return Dump(image, **outputs, anchors=None if anchors is None else anchors.float())
