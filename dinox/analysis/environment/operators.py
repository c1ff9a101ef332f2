"""Processors, and which implementation of the operators runs on them."""

import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from dinox.analysis.environment.cuda_binaries import Architectures, read_architectures
from dinox.ops import why_reference
from dinox.ops.library import load_extension
from dinox.utils.environment_report import Problem, Section

_ISAS = {
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"},
    "avx2": {"avx2", "fma"},
    "portable": set(),
}
"""What the CPU kernels are compiled for, best first -> what the CPU has to have; as in csrc/cpu."""

_GPU_DEVICE, _DRIVER = "/dev/nvidia0", "/proc/driver/nvidia/version"


def processors_section() -> Section:
    section = Section("processors")
    section.facts.append(
        ("CPU", f"{_cpu_name()}; cores: {_usable_cores()}, torch's threads: {torch.get_num_threads()}")
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    section.facts.append(("memory", f"{memory:.0f} GiB"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            described = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
            section.facts.append((f"GPU {index}", described))
    elif os.path.exists(_GPU_DEVICE) or os.path.exists(_DRIVER):
        section.facts.append(("GPU", "there is one, but torch cannot use it"))
        section.problems.append(_unusable_gpu(torch.version.cuda))
    else:
        section.facts.append(("GPU", "none: training and detection run on the CPU"))
    return section


def _unusable_gpu(torch_cuda: str | None) -> Problem:
    if torch_cuda is None:
        return Problem("there is a GPU, but this torch is built for the CPU only", "install a torch for CUDA")
    return Problem(
        f"there is a GPU, but this torch, built for CUDA {torch_cuda}, cannot use it",
        "compare the driver's CUDA version, which nvidia-smi shows, and CUDA_VISIBLE_DEVICES; update the driver, or "
        "install a torch for an older CUDA",
    )


def operators_section() -> Section:
    section = Section("operators (ms_deform_attn)")
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    path, _ = load_extension()
    section.facts.append(("extension", "none" if path is None else str(path)))
    reason = why_reference("cpu")
    if reason:
        section.facts.append(("on the CPU", f"the slow PyTorch reference: {reason}"))
        section.problems.append(
            Problem(f"operators on the CPU run as the slow reference: {reason}", _cure(reason, "cpu"))
        )
    else:
        section.facts.append(("on the CPU", f"compiled, with {cpu_isa()} instructions"))
    reason = why_reference("cuda")
    architectures = read_architectures(path) if path is not None and not reason else None
    if reason:
        section.facts.append(("on CUDA", f"the slow PyTorch reference: {reason}"))
        if capabilities:
            section.problems.append(
                Problem(f"operators on the GPU run as the slow reference: {reason}", _cure(reason, "cuda"))
            )
    else:
        section.facts.append(("on CUDA", f"compiled for compute capabilities {architectures}"))
        section.problems.extend(_not_served(architectures, capabilities))
    return section


def _not_served(architectures: Architectures, capabilities: Collection[tuple[int, int]]) -> list[Problem]:
    return [
        Problem(
            f"the CUDA operators are compiled for {architectures}, which a GPU of compute capability {major}.{minor} "
            "cannot run",
            f'TORCH_CUDA_ARCH_LIST="{major}.{minor}" make setup',
        )
        for major, minor in sorted(set(capabilities))
        if not architectures.serve((major, minor))
    ]


def _cure(reason: str, device: str) -> str:
    if "DINOX_DISABLE_EXTENSION" in reason:
        return "unset DINOX_DISABLE_EXTENSION"
    if "does not load" in reason:
        return "it was built for another torch or another system: run `make setup` again"
    if device == "cpu":
        return "install a C++ compiler and run `make setup`"
    return "install the CUDA toolkit (nvcc) of torch's CUDA version and run `make setup`"


def cpu_isa(environ: Mapping[str, str] = os.environ, flags: Collection[str] | None = None) -> str:
    """The instruction set that the CPU kernels use here. ``flags``: of the CPU, by default what Linux says."""
    if environ.get("DINOX_CPU_ISA"):
        return f"{environ['DINOX_CPU_ISA']} (DINOX_CPU_ISA)"
    flags = _cpu_lines("flags").split() if flags is None else flags
    return next(isa for isa, needed in _ISAS.items() if needed <= set(flags))


def _cpu_name() -> str:
    return _cpu_lines("model name") or platform.processor() or platform.machine()


def _cpu_lines(field: str) -> str:
    """The value of a field for the first CPU; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
