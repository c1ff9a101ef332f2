"""Where a key of a .py config is written."""

import pytest

from dinox.config.lines import find_line

CONFIG = """\
from .parts import model, train

model.width = 3
model.neck.update(depth=4)
head = L(Head)(
    layers=dict(count=2),
    names={"first": 1},
)
train["period"] = 5
other = dict(width=1)
"""

PARTS = """\
model = L(Model)(
    height=2,
    neck=L(Neck)(depth=1),
)
train = dict(lonely=1)
a = dict(common=1)
b = dict(common=2)
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "parts.py").write_text(PARTS)
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    return file


@pytest.mark.parametrize(
    "key, place",
    [
        ("model.width", "config.py:3"),
        ("other.width", "config.py:10"),
        ("model.neck.depth", "config.py:4"),  # before the file that it imports
        ("head.layers.count", "config.py:6"),
        ("head.names.first", "config.py:7"),
        ("train.period", "config.py:9"),
        ("model.height", "parts.py:2"),
        ("elsewhere.lonely", "parts.py:5"),  # there is one such line only
        ("head._target_", "config.py:5"),  # the nearest key above
    ],
)
def test_the_line_of_a_key(config, key, place):
    assert find_line(config, key) == str(config.with_name(place))


@pytest.mark.parametrize("key", ["nowhere", "elsewhere.common"])
def test_nothing_is_guessed(config, key):
    assert find_line(config, key) is None


def test_files_that_are_no_python_have_no_lines(tmp_path):
    (tmp_path / "broken.py").write_text("a = = 1\n")
    assert find_line(tmp_path / "broken.py", "a") is None
