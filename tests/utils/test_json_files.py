import json

import pytest

from dinox.utils.json_files import write_json


def test_what_json_lacks_becomes_null(tmp_path):
    write_json(tmp_path / "a.json", {"AP": float("nan"), "list": (1.5, float("inf"))})
    assert json.loads((tmp_path / "a.json").read_text()) == {"AP": None, "list": [1.5, None]}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
