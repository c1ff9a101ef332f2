"""A detector into a file, and nothing into it that does not compute the same."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import detectron2.data.transforms as T
from torch import nn
from torch.export import ExportedProgram

from dinox.export.description import FileDescription
from dinox.export.extras import require_extras
from dinox.export.onnx_file import EXTRAS, PURPOSE, save_onnx
from dinox.export.parity import TOLERANCE, Case, Comparison, check_cases, compare_all, default_cases
from dinox.export.postprocess import nms_of, ranking_of, ranking_part
from dinox.export.program import save_program, trace
from dinox.export.runners import OnnxRunner, ProgramRunner
from dinox.export.settings import DEFAULT_OPSET, SAMPLERS, ExportSettings, check_opset
from dinox.export.wrapper import TensorDetector, copy_for_inference, make_exportable
from dinox.modeling import DetectionTransformer
from dinox.utils.whole_files import written_whole

Tell = Callable[[str], None]
Tabulate = Callable[[Comparison], None]


@dataclass(frozen=True)
class ExportReport:
    """path: of the file. bytes: its size. seconds: until it was written, without the comparison.

    comparisons: with the model in torch, at a tolerance of ``TOLERANCE``.
    """

    path: str
    bytes: int
    seconds: float
    description: FileDescription
    comparisons: tuple[Comparison, ...]


class ParityError(ValueError):
    """The file does not compute what the model computes; it was not kept. comparisons: how much they differ."""

    def __init__(self, message: str, comparisons: Sequence[Comparison]):
        super().__init__(message)
        self.comparisons = tuple(comparisons)


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    class_names: Sequence[str],
    resize: T.AugmentationList | None = None,
    settings: ExportSettings | None = None,
    opset: int = DEFAULT_OPSET,
    cases: Sequence[Case] | None = None,
    overwrite: bool = False,
    tell: Tell = lambda text: None,
    tabulate: Tabulate = lambda row: None,
) -> ExportReport:
    """Write a detector as ONNX, and compare it in onnxruntime with the model.

    Args:
        model: a ``DetectionTransformer``; it stays as it is.
        path: a name that ends in ``.onnx``.
        class_names: by class index.
        resize: what images are resized by before they come to the model; None: callers of the file have to know it.
        settings: what is inside of the file, and what it is fixed to.
        opset: of ONNX, 18 or more.
        cases: the images to compare on; by default ``dinox.export.parity.default_cases``.
        overwrite: replace a file that is there.
        tell, tabulate: called with what begins now, and with each comparison.

    Raises ValueError for arguments that cannot be, MissingExtra (a ValueError) without the packages it takes, and
    ParityError (a ValueError) if the file differs from the model. Whatever is raised, ``path`` stays as it was.
    """
    check_opset(opset)
    require_extras(EXTRAS, purpose=PURPOSE)
    check_target(path, endings=[".onnx"], overwrite=overwrite)
    description = describe(model, settings or ExportSettings(), class_names=class_names, resize=resize)
    work = _Export(partial(save_onnx, opset=opset), OnnxRunner, tell, tabulate)
    return work.run(model, path, description, cases)


def export_program(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    class_names: Sequence[str],
    resize: T.AugmentationList | None = None,
    settings: ExportSettings | None = None,
    cases: Sequence[Case] | None = None,
    overwrite: bool = False,
    tell: Tell = lambda text: None,
    tabulate: Tabulate = lambda row: None,
) -> ExportReport:
    """Write a detector as a torch.export program, a name that ends in ``.pt2``; otherwise as ``export_onnx``."""
    check_target(path, endings=[".pt2"], overwrite=overwrite)
    description = describe(model, settings or ExportSettings(), class_names=class_names, resize=resize)
    return _Export(save_program, ProgramRunner, tell, tabulate).run(model, path, description, cases)


@dataclass(frozen=True)
class _Export:
    """One format. save: (program, path, description). runner: a file to a function, with its rankings."""

    save: Callable[[ExportedProgram, Path, FileDescription], None]
    runner: Callable[..., OnnxRunner | ProgramRunner]
    tell: Tell
    tabulate: Tabulate

    def run(
        self,
        model: nn.Module,
        path: str | os.PathLike,
        description: FileDescription,
        cases: Sequence[Case] | None,
    ) -> ExportReport:
        places = {"preprocessing": description.preprocessing, "postprocessing": description.postprocessing}
        cases = cases or default_cases(description)
        check_cases(cases, description)
        start = time.perf_counter()
        with written_whole(path) as temporary:
            self.tell("tracing the model")
            exportable = make_exportable(model, SAMPLERS[description.sampler])
            program = trace(TensorDetector(exportable, **places), description)
            self.tell(f"writing {os.fspath(path)}")
            self.save(program, temporary, description)
            seconds = time.perf_counter() - start
            self.tell("comparing the file with the model")
            runner = self.runner(temporary, rankings=True)
            original = TensorDetector(copy_for_inference(model), **places)
            comparisons = []
            for row in compare_all(original, runner, cases):
                self.tabulate(row)
                comparisons.append(row)
            _require_parity(comparisons, path)
        return ExportReport(
            path=os.fspath(path),
            bytes=os.path.getsize(path),
            seconds=seconds,
            description=description,
            comparisons=tuple(comparisons),
        )


def describe(
    model: nn.Module,
    settings: ExportSettings,
    *,
    class_names: Sequence[str],
    resize: T.AugmentationList | None,
) -> FileDescription:
    """What the file will say about itself."""
    if not isinstance(model, DetectionTransformer):
        raise ValueError(f"expected a DetectionTransformer to export, got a {type(model).__name__}")
    if len(class_names) != model.num_classes:
        raise ValueError(
            f"class_names: expected {model.num_classes}, one for each class of the model, got {len(class_names)}"
        )
    ranking = ranking_of(model)
    inside = settings.preprocessing == "inside"
    by_edge = [each for each in (resize.augs if resize else ()) if isinstance(each, T.ResizeShortestEdge)]
    return FileDescription(
        version=_version(),
        class_names=tuple(class_names),
        input_format="RGB" if inside else model.input_format,
        input_dtype=settings.input_dtype,
        preprocessing=settings.preprocessing,
        postprocessing=settings.postprocessing,
        sampler=settings.sampler,
        pixel_mean=tuple(model.pixel_mean.flatten().tolist()),
        pixel_std=tuple(model.pixel_std.flatten().tolist()),
        short_edge=max(by_edge[0].short_edge_length) if by_edge else None,
        max_size=by_edge[0].max_size if by_edge else None,
        size=settings.size,
        batch=settings.batch,
        strides=tuple(shape.stride for shape in model.backbone.output_shape().values()),
        least_cells=0 if model.query_selection is None else model.query_selection.num_proposals,
        num_detections=ranking_part(model).num_detections,
        ranking=ranking,
        nms_outside=nms_of(model),
    )


def check_target(path: str | os.PathLike, *, endings: Sequence[str], overwrite: bool) -> None:
    """Raises ValueError for a path that cannot be written, or holds something that is not to be replaced."""
    path = Path(path)
    if path.suffix.lower() not in endings:
        got = repr(path.suffix) if path.suffix else "none"
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(endings)}, got the ending {got}")
    if path.is_dir():
        raise ValueError(f"{path}: expected a file, this is a folder")
    if not path.resolve().parent.is_dir() or not os.access(path.resolve().parent, os.W_OK):
        raise ValueError(f"{path}: expected a file in an existing folder that can be written: make {path.parent} first")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: choose another name, or set overwrite (--overwrite) to replace it")


def _require_parity(comparisons: Sequence[Comparison], path: str | os.PathLike) -> None:
    worst = max(comparisons, key=lambda row: row.worst)
    if worst.worst <= TOLERANCE:
        return
    case = worst.case
    raise ParityError(
        f"{path} was not kept: its outputs differ from the model's by {worst.worst:.2g} (allowed: {TOLERANCE:g}) on "
        f"{case.batch} images of {case.width} x {case.height}. Try another sampler (grid or gather) or opset, and "
        "please report it",
        comparisons,
    )


def _version() -> str:
    try:
        return importlib.metadata.version("dinox")
    except importlib.metadata.PackageNotFoundError:  # imported from a folder
        return "unknown"
