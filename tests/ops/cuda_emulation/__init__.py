"""The CUDA kernels, compiled for the CPU with a stand-in for CUDA's runtime, behind functions on tensors."""

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"
NUMBERS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # Number in csrc/cuda/problem.h
TENSORS = (
    *("value", "pairs", "scalars", "references", "output", "grad_output", "grad_value", "grad_pairs"),
    *("grad_scalars", "grad_references", "cells", "records", "order", "starts"),
)
SHARED_BYTES = 227 * 1024  # that a block can have on an H200


class Tensors(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in TENSORS]


def compile_library(cxx: str, folder: Path, *flags: str) -> Path:
    path = folder / "cuda_emulation.so"
    sources = [CSRC / "cuda" / "forward.cu", CSRC / "cuda" / "backward.cu", HERE / "emulation.cpp"]
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", f"-I{HERE / 'include'}", f"-I{CSRC}", *flags, "-x", "c++"]
    subprocess.run([cxx, *options, *map(str, sources), "-o", str(path)], check=True)
    return path


class Emulation:
    """Samples are given as locations and weights or, with references, as offsets and logits."""

    def __init__(self, path: Path, multiprocessors: int = 1) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.emulate.restype = ctypes.c_int64
        self.multiprocessors = multiprocessors
        self.shared_rows = 0  # that the last backward pass kept in shared memory

    def forward(
        self,
        value: Tensor,
        sizes: Sequence[tuple[int, int]],
        pairs: Tensor,
        scalars: Tensor,
        references: Tensor | None = None,
    ) -> Tensor:
        output = torch.full((value.shape[0], pairs.shape[1], value.shape[2] * value.shape[3]), torch.nan).to(value)
        self._run(0, sizes, value=value, pairs=pairs, scalars=scalars, references=references, output=output)
        return output

    def backward(
        self,
        grad_output: Tensor,
        value: Tensor,
        sizes: Sequence[tuple[int, int]],
        pairs: Tensor,
        scalars: Tensor,
        references: Tensor | None = None,
        deterministic: bool = False,
        output_mask: Sequence[bool] = (True, True, True, True),
    ) -> tuple[Tensor | None, ...]:
        """Gradients of value, pairs, scalars and, if given, references; those that output_mask has true for."""
        inputs = {"value": value, "pairs": pairs, "scalars": scalars, "references": references}
        precise = torch.float64 if value.dtype == torch.float64 else torch.float32
        grads = {"grad_output": grad_output}
        of_value, of_pairs, of_scalars, of_references = output_mask
        grads["grad_pairs"] = torch.full_like(pairs, torch.nan) if of_pairs else None
        grads["grad_scalars"] = torch.full_like(scalars, torch.nan) if of_scalars else None
        if references is not None and of_references:
            batch, queries, heads, levels, _ = scalars.shape
            shape = (batch, queries, heads, levels, references.shape[-1])
            grads["grad_references"] = torch.full(shape, torch.nan, dtype=precise)
        if deterministic and of_value:
            grad_value = torch.full_like(value, torch.nan)
            for image in range(value.shape[0]):
                one = {name: None if t is None else t[image : image + 1] for name, t in (inputs | grads).items()}
                self._ordered(sizes, one, grad_value[image], precise)
        else:
            grad_value = torch.zeros(value.shape, dtype=precise) if of_value else None
            self.shared_rows = self._run(1, sizes, **inputs, **grads, grad_value=grad_value)
        grad_value = grad_value.to(value.dtype) if of_value else None
        results = (grad_value, grads["grad_pairs"], grads["grad_scalars"])
        if references is None:
            return results
        return *results, grads["grad_references"].sum(2) if of_references else None

    def _ordered(self, sizes, tensors: dict[str, Tensor | None], grad_value: Tensor, precise: torch.dtype) -> None:
        """As ordered_backward in csrc/cuda/ms_deform_attn_kernel.cu."""
        count, heads = tensors["scalars"].numel(), tensors["value"].shape[2]
        cells = sum((height + 1) * (width + 1) for height, width in sizes)
        numbers = torch.full((count,), -1, dtype=torch.int32)
        records = torch.full((count, 3), torch.nan, dtype=precise)
        self._run(1, sizes, **tensors, cells=numbers, records=records)
        ordered, order = numbers.sort(stable=True)
        assert count == 0 or (ordered[0] >= 0 and ordered[-1] <= heads * cells)
        starts = torch.searchsorted(ordered, torch.arange(heads * cells + 1, dtype=torch.int32), out_int32=True)
        tensors = tensors | {"records": records, "order": order, "starts": starts, "grad_value": grad_value}
        self._run(2, sizes, **tensors)

    def _run(self, operation: int, sizes: Sequence[tuple[int, int]], **tensors: Tensor | None) -> int:
        value, pairs, scalars = (tensors[name] for name in ("value", "pairs", "scalars"))
        given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        assert all(tensor.is_contiguous() for tensor in given.values())
        references = tensors.get("references")
        problem = [*value.shape, scalars.shape[1], len(sizes), scalars.shape[4]]
        return self.library.emulate(
            operation,
            (ctypes.c_int64 * 7)(*problem),
            (ctypes.c_int64 * (2 * len(sizes)))(*(side for size in sizes for side in size)),
            (ctypes.c_int * 3)(*(NUMBERS[tensor.dtype] for tensor in (value, pairs, scalars))),
            0 if references is None else references.shape[-1],
            self.multiprocessors,
            ctypes.c_int64(SHARED_BYTES),
            ctypes.byref(Tensors(**{name: tensor.data_ptr() for name, tensor in given.items()})),
        )
