"""The GPU architectures that a compiled library holds code for, read from the file. No CUDA toolkit is needed.

nvcc puts device code into "fat binaries" inside of the library: a header (magic, version, header size, size of all
that follows) and entries, each with a header of its own that names its kind and its architecture.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MAGIC = struct.pack("<I", 0xBA55ED50)
_HEADER = struct.Struct("<IHHQ")  # magic, version, header size, bytes after it
_ENTRY = struct.Struct("<HHIQIIHHI")  # kind, version, header size, bytes after it, -, -, -, -, architecture
_PTX, _MACHINE_CODE = 1, 2


@dataclass(frozen=True)
class Architectures:
    """As tenfold compute capabilities: 80 is 8.0. machine_code runs on GPUs of the same major number that are not
    older; ptx is compiled by the driver for GPUs that are not older."""

    machine_code: tuple[int, ...]
    ptx: tuple[int, ...]

    def serve(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU of this compute capability can run the library."""
        major, minor = capability
        fits = any(code // 10 == major and code % 10 <= minor for code in self.machine_code)
        return fits or any(ptx <= 10 * major + minor for ptx in self.ptx)

    def __str__(self) -> str:
        names = [f"{code // 10}.{code % 10}" for code in self.machine_code]
        return ", ".join([*names, *(f"{ptx // 10}.{ptx % 10} as PTX" for ptx in self.ptx)]) or "none"


def read_architectures(library: str | os.PathLike) -> Architectures:
    """What the shared library at this path was compiled for; empty for one without device code."""
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        entries = set(_entries(content))
    found = {kind: tuple(sorted(arch for k, arch in entries if k == kind)) for kind in (_MACHINE_CODE, _PTX)}
    return Architectures(machine_code=found[_MACHINE_CODE], ptx=found[_PTX])


def _entries(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """(kind, architecture) of every entry of every fat binary."""
    start = content.find(_MAGIC)
    while start >= 0:
        end = start + len(_MAGIC)
        if start + _HEADER.size <= len(content):
            _, version, header_size, size = _HEADER.unpack_from(content, start)
            if version == 1 and header_size == _HEADER.size and start + header_size + size <= len(content):
                end = start + header_size + size
                yield from _entries_between(content, start + header_size, end)
        start = content.find(_MAGIC, end)


def _entries_between(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start + _ENTRY.size <= end:
        kind, _, header_size, size, *_, architecture = _ENTRY.unpack_from(content, start)
        if kind not in (_PTX, _MACHINE_CODE) or header_size < _ENTRY.size:
            return  # padding, or a version of the format that is not known
        yield kind, architecture
        start += header_size + size
