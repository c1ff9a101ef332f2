"""From a torch.export program to an ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

from dinox.export.description import ENTRY, INPUT, OUTPUTS, FileDescription
from dinox.export.extras import import_extra

EXTRAS = ("onnx", "onnxscript", "onnxruntime")
PURPOSE = "exporting to ONNX"

_AXES = {0: "batch", 2: "height", 3: "width"}  # of the input


def save_onnx(program: ExportedProgram, path: str | os.PathLike, description: FileDescription, *, opset: int) -> None:
    """Translate the program and write it with its description. Raises ValueError for an opset that torch cannot write.

    By torch's exporter for torch.export programs rather than the older TorchScript one, which is deprecated and would
    trace the sizes as constants wherever Python computes with them.
    """
    with _quiet():
        translated = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS[description.postprocessing]),
            optimize=False,  # see _simplify
            verbose=False,
        )
        _simplify(translated.model)
    model = translated.model_proto
    _tidy(model, description)
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if written != opset:
        raise ValueError(
            f"opset: torch {torch.__version__} cannot write opset {opset}, only {written}: ask for another"
        )
    onnx = import_extra("onnx", purpose=PURPOSE)
    onnx.checker.check_model(model)
    with open(path, "wb") as file:
        onnx.save_model(model, file)


def _simplify(model: Any) -> None:
    """Fold what depends on constants only, and leave out what is computed twice or not used.

    The exporter's own optimisation does more, which runtimes do themselves when they load a file, takes most of the
    time of an export, and in onnxscript 0.7 leaves clamps without their limits: its files do not load.
    """
    optimizer = import_extra("onnxscript.optimizer", purpose=PURPOSE)
    passes = import_extra("onnx_ir.passes.common", purpose=PURPOSE)
    optimizer.fold_constants(model)
    passes.ShapeInferencePass()(model)  # types, too
    _skip_idle_casts(model)
    for simplification in (
        passes.RemoveUnusedNodesPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
    ):
        simplification(model)


def _skip_idle_casts(model: Any) -> None:
    """Leave out casts to the type that a value has: torch's attention has one, which onnxruntime warns about."""
    convenience = import_extra("onnx_ir.convenience", purpose=PURPOSE)
    for node in model.graph:
        if node.op_type == "CastLike":
            value, like = node.inputs
            if value.dtype is not None and value.dtype == like.dtype:
                convenience.replace_all_uses_with(node.outputs[0], value)


def _tidy(model: Any, description: FileDescription) -> None:
    """Readable names of the free axes, the description, and nothing about the machine that wrote the file."""
    graph = model.graph
    del graph.value_info[:]  # shapes of intermediate results, as long expressions; runtimes infer them
    for node in graph.node:
        del node.metadata_props[:]  # lines of source files
        node.doc_string = ""
    names = {}
    (images,) = graph.input
    for axis, name in _AXES.items():
        dimension = images.type.tensor_type.shape.dim[axis]
        if dimension.dim_param:
            names[dimension.dim_param] = name
    for value in [*graph.input, *graph.output]:
        del value.metadata_props[:]
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = names.get(dimension.dim_param, dimension.dim_param)
    del graph.metadata_props[:]
    del model.metadata_props[:]
    model.metadata_props.add(key=ENTRY, value=description.to_json())
    model.producer_name, model.producer_version = "dinox", description.version


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes on its own ways, which no user can act on."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
