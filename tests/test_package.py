"""`import dinox` itself."""

import subprocess
import sys

import dinox


def test_parts_are_attributes():
    for name in dinox.__all__:
        assert hasattr(dinox, name)
    assert {"checkpoint", "data", "model_zoo", "modeling"} <= set(dinox.__all__)


def test_missing_detectron2_is_explained_with_the_cure():
    code = "import sys; sys.modules['detectron2'] = None; import dinox"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: dinox extends detectron2")
    assert "`make setup`" in last and "tools/detectron2_v06.py" in last
