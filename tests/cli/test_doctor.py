import json

import pytest

from dinox.analysis.environment import EnvironmentReport, Problem, Section
from dinox.cli import doctor


def test_it_says_what_is_there(dinox, tmp_path):
    code, out, err = dinox("doctor", "--json", tmp_path / "doctor.json")
    assert (code, err) in ((0, ""), (1, ""))
    for expected in ("torch", "detectron2", "on the CPU", "coco_2017_train", "DinoxTrainer saves it itself", "free"):
        assert expected in out
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert written["command"] == "doctor" and written["ok"] == (code == 0)
    assert written["sections"]["software"]["torch"].startswith("2.")
    assert (code == 0) == ("Nothing needs attention" in out)


@pytest.fixture
def found(monkeypatch):
    """Sets what the doctor finds."""

    def set_report(*problems):
        report = EnvironmentReport([Section("things", [("a thing", "there"), ("", "and more of it")], list(problems))])
        monkeypatch.setattr(doctor, "examine_environment", lambda: report)

    return set_report


def test_problems_come_last_with_their_cures_and_code_1(dinox, found):
    found(Problem("it is broken", "mend it"), Problem("it is old", "renew it"))
    code, out, _ = dinox("doctor")
    assert code == 1
    assert out.endswith("2 problems\n  1. it is broken\n     cure: mend it\n  2. it is old\n     cure: renew it\n")


def test_columns_are_aligned_and_without_colours(dinox, found):
    found()
    code, out, _ = dinox("doctor")
    assert code == 0 and "\x1b" not in out
    there, more = out.splitlines()[1:3]
    assert there.index("there") == more.index("and more")


def test_a_value_of_several_lines_is_a_list_in_json(dinox, found, tmp_path):
    found()
    dinox("doctor", "--json", tmp_path / "doctor.json")
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert written["sections"] == {"things": {"a thing": ["there", "and more of it"]}}
