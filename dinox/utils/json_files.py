"""JSON files that are there whole or not at all."""

import json
import math
import os
from typing import Any

from dinox.utils.whole_files import written_whole


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Write ``data`` to a temporary file beside ``path`` and rename it. NaN and infinity, which JSON lacks, become
    null."""
    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(_without_nan(data), file, indent=2, allow_nan=False)
        file.write("\n")


def _without_nan(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_nan(value) for value in data]
    return data
