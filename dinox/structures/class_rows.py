"""Which tensors of a part have rows for classes. So that those rows can follow the names of the classes, when weights
go from a detector of some classes to one of others (``dinox.checkpoint``).

A part that has such tensors says so by a method::

    def class_rows(self) -> dict[str, RowLayout]:
        return {"class_output.weight": ClassRows(blocks=self.num_anchors)}

Names are relative to the part, of parameters or buffers; the rows are those of the first dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassRows:
    """``blocks`` times: ``per_class`` rows for each class, class by class, then ``others``.

    blocks: anchors of a cell. per_class: 4 for boxes that every class has its own of. others: background, "unknown".
    """

    blocks: int = 1
    per_class: int = 1
    others: int = 0

    def num_classes(self, rows: int) -> int | None:
        """Of a tensor with so many rows; None if they are not laid out like this."""
        in_block, rest = divmod(rows, self.blocks)
        classes, more = divmod(in_block - self.others, self.per_class)
        return classes if rest == more == 0 and classes > 0 else None

    def copy(self, theirs: Tensor, ours: Tensor, sources: Sequence[int | None]) -> Tensor:
        """``ours`` with class k's rows those of class ``sources[k]`` of ``theirs``, if that is not None, and with the
        ``others`` of ``theirs``. Both are laid out like this."""
        result = ours.clone()
        to, of = (each.unflatten(0, (self.blocks, -1)) for each in (result, theirs.to(ours)))
        for k, source in enumerate(sources):
            if source is not None:
                to[:, k * self.per_class :][:, : self.per_class] = of[:, source * self.per_class :][:, : self.per_class]
        if self.others:
            to[:, -self.others :] = of[:, -self.others :]
        return result


@dataclass(frozen=True)
class PlacedRows:
    """There is one row for each class, but it is the place that counts, whatever the class: the first is "object"."""

    def copy(self, theirs: Tensor, ours: Tensor) -> Tensor:
        """``ours`` with the rows of ``theirs``, as far as both go."""
        result, common = ours.clone(), min(len(ours), len(theirs))
        result[:common] = theirs[:common].to(ours)
        return result


RowLayout = ClassRows | PlacedRows
