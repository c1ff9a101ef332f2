"""The textual fixes that make detectron2 v0.6 run on today's Python, numpy and Pillow, without its C++ part."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class FixFailed(Exception):
    """A fix does not fit its file; the message says which one."""


@dataclass(frozen=True)
class Fix:
    """One textual repair of one file of the unpacked sdist. `pattern` must match exactly `count` times."""

    path: str
    pattern: str
    replacement: str
    count: int
    why: str

    def apply(self, text: str) -> str:
        fixed, found = re.subn(self.pattern, self.replacement, text)
        if found != self.count:
            raise FixFailed(
                f"detectron2 fix failed: {self.path}: {self.why}: expected {self.count} match(es) of {self.pattern!r}, "
                f"got {found}. The sources are not those of v0.6, or the fix was edited."
            )
        return fixed


def _literal(path: str, old: str, new: str, why: str, count: int = 1) -> Fix:
    return Fix(path, re.escape(old), new.replace("\\", r"\\"), count, why)


def _builtin_types(path: str, count: int) -> Fix:
    pattern = r"\bnp\.(int|float|bool|str|object)\b"
    return Fix(path, pattern, r"\1", count, "numpy 1.24 removed its aliases of the builtin types")


_GUARDED_EXTENSION = """
try:
    from detectron2 import _C
except ImportError:  # built without the C++ extension
    _C = None
"""


def _optional_extension(path: str) -> Fix:
    return _literal(path, "\nfrom detectron2 import _C\n", _GUARDED_EXTENSION, "this build has no C++ extension")


_FALLBACK_COCOEVAL = """
try:
    from detectron2.evaluation.fast_eval_api import COCOeval_opt
except ImportError:  # built without the C++ extension: the official implementation gives the same numbers
    COCOeval_opt = COCOeval
"""

FIXES: tuple[Fix, ...] = (
    _literal("data/transforms/transform.py", "Image.LINEAR", "Image.BILINEAR", "Pillow 10 removed the old name"),
    _builtin_types("data/build.py", 2),
    _builtin_types("data/datasets/pascal_voc.py", 1),
    _builtin_types("evaluation/pascal_voc_evaluation.py", 2),
    _builtin_types("evaluation/sem_seg_evaluation.py", 7),
    _builtin_types("structures/masks.py", 3),
    _builtin_types("utils/video_visualizer.py", 1),
    _builtin_types("utils/visualizer.py", 3),
    _literal("layers/mask_ops.py", "np.array(mask, copy=False)", "np.asarray(mask)", "numpy 2 forbids to copy here"),
    _literal(
        "data/common.py",
        "sample(self._fallback_candidates, k=1)",
        "sample(sorted(self._fallback_candidates), k=1)",
        "Python 3.11 samples no sets",
    ),
    _optional_extension("layers/deform_conv.py"),
    _optional_extension("layers/roi_align_rotated.py"),
    _optional_extension("layers/rotated_boxes.py"),
    _literal(
        "evaluation/coco_evaluation.py",
        "\nfrom detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        _FALLBACK_COCOEVAL,
        "the fast COCOeval lives in the C++ extension",
    ),
    # setuptools 82 has no pkg_resources, and earlier ones print a deprecation warning on every import of it.
    _literal("model_zoo/model_zoo.py", "import pkg_resources\n", "", "pkg_resources is gone"),
    Fix(
        "model_zoo/model_zoo.py",
        r'pkg_resources\.resource_filename\(\s*"detectron2\.model_zoo", os\.path\.join\("configs", config_path\)\s*\)',
        'os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)',
        1,
        "pkg_resources is gone",
    ),
)


def apply_fixes(package: Path, fixes: Iterable[Fix] = FIXES) -> int:
    """Apply every fix below the folder `package` (the unpacked `detectron2/`); return how many there were."""
    applied = 0
    for fix in fixes:
        path = package / fix.path
        if not path.is_file():
            raise FixFailed(f"detectron2 fix failed: {fix.path}: {fix.why}: the file is not in the sdist of v0.6.")
        path.write_text(fix.apply(path.read_text(encoding="utf-8")), encoding="utf-8")
        applied += 1
    return applied
