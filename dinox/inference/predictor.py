"""Detections from images in three lines of Python.

from dinox import Predictor
predictor = Predictor("output/pets/model_final.pth")
instances = predictor("image.jpg")
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from torch import nn

from dinox.data import DataError
from dinox.inference.detector import Detector, load_detector
from dinox.inference.exported import EXPORTED, load_exported
from dinox.inference.images import CHANNEL_ORDERS, ImageLike, image_name, is_image, to_rgb
from dinox.inference.supervision import to_supervision
from dinox.inference.tiling import OVERLAP, make_tiles, merge_tiles, overlap_in_pixels
from dinox.modeling import DetectionTransformer
from dinox.modeling.meta_arch.known_inputs import boxes_inside
from dinox.utils.suggest import did_you_mean

SCORE_THRESHOLD = 0.3
"""What is worth looking at. For COCO's metrics take 0: they need the low scores too."""

_LEAST_TILE = 32
_NO_STREAMS = (bytes, bytearray, memoryview, dict)  # what can be iterated and is meant as one image


class Predictor:
    """A trained detector that takes images as they come.

    Args:
        weights: a checkpoint, or an exported model (``.onnx``, ``.pt2``).
        config: of the checkpoint's model: a LazyConfig, its file, or a name in the model zoo. By default the one in the
            checkpoint, which dinox writes into those it trains. Its ``dataloader.test.mapper`` says to which size
            images are resized.
        overrides: ``key=value`` texts for the config, such as ``dataloader.test.mapper.augmentations.short_edge=1200``.
        device: "cpu" or "cuda", which then must exist; by default the GPU where there is one, and the CPU for exported
            models.
        score_threshold: detections with lower scores, 0..1, are left out.
        classes: names of the classes to keep; by default all.
        batch_size: images (or tiles) that go through the model together.
        tile: side in pixels of the tiles that larger images are cut into, so that small objects are not lost; the image
            as a whole is looked at as well. By default images are not cut.
        tile_overlap: of neighbouring tiles, as a share of their side; objects larger than it may be cut.
        channel_order: "RGB" or "BGR" (as ``cv2.imread`` gives them), of numpy arrays and tensors.
        max_pixels: of image files; by default the config's, or Pillow's guard against files that fill the memory,
            and more with ``tile``.
        allow_targets: packages that the config in a yaml file or in the checkpoint may call, besides those that
            dinox knows.
        trust_program: read a ``.pt2``, which can run code when it is loaded.
        wrapper: makes what detects of ``model=...``, for instance with test-time augmentation
            ``partial(AugmentedDetector, views=make_views((1, 0.8)))``; not for exported models.
        ema: of a checkpoint that holds both, take the averaged weights; False: those of the last step.

    Raises ValueError (ConfigError, CheckpointError) with one line that says what is wrong and what to do.
    """

    def __init__(
        self,
        weights: str | os.PathLike,
        *,
        config: DictConfig | str | os.PathLike | None = None,
        overrides: Sequence[str] = (),
        device: str | None = None,
        score_threshold: float = SCORE_THRESHOLD,
        classes: Sequence[str] | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        tile_overlap: float = OVERLAP,
        channel_order: str = "RGB",
        max_pixels: int | None = None,
        allow_targets: Sequence[str] = (),
        trust_program: bool = False,
        wrapper: Callable[..., nn.Module] | None = None,
        ema: bool = True,
    ):
        _check_number("score_threshold", score_threshold, 0, 1)
        _check_number("tile_overlap", tile_overlap, 0, 0.9)
        _check_count("batch_size", batch_size, 1)
        if tile is not None:
            _check_count("tile", tile, _LEAST_TILE)
        if max_pixels is not None:
            _check_count("max_pixels", max_pixels, 1)
        if channel_order not in CHANNEL_ORDERS:
            raise ValueError(f"channel_order: expected one of {', '.join(CHANNEL_ORDERS)}, got {channel_order!r}")
        if not isinstance(weights, (str, os.PathLike)):
            raise ValueError(f"weights: expected the path of a checkpoint or of an exported model, got {weights!r}")
        self.weights = os.fspath(weights)
        self.score_threshold = score_threshold
        self.batch_size = batch_size
        self.tile, self.tile_overlap = tile, tile_overlap
        self.channel_order, self.max_pixels = channel_order, max_pixels
        self.detector: Detector = _load(
            self.weights,
            config=config,
            overrides=overrides,
            device=device,
            allow_targets=allow_targets,
            trust_program=trust_program,
            wrapper=wrapper,
            ema=ema,
        )
        self._kept_classes = _class_indices(classes, self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class index, the ``pred_classes`` of Instances."""
        return self.detector.class_names

    @overload
    def __call__(self, images: ImageLike) -> Instances: ...
    @overload
    def __call__(self, images: list[ImageLike] | tuple[ImageLike, ...]) -> list[Instances]: ...
    @overload
    def __call__(self, images: Iterable[ImageLike]) -> Iterator[Instances]: ...
    def __call__(self, images):
        """Detect objects in one image, in a list of them, or in a stream.

        Args:
            images: a path, a PIL image, a numpy array (H, W, 3) or a tensor (3, H, W), both of uint8 in 0..255 and in
                the predictor's ``channel_order``; or a list or tuple of them; or any other iterable, of which never
                more than a batch is held in memory.

        Returns one Instances, a list or an iterator of them, on the CPU: ``pred_boxes`` (absolute x0, y0, x1, y1 in the
        frame of the image as it was given), ``scores``, ``pred_classes``, scores descending.

        Raises DataError naming the image and the layout that is expected.
        """
        if is_image(images):
            return next(self.stream([images]))
        if isinstance(images, (list, tuple)):
            return list(self.stream(images))
        if not isinstance(images, Iterable) or isinstance(images, _NO_STREAMS):
            self.read(images)  # raises, and not only when somebody iterates
        return self.stream(images)

    def stream(self, images: Iterable[ImageLike]) -> Iterator[Instances]:
        """As calling the predictor with an iterable: detections of one image after the other, in their order."""
        names = ((image_name(image, index), image) for index, image in enumerate(images))
        return self.detect((name, self.read(image, name=name)) for name, image in names)

    def read(self, image: ImageLike, *, name: str | None = None) -> np.ndarray:
        """What ``detect`` takes: (H, W, 3) of uint8, RGB whatever the ``channel_order``. ``name``: for messages."""
        name = image_name(image, 0) if name is None else name
        return to_rgb(
            image,
            name=name,
            channel_order=self.channel_order,
            exif=self.detector.exif,
            max_pixels=self.max_pixels or self.detector.max_pixels,
            tiled=self.tile is not None,
        )

    def detect(self, images: Iterable[tuple[str, np.ndarray]]) -> Iterator[Instances]:
        """As ``stream``, of (name, image as ``read`` gives it)."""
        if self.tile is not None:
            return (self._detect_in_tiles(image, name) for name, image in images)
        return self._detect_in_batches(iter(images))

    def with_known(
        self,
        image: ImageLike,
        *,
        boxes: Any = None,
        labels: Sequence[str | int] | None = None,
        classes: Sequence[str | int] | None = None,
    ) -> Instances:
        """Detections in one image of which something is known, by a model that was trained for it (DN-DETR, section
        5.7).

        Args:
            image: as for calling the predictor; it is not cut into tiles.
            boxes: (n, 4) of objects that are there, absolute x0, y0, x1, y1 in the frame of the image as it was given.
                The model is trained not to detect them again.
            labels: their classes, names or indices.
            classes: all classes that are in the image, names or indices; None: nobody knows them.

        Raises ValueError saying what is wrong with what is known.
        """
        if not isinstance(self.detector.model, DetectionTransformer):
            raise ValueError(
                f"{self.weights}: only a checkpoint of a DetectionTransformer, without a wrapper, can be told what is "
                "known; exported models and other architectures take nothing but images"
            )
        name = image_name(image, 0)
        pixels = self.read(image, name=name)
        inputs = self.detector.prepare(pixels, name=name)
        known = {"known_labels": labels, "known_classes": classes}
        if boxes is not None:
            given, seen = pixels.shape[:2], inputs["image"].shape[-2:]
            boxes = Boxes(boxes_inside(boxes, given, name))
            boxes.scale(seen[1] / given[1], seen[0] / given[0])
            known["known_boxes"] = boxes
        return self._detect([inputs | {key: value for key, value in known.items() if value is not None}])[0]

    def to_supervision(self, instances: Instances) -> Any:
        """``supervision.Detections`` with class names in ``data["class_name"]``; needs that package."""
        return to_supervision(instances, class_names=self.class_names)

    def _detect_in_batches(self, images: Iterator[tuple[str, np.ndarray]]) -> Iterator[Instances]:
        while batch := list(islice(images, self.batch_size)):
            yield from self._detect([self.detector.prepare(image, name=name) for name, image in batch])

    def _detect_in_tiles(self, image: np.ndarray, name: str) -> Instances:
        height, width = image.shape[:2]
        tiles = make_tiles(height, width, size=self.tile, overlap=self.tile_overlap)
        pieces = ((name, image[tile.y0 : tile.y1, tile.x0 : tile.x1]) for tile in tiles)
        detections = list(self._detect_in_batches(pieces))
        if len(tiles) == 1:
            return detections[0]
        overlap = overlap_in_pixels(size=self.tile, overlap=self.tile_overlap)
        return merge_tiles(tiles, detections, height=height, width=width, overlap=overlap)

    @torch.no_grad()
    def _detect(self, batch: list[dict]) -> list[Instances]:
        """Model inputs to detections worth keeping, on the CPU."""
        return [self._worth_keeping(output["instances"]).to("cpu") for output in self.detector.model(batch)]

    def _worth_keeping(self, found: Instances) -> Instances:
        kept = found.scores >= self.score_threshold
        if self._kept_classes is not None:
            kept &= torch.isin(found.pred_classes, self._kept_classes.to(kept.device))
        return found[kept]


def _load(
    weights: str,
    *,
    config: DictConfig | str | os.PathLike | None,
    overrides: Sequence[str],
    device: str | None,
    allow_targets: Sequence[str],
    trust_program: bool,
    wrapper: Callable[..., nn.Module] | None,
    ema: bool,
) -> Detector:
    if Path(weights).suffix.lower() not in EXPORTED:
        detector = load_detector(
            weights, config=config, overrides=overrides, device=device, allow_targets=allow_targets, ema=ema
        )
        return detector if wrapper is None else replace(detector, model=wrapper(model=detector.model).eval())
    if not ema:
        raise ValueError(
            f"{weights} is an exported model, which holds one set of weights: leave out --no-ema (ema=False), and give "
            "it when you export"
        )
    if wrapper is not None:
        raise ValueError(
            f"{weights} is an exported model, made for images of its own size: test-time augmentation needs a "
            "checkpoint"
        )
    if config is not None or overrides:
        given = f"override {overrides[0]!r}" if overrides else f"config {config}"
        raise ValueError(f"{weights} is an exported model, which holds all its settings: leave out the {given}")
    return load_exported(weights, device=device, trust_program=trust_program)


def _class_indices(names: Sequence[str] | None, known: Sequence[str]) -> torch.Tensor | None:
    if names is None:
        return None
    indices = []
    for name in [names] if isinstance(names, str) else names:
        if name not in known:
            shown = f"{', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
            raise DataError(f"classes: the model has no class {name!r}.{did_you_mean(name, known)} It has: {shown}")
        indices.append(known.index(name))
    return torch.tensor(indices, dtype=torch.int64)


def _check_number(name: str, value: Any, least: float, greatest: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= greatest:
        raise ValueError(f"{name}: expected a number from {least} to {greatest}, got {value!r}")


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
