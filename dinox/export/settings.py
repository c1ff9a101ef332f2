"""What an exported file is to be, checked before the work begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dinox.export.description import Place
from dinox.export.samplers import Sampler, gather_sampler, grid_sampler
from dinox.structures.memory import Size

InputType = Literal["float32", "uint8"]
SAMPLERS: dict[str, Sampler] = {"grid": grid_sampler, "gather": gather_sampler}

DEFAULT_OPSET = 18
LEAST_OPSET = 18
"""GridSample exists since 16, but torch's exporter writes nothing older than 18."""


@dataclass(frozen=True)
class ExportSettings:
    """preprocessing, postprocessing: inside or outside of the file; see ``dinox.export.FileDescription``.

    input_type: of images that are pre-processed inside: "uint8", or "float32" with the same values of 0..255.
    sampler: the operators that deformable attention is made of: "grid" (GridSample, the faster one in onnxruntime) or
    "gather" (for TensorRT, which has been seen to get GridSample wrong). size (height, width), batch: what the file is
    fixed to; by default it takes any.

    Raises ValueError for anything else.
    """

    preprocessing: Place = "outside"
    postprocessing: Place = "outside"
    input_type: InputType | None = None
    sampler: str = "grid"
    size: Size | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("preprocessing", get_args(Place)),
            ("postprocessing", get_args(Place)),
            ("input_type", (None, *get_args(InputType))),
            ("sampler", tuple(SAMPLERS)),
        ):
            value = getattr(self, name)
            if value not in known:
                names = " or ".join(repr(each) for each in known if each is not None)
                raise ValueError(f"{name}: expected {names}, got {value!r}")
        if self.preprocessing == "outside" and self.input_type == "uint8":
            raise ValueError("input_type: uint8 images have to be normalised inside: set preprocessing to 'inside'")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch: expected a number above 0, got {self.batch}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size: expected a height and a width above 0, got {self.size}")

    @property
    def input_dtype(self) -> InputType:
        return self.input_type or ("uint8" if self.preprocessing == "inside" else "float32")


def check_opset(opset: int) -> None:
    if opset < LEAST_OPSET:
        raise ValueError(
            f"opset: expected {LEAST_OPSET} or more, got {opset}: deformable attention needs the operator GridSample "
            f"(opset 16), and torch's exporter writes no file below opset {LEAST_OPSET}"
        )
