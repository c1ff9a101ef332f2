"""Run-length encodings of masks, looked at before pycocotools decodes them.

It leaves pixels that no run covers as they were in memory, and says of few faults which they are.
"""

from typing import Any

import numpy as np

from dinox.utils.ranges import is_number

_FIRST, _LAST = 48, 48 + 63  # the characters of a compressed encoding, "0" to "o", have 6 bits each
_PAYLOAD_BITS, _MORE, _SIGN = 5, 0x20, 0x10
_LONGEST = 6  # characters of one number: 30 bits are enough for any image


def run_length_fault(encoded: dict) -> str | None:
    """What is wrong with ``{"size": [height, width], "counts": ...}``, or None.

    ``counts``: the lengths of runs of 0 and 1 by turns, column by column, as a list or as pycocotools compresses them.
    """
    size, counts = encoded.get("size"), encoded.get("counts")
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(is_number(side) and side >= 1 for side in size):
        return f"'size': expected the height and width of the image, got {size!r}"
    try:
        runs = _decompressed(counts) if isinstance(counts, (str, bytes)) else _listed(counts)
    except ValueError as error:
        return f"'counts': {error}"
    if len(runs) and runs.min() < 0:
        return f"'counts': expected lengths of runs, 0 or more, got {int(runs.min())}"
    pixels = size[0] * size[1]
    if runs.sum() != pixels:
        return f"'counts': the runs add up to {int(runs.sum())} pixels, expected {size[0]} x {size[1]} = {pixels}"
    return None


def _listed(counts: Any) -> np.ndarray:
    """(R,) of a list of numbers. Raises ValueError."""
    if not isinstance(counts, (list, tuple, np.ndarray)):
        raise ValueError(f"expected run lengths, as text or as a list, got {counts!r}")
    if len(counts) == 0:
        return np.zeros(0, dtype=np.int64)
    try:
        runs = np.asarray(counts)
    except ValueError:  # lists of different lengths
        runs = np.asarray(None)
    if runs.ndim != 1 or runs.dtype.kind not in "iu":
        raise ValueError("expected a list of whole numbers")
    return runs


def _decompressed(counts: str | bytes) -> np.ndarray:
    """(R,) int64 of pycocotools' text. Raises ValueError.

    Every number is cut into pieces of 5 bits, the least ones first; the sixth bit says that another piece follows. From
    the fourth run on, numbers are differences from the run before the last one.
    """
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
    if len(codes) == 0:
        return codes
    if codes.min() < _FIRST or codes.max() > _LAST:
        wrong = int(codes[(codes < _FIRST) | (codes > _LAST)][0])
        raise ValueError(f"{chr(wrong)!r} is no character of a compressed encoding")
    codes -= _FIRST
    ends = np.flatnonzero((codes & _MORE) == 0)
    if len(ends) == 0 or ends[-1] != len(codes) - 1:
        raise ValueError("the compressed encoding is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        raise ValueError("a number of the compressed encoding is too long")
    shifts = _PAYLOAD_BITS * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & (_MORE - 1)) << shifts, starts)
    numbers -= np.where(codes[ends] & _SIGN, np.int64(1) << (_PAYLOAD_BITS * lengths), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
