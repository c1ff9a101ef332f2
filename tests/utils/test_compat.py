"""Which detectron2 this is, and what is said of one that cannot be used. Stand-ins have main's signatures."""

import importlib
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest

from dinox.utils import compat
from dinox.utils.compat import (
    api_differences,
    explain_import_error,
    late_fault,
    mentions,
    require_detectron2,
    saves_any_scheduler,
    saves_optimizer,
    skips_without_sets,
    takes,
)

FOLDER = Path("/env/detectron2")


@pytest.mark.parametrize("name", ["recompile_limit", "cache_size_limit"])
@pytest.mark.parametrize(("before", "after"), [(8, 64), (100, 100)])
def test_the_limit_of_graphs_has_another_name_in_older_torch(name, before, after):
    limits = SimpleNamespace(**{name: before})
    compat.allow_recompilations(64, limits)
    assert vars(limits) == {name: after}


@pytest.mark.parametrize(
    "error, cause, cure",
    [
        (
            AttributeError("module 'PIL.Image' has no attribute 'LINEAR'"),
            "Pillow 10 removed",
            "pip install 'pillow<10'",
        ),
        (AttributeError("module 'numpy' has no attribute 'bool'."), "numpy 1.24 removed", "pip install 'numpy<1.24'"),
        (ImportError("cannot import name '_C' from 'detectron2' (x)"), "without its compiled ext", "detectron2_v06.py"),
        (
            ImportError("detectron2/_C.so: undefined symbol: _ZN3c10"),
            "built for another torch",
            "build detectron2 again",
        ),
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "torch and torchvision are not a pair",
            "torchvision",
        ),
        (
            ModuleNotFoundError("No module named 'pkg_resources'"),
            "setuptools 82 removed",
            "pip install 'setuptools<82'",
        ),
        (ModuleNotFoundError("No module named 'fvcore'", name="fvcore.nn"), "not installed", "pip install fvcore"),
        (ValueError("surprise"), r"cannot be imported (ValueError: surprise)", "install it anew"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_detectron2_that_does_not_import_has_a_cause_and_a_cure(error, cause, cure):
    message = explain_import_error(error, FOLDER)
    assert "the detectron2 in /env/detectron2" in message and "Cure: " in message
    assert cause in message and cure in message and str(error) in message


def test_import_errors_of_the_parts_are_explained(monkeypatch):
    real = importlib.import_module

    def import_module(name):
        if name == "detectron2.data":
            raise AttributeError("module 'PIL.Image' has no attribute 'LINEAR'")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ImportError, match=r"uses names that Pillow 10 removed \(AttributeError: .*detectron2_v06\.py"):
        require_detectron2()


def test_no_detectron2_at_all_is_said_with_the_ways_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(ImportError, match=r"dinox extends detectron2, which cannot be imported here.*make setup"):
        require_detectron2()


@pytest.mark.parametrize(
    "line, cause",
    [
        ("raise AttributeError(\"module 'numpy' has no attribute 'bool'\")", "numpy 1.24 removed"),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("raise RuntimeError('surprise')", "RuntimeError: surprise"),
    ],
)
def test_the_first_import_is_explained_as_well(tmp_path, monkeypatch, line, cause):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text(line + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError) as caught:
        require_detectron2()
    assert f"the detectron2 in {tmp_path / 'detectron2'}" in str(caught.value)
    assert cause in str(caught.value) and "Cure: " in str(caught.value)


def test_a_folder_of_that_name_is_no_detectron2(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    monkeypatch.setattr(importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError("no data in it")))
    with pytest.raises(ImportError, match=r"dinox extends detectron2, which cannot be imported here"):
        require_detectron2()


def test_this_detectron2_is_fine():
    require_detectron2()


@pytest.mark.parametrize("line, fails", [("x = np.int(3)", True), ("x = np.int64(3)", False), ("x = int(3)", False)])
def test_names_that_numpy_lost_are_found_before_training(tmp_path, monkeypatch, line, fails):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "build.py").write_text(f"import numpy as np\n{line}\n")
    message = late_fault(tmp_path)
    assert (message is not None) == fails
    if fails:
        assert "would fail when data is loaded: it uses np.int" in message and "numpy<1.24" in message
    monkeypatch.setattr(numpy, "int", int, raising=False)  # a numpy that has them
    assert late_fault(tmp_path) is None


# --------------------------------------------------------------- v0.6 and main, as far as their signatures and words go


class OldTrainer:
    def __init__(self, model, data_loader, optimizer):
        pass


class OldDefaultTrainer(OldTrainer):
    pass


class MainTrainer:
    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        gather_metric_period=1,
        zero_grad_before_forward=False,
        async_write_metrics=False,
    ):
        pass


class MainDefaultTrainer(MainTrainer):
    def state_dict(self):
        return {"_trainer": None}


class OldScheduler:
    def state_dict(self):
        if isinstance(self, _LRScheduler):  # noqa: F821
            return {}


class MainScheduler:
    def state_dict(self):
        if isinstance(self, LRScheduler):  # noqa: F821
            return {}


class OldMapDataset:
    def __getitem__(self, index):
        return self._rng.sample(self._fallback_candidates, k=1)[0]


class MainMapDataset:
    def __getitem__(self, index):
        return self._rng.sample(list(self._fallback_candidates), k=1)[0]


def test_main_is_told_from_v06_by_looking():
    for probe, old, main in (
        (saves_optimizer, OldDefaultTrainer, MainDefaultTrainer),
        (saves_any_scheduler, OldScheduler, MainScheduler),
        (skips_without_sets, OldMapDataset, MainMapDataset),
        (lambda trainer: takes(trainer.__init__, "gather_metric_period"), OldTrainer, MainTrainer),
    ):
        assert probe(main) and not probe(old)


def test_sources_that_are_not_there_mention_nothing():
    assert not mentions(len, "len")


def test_every_difference_says_what_dinox_does_instead():
    found = api_differences()
    assert len({difference.topic for difference in found}) == len(found) > 5
    assert all(difference.bridge for difference in found)


def test_an_old_torch_is_not_trusted_with_weights_only(monkeypatch):
    monkeypatch.setattr(compat, "_TORCH", (2, 5))
    assert not compat.weights_only_is_safe()
    monkeypatch.setattr(compat, "_TORCH", (2, 6))
    assert compat.weights_only_is_safe()


@pytest.mark.parametrize(
    "machines, by_main", [([[0, 1], [2, 3]], True), ([[0, 2], [1, 3]], False), ([[0, 1, 2], [3]], False)]
)
def test_local_groups_are_mains_where_it_can_make_them(monkeypatch, machines, by_main):
    """main knows blocks of one size; ranks that are dealt out over machines, as by SLURM, are for us."""
    made, groups = [], []
    stand_in = SimpleNamespace(_LOCAL_PROCESS_GROUP=None, create_local_process_group=made.append)
    monkeypatch.setattr(importlib.import_module("detectron2.utils"), "comm", stand_in)
    monkeypatch.setattr(compat.dist, "new_group", lambda ranks, timeout: groups.append(ranks) or ranks)
    monkeypatch.setattr(compat.dist, "get_rank", lambda: 2)
    compat.set_local_processes(machines, timeout=timedelta(seconds=1))
    assert made == ([2] if by_main else [])
    assert groups == ([] if by_main else machines)
    own = next(ranks for ranks in machines if 2 in ranks)
    assert (None if by_main else own) == stand_in._LOCAL_PROCESS_GROUP
    del stand_in.create_local_process_group  # v0.6
    compat.set_local_processes(machines, timeout=timedelta(seconds=1))
    assert own == stand_in._LOCAL_PROCESS_GROUP
