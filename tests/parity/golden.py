"""Recorded outputs of reference implementations ("golden numbers"): where they are, how to read and to fill weights.

The folder is looked up in the environment variable `DINOX_GOLDEN`, else at `<checkout>/../shared/golden`. Tests call
`require_golden()` (or `load_npz` / `load_json`, which do it) and so skip with a message where the folder is absent.
"""

import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

GOLDEN = Path(os.environ.get("DINOX_GOLDEN") or Path(__file__).resolve().parents[2].parent / "shared" / "golden")

_EMBEDDING_SUFFIXES = (
    "tgt_embed.weight",
    "label_enc.weight",
    "level_embeds",
    "refpoint_embed.weight",
    "anchor_box_embed.weight",
    "query_embedding.weight",
    "query_embed.weight",
    "patterns.weight",
    "label_encoder.weight",
)
_CONDITIONAL_ATTENTION_SUFFIXES = (
    "query_content_proj.weight",
    "query_pos_proj.weight",
    "query_pos_sine_proj.weight",
    "key_content_proj.weight",
    "key_pos_proj.weight",
)


def require_golden(case: str = "") -> Path:
    """The folder of one recorded case (or of all); skips the calling test where it is absent."""
    folder = GOLDEN / case
    if not folder.is_dir():
        pytest.skip(f"recorded numbers are absent: no folder {folder} (set DINOX_GOLDEN to where they are)")
    return folder


def load_npz(case: str, name: str) -> dict[str, np.ndarray]:
    """All arrays of `<GOLDEN>/<case>/<name>.npz` (the suffix may be given or left out)."""
    path = require_golden(case) / name
    with np.load(path if path.suffix == ".npz" else path.with_name(path.name + ".npz")) as arrays:
        return {key: arrays[key] for key in arrays.files}


def load_json(case: str, name: str) -> Any:
    """The content of `<GOLDEN>/<case>/<name>.json` (the suffix may be given or left out)."""
    path = require_golden(case) / name
    return json.loads((path if path.suffix == ".json" else path.with_name(path.name + ".json")).read_text())


def _standard_normal(key: str, shape: tuple[int, ...]) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode("utf-8"))))
    return generator.standard_normal(shape, dtype=np.float32)


def fill(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The float32 weights that the reference model has under `key`: FILL_RULE.md, first rule that applies."""
    shape = tuple(shape)
    r = _standard_normal(key, shape)
    fan_in = float(math.prod(shape[1:]))
    if key.endswith("running_var"):
        filled = np.abs(r) + np.float32(0.5)
    elif key.endswith("running_mean"):
        filled = np.float32(0.1) * r
    elif key.endswith(_EMBEDDING_SUFFIXES):
        filled = r
    elif len(shape) == 4:
        filled = r * np.float32(math.sqrt(2.0 / fan_in))
    elif key.endswith(_CONDITIONAL_ATTENTION_SUFFIXES):
        filled = np.float32(3.0) * r / np.float32(math.sqrt(shape[1]))
    elif len(shape) >= 2:
        filled = r / np.float32(math.sqrt(fan_in))
    elif key.endswith("sampling_offsets.bias"):
        filled = r
    elif key.endswith("weight") and shape == (1,):
        filled = np.float32(0.25) + np.float32(0.05) * r
    elif key.endswith("weight"):
        filled = np.float32(1.0) + np.float32(0.1) * r
    else:
        filled = np.float32(0.02) * r
    return torch.from_numpy(np.array(filled, dtype=np.float32))
