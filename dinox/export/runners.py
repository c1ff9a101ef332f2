"""Exported files as functions of a tensor, also with the rankings that they make on the way."""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from dinox.export.description import ENTRY, INPUT, OUTPUTS, FileDescription
from dinox.export.extras import import_extra
from dinox.export.program import load_program

_RUNNING = "running an ONNX file"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Runner(Protocol):
    """description: of the file. Called with images, gives the file's outputs, on the CPU."""

    description: FileDescription

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]: ...


class OnnxRunner:
    """An ONNX file in onnxruntime, which uses as many threads as torch does.

    device: "cpu" or "cuda". rankings: also give the indices of every TopK, after the file's own outputs.

    Raises ValueError for a file that ``dinox export`` did not write, and for a device that onnxruntime does not know.
    """

    def __init__(self, path: str | os.PathLike, *, device: str = "cpu", rankings: bool = False):
        onnxruntime = import_extra("onnxruntime", purpose=_RUNNING)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        model = _with_rankings(path) if rankings else os.fspath(path)
        providers = [_provider(onnxruntime, device, path)]
        if not os.path.isfile(path):
            raise FileNotFoundError(2, "no such file", os.fspath(path))
        try:
            self.session = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # onnxruntime's own, which share no base but Exception
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{path}: onnxruntime cannot load it ({type(error).__name__}: {reason})") from error
        text = self.session.get_modelmeta().custom_metadata_map.get(ENTRY)
        if text is None:
            raise ValueError(
                f"{path}: an ONNX file, but not one that `dinox export` wrote: it does not say which classes it knows"
            )
        self.description = FileDescription.from_json(text, path=os.fspath(path))

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.session.run(None, {INPUT: images.contiguous().numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)


class ProgramRunner:
    """A torch.export program in torch; arguments as for ``OnnxRunner``, on the CPU only."""

    def __init__(self, path: str | os.PathLike, *, device: str = "cpu", rankings: bool = False):
        if device != "cpu":
            raise ValueError(f"device={device}: {path} runs on the CPU, where it was exported")
        program, self.description = load_program(path)
        module = program.module()
        self._run = _RankingInterpreter(module).run_and_rank if rankings else module

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._run(images))


class _RankingInterpreter(Interpreter):
    """Runs a program node by node, and remembers the indices of every top-k."""

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        if node.target is torch.ops.aten.topk.default:
            self.rankings.append(result[1])
        return result

    def run_and_rank(self, images: Tensor) -> tuple[Tensor, ...]:
        self.rankings: list[Tensor] = []
        return (*self.run(images), *self.rankings)


def _with_rankings(path: str | os.PathLike) -> bytes:
    """The file with the indices of every TopK as further outputs."""
    onnx = import_extra("onnx", purpose=_RUNNING)
    model = onnx.load(os.fspath(path))
    for node in model.graph.node:
        if node.op_type == "TopK":
            output = onnx.helper.make_tensor_value_info(node.output[1], onnx.TensorProto.INT64, None)
            model.graph.output.append(output)
    return model.SerializeToString()


def _provider(onnxruntime: Any, device: str, path: str | os.PathLike) -> str:
    if device not in _PROVIDERS:
        raise ValueError(f"device: expected cpu or cuda, got {device!r}")
    available = onnxruntime.get_available_providers()
    if _PROVIDERS[device] not in available:
        raise ValueError(
            f"device={device}: the installed onnxruntime has no {_PROVIDERS[device]} to run {path} with (it has "
            f"{', '.join(available)}): pip install onnxruntime-gpu in its place, or leave the setting out"
        )
    return _PROVIDERS[device]


def count_outputs(description: FileDescription) -> int:
    return len(OUTPUTS[description.postprocessing])
