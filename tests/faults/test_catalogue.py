"""The table that `pytest tests/faults` prints."""

from pathlib import Path

import pytest

from tests.faults.catalogue import ROWS, files_elsewhere, rows_of

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "name, rows",
    [
        ("test_row_07_other_kinds_become_rgb[L-png-100]", {7}),
        ("test_row_18_19_boxes[row_19_nan]", {19}),
        ("test_row_18_19_boxes[box0]", {18, 19}),
        ("test_row_01_to_03_a_file", {1, 2, 3}),
        ("test_row_01_02_03_training[row_02_html-0]", {2}),
        ("test_row_32_a_kill_at_50_points", {32}),
        ("test_row_10_20_000_pixels", {10, 20}),
        ("test_row_column_attention", set()),
        ("test_paths_out_of_the_image_folder", set()),
    ],
)
def test_rows_are_read_from_names(name, rows):
    assert rows_of(name) == rows


def test_there_are_forty_and_some_of_their_tests_lie_elsewhere():
    assert list(ROWS) == list(range(1, 41))
    files = files_elsewhere(ROOT / "tests", ROOT / "tests" / "faults")
    assert ROOT / "tests" / "cli" / "test_predict.py" in files
    assert ROOT / "tests" / "layers" / "test_attention.py" not in files


@pytest.fixture
def small(pytester, monkeypatch):
    """Four rows: tests/faults has the first two, tests/other the third, nothing the fourth."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # loading all others anew would take seconds
    faults, other = pytester.mkdir("tests") / "faults", pytester.path / "tests" / "other"
    faults.mkdir()
    other.mkdir()
    (faults / "conftest.py").write_text(
        "from pathlib import Path\n"
        "from tests.faults import catalogue\n"
        "ROWS = {1: 'a', 2: 'a longer one', 3: 'c', 4: 'd'}\n"
        "def pytest_configure(config):\n"
        "    folder = Path(__file__).resolve().parent\n"
        "    catalogue.register(config, folder, folder.parent, ROWS)\n"
    )
    (faults / "test_here.py").write_text(
        "import pytest\n"
        "def test_row_01(): pass\n"
        "@pytest.mark.parametrize('x', [1, 2])\n"
        "def test_row_02_more(x): pass\n"
        "def test_of_no_row(): pass\n"
    )
    (other / "test_there.py").write_text("def test_row_03(): pass\ndef test_of_no_row_there(): assert False\n")
    return pytester


def lines_of(result):
    """Of the table, without seconds."""
    lines = result.outlines[next(i for i, line in enumerate(result.outlines) if "= fault catalogue =" in line) + 2 :]
    return [line.split()[:-1] if line[2:3].isdigit() else line for line in lines[:5]]


def test_a_row_without_a_test_fails_the_run(small):
    result = small.runpytest_inprocess("tests/faults")
    result.assert_outcomes(passed=5, deselected=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert lines_of(result) == [
        ["1", "a", "passed", "1"],
        ["2", "a", "longer", "one", "passed", "2"],
        ["3", "c", "passed", "1"],
        ["4", "d", "MISSING", "0"],
        "fault catalogue: 3 of 4",
    ]


def test_all_rows_passed_is_success(small):
    (small.path / "tests" / "faults" / "test_more.py").write_text("class TestIt:\n    def test_row_04(self): pass\n")
    result = small.runpytest_inprocess("tests/faults")
    assert result.ret == pytest.ExitCode.OK
    assert lines_of(result)[-1] == "fault catalogue: 4 of 4"


@pytest.mark.parametrize("body, state", [("assert False", "FAILED"), ("pytest.skip('no GPU')", "skipped")])
def test_a_row_that_fails_or_is_skipped_does_not_count(small, body, state):
    file = small.path / "tests" / "faults" / "test_more.py"
    file.write_text(f"import pytest\ndef test_row_04(): {body}\n")
    result = small.runpytest_inprocess("tests/faults")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert lines_of(result)[-2:] == [["4", "d", state, "1"], "fault catalogue: 3 of 4"]
    # Where another test of the row passes, one that is skipped does no harm.
    file.write_text(f"{file.read_text()}def test_row_04_too(): pass\n")
    assert (small.runpytest_inprocess("tests/faults").ret == 0) == (state == "skipped")


def test_a_part_of_the_catalogue_is_judged_by_its_tests_alone(small):
    result = small.runpytest_inprocess("tests/faults", "-k", "row_02")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*= fault catalogue =*", "  2  a longer one  passed       2 *"])
    result.stdout.no_fnmatch_line("*fault catalogue: *")
