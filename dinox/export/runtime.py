"""Exported files as detectors."""

from __future__ import annotations

import itertools
import os
from typing import Any

import detectron2.data.transforms as T
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from dinox.export.description import FileDescription
from dinox.export.postprocess import build_postprocess
from dinox.export.runners import OnnxRunner, ProgramRunner, Runner
from dinox.modeling.meta_arch.predictions import in_output_frames
from dinox.structures import RawPredictions
from dinox.structures.memory import Size


class ExportedDetector:
    """detectron2's contract around an exported file; see ``OnnxDetector`` and ``ProgramDetector``."""

    def __init__(self, runner: Runner, path: str):
        self._runner, self._path = runner, path

    @property
    def description(self) -> FileDescription:
        """All that the file says about itself."""
        return self._runner.description

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class index."""
        return self.description.class_names

    @property
    def input_format(self) -> str:
        """The order of the channels of ``image``: "RGB" or "BGR"."""
        return self.description.input_format

    @property
    def resize(self) -> T.AugmentationList:
        """What images are resized by before they come here. Raises ValueError if the file does not say it."""
        resize = self.description.resize
        if resize is None:
            raise ValueError(
                f"{self._path} does not say what its images are resized to, for its config had another augmentation "
                "than a resize by the shortest edge: resize them yourself and call the detector with tensors"
            )
        return T.AugmentationList([resize])

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """As a model in evaluation mode.

        Args:
            batched_inputs: dicts with ``image``, (3, H, W) of 0..255, channels in the order of ``input_format``, and
                optionally ``height`` and ``width`` of the output. Sizes may differ.

        Returns:
            a list of ``{"instances": Instances}`` with ``pred_boxes``, ``scores`` and ``pred_classes``.

        Raises ValueError for images of a size that the file cannot run on.
        """
        for x in batched_inputs:
            name = x.get("file_name", self._path)
            self.description.check_size(*x["image"].shape[-2:], path=f"{name} in {self._path}")
        found: dict[int, Instances] = {}
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        for size, indices in itertools.groupby(sorted(range(len(sizes)), key=lambda i: sizes[i]), lambda i: sizes[i]):
            for chunk in self._chunks(list(indices)):
                images = torch.stack([batched_inputs[i]["image"] for i in chunk])
                found |= zip(chunk, self._detect(images, size))
        return in_output_frames({"instances": [found[i] for i in range(len(batched_inputs))]}, batched_inputs)

    def _chunks(self, indices: list[int]) -> list[list[int]]:
        step = self.description.batch or len(indices)
        return [indices[start : start + step] for start in range(0, len(indices), step)]

    def _detect(self, images: Tensor, size: Size) -> list[Instances]:
        """Images (B, 3, H, W) of 0..255 to detections in their frame."""
        count = images.shape[0]
        missing = (self.description.batch or count) - count
        images = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        outputs = [output[:count] for output in self._runner(self._as_input(images))]
        postprocess = build_postprocess(self.description)
        if self.description.postprocessing == "outside":
            logits, boxes = outputs
            return postprocess(RawPredictions(logits[None], boxes[None]), [size] * count)
        ranked = [
            Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
            for boxes, scores, classes in zip(*outputs, strict=True)
        ]
        return ranked if self.description.nms_outside is None else [postprocess.suppress(found) for found in ranked]

    def _as_input(self, images: Tensor) -> Tensor:
        images = images.cpu()
        if self.description.preprocessing == "inside":
            return images.to(getattr(torch, self.description.input_dtype))
        mean, std = (torch.tensor(x)[:, None, None] for x in (self.description.pixel_mean, self.description.pixel_std))
        return (images - mean) / std


class OnnxDetector(ExportedDetector):
    """An ONNX file that ``dinox export`` wrote, in onnxruntime.

    device: "cpu", or "cuda" with onnxruntime-gpu. Raises ValueError for other files and devices, and MissingExtra (a
    ValueError) without onnxruntime.
    """

    def __init__(self, path: str | os.PathLike, *, device: str = "cpu"):
        super().__init__(OnnxRunner(path, device=device), os.fspath(path))


class ProgramDetector(ExportedDetector):
    """A torch.export program (``.pt2``) that ``dinox export`` wrote, in torch on the CPU.

    torch unpickles what such a file holds, which can run code: load only files that you trust. ONNX files run nothing.
    """

    def __init__(self, path: str | os.PathLike, *, device: str = "cpu"):
        super().__init__(ProgramRunner(path, device=device), os.fspath(path))
