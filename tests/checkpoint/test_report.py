"""Counts of what was loaded, for each part of the model, and how much is enough."""

import logging

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from dinox.checkpoint import CheckpointError, ModuleCount, load_weights
from dinox.checkpoint.judging import format_modules
from dinox.structures import ClassRows
from tests.small_models import DINO, build_small


class Layers(nn.Module):
    """``body`` tensors, and as many class heads beside them as one wishes."""

    training_only = False

    def __init__(self, *, body: int, heads: int, num_classes: int = 3):
        super().__init__()
        self.body = nn.ParameterList(nn.Parameter(torch.randn(2)) for _ in range(body))
        self.heads = nn.ParameterList(nn.Parameter(torch.randn(num_classes, 2)) for _ in range(heads))

    def class_rows(self):
        return {f"heads.{name}": ClassRows() for name in self.heads.state_dict()}


def save(model, path, *, without=(), class_names=None):
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in without}
    torch.save({"model": weights} | ({"dinox": {"class_names": class_names}} if class_names else {}), path)
    return str(path)


@pytest.mark.parametrize("heads", [0, 3, 90])
@pytest.mark.parametrize("class_names", [None, ["a", "b", "c", "d", "e"]])
@pytest.mark.parametrize("missing, enough", [(0, True), (2, True), (3, False)])
def test_ninety_percent_of_what_is_no_class_head_is_enough(tmp_path, heads, class_names, missing, enough):
    """18 of 20 tensors are; 17 are not. Heads of other classes count on neither side, however many there are, and
    whether or not some of their rows are taken by name."""
    saved = Layers(body=20, heads=heads, num_classes=5)
    path = save(saved, tmp_path / "a.pth", without=[f"body.{i}" for i in range(missing)], class_names=class_names)
    model, names = Layers(body=20, heads=heads), ["c", "x", "y"]
    if enough:
        report = load_weights(model, path, class_names=names)
        taken, anew = (report.by_class, report.class_heads) if class_names else (report.class_heads, report.by_class)
        assert (len(report.loaded), len(taken), len(anew)) == (20 - missing, heads, 0)
        assert report.model_tensors == 20 + heads
    else:
        with pytest.raises(CheckpointError, match=rf"17 of the model's {20 + heads} tensors loaded.* 90% of the model"):
            load_weights(model, path, class_names=names)
        assert len(load_weights(model, path, purpose="partial", class_names=names).loaded) == 17


def test_heads_of_as_many_classes_count_as_all_tensors_do(tmp_path):
    path = save(Layers(body=10, heads=10), tmp_path / "a.pth", without=["heads.0", "heads.1"])
    assert len(load_weights(Layers(body=10, heads=10), path).loaded) == 18
    path = save(Layers(body=10, heads=10), tmp_path / "a.pth", without=["heads.0", "heads.1", "heads.2"])
    with pytest.raises(CheckpointError, match="17 of the model's 20"):
        load_weights(Layers(body=10, heads=10), path)


def test_a_width_that_differs_is_no_matter_of_classes(tmp_path):
    """A norm's only dimension is its width, and "class" in its name may be that of a tower."""

    class Tower(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.class_tower = nn.Sequential(*(nn.LayerNorm(width) for _ in range(20)))
            self.class_output = nn.Linear(width, 3)

        def class_rows(self):
            return {"class_output.bias": ClassRows(), "class_output.weight": ClassRows()}

    path = save(Tower(8), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="1 of the model's 42 tensors loaded"):
        load_weights(Tower(4), path)


def frozen(names):
    """Norms of detectron2's kind and, so that it is enough, a lot else; a file with these tensors of the first norm."""
    norms = [FrozenBatchNorm2d(2) for _ in range(2)]
    model = nn.ModuleDict({"norms": nn.ModuleList(norms), "rest": Layers(body=200, heads=0)})
    weights = model.state_dict()
    return model, {name: weights[name] for name in weights if not name.startswith("norms.0.") or name[8:] in names}


@pytest.mark.parametrize(
    "names, missing",
    [
        ({"weight", "bias"}, []),  # which have the statistics folded into them
        ({"weight", "bias", "running_mean", "running_var"}, []),
        ({"running_mean"}, ["weight", "bias", "running_var"]),
        (set(), ["weight", "bias", "running_mean", "running_var"]),
    ],
)
def test_statistics_of_frozen_norms_are_there_only_with_their_weights(tmp_path, names, missing):
    """detectron2 fills them in, and says nothing."""
    model, weights = frozen(names)
    torch.save({"model": weights}, tmp_path / "a.pth")
    report = load_weights(model, str(tmp_path / "a.pth"))
    assert sorted(report.missing) == sorted(f"norms.0.{name}" for name in missing)
    assert len(report.loaded) == 208 - len(missing)


# --------------------------------------------------------------------------------------------------------- the modules


@pytest.fixture
def holes(tmp_path):
    """A file of a small DINO without query selection and with a foreign part; one of its tensors has another shape."""
    weights = build_small(DINO, "model.num_classes=3").state_dict()
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("query_selection.")}
    weights |= {"extra.layer.weight": torch.ones(3), "encoder.layers.0.gate": torch.ones(1)}
    weights["backbone.convs.0.conv.weight"] = torch.ones(7)
    torch.save({"model": weights}, tmp_path / "holes.pth")
    return str(tmp_path / "holes.pth")


def test_every_part_of_the_model_has_its_counts(holes):
    report = load_weights(build_small(DINO, "model.num_classes=3"), holes)
    counts = {count.module: count for count in report.modules}
    assert counts["query_selection.class_head"] == ModuleCount("query_selection.class_head", model=2, missing=2)
    assert counts["backbone.convs"] == ModuleCount("backbone.convs", model=12, loaded=11, other_shape=1)
    assert counts["encoder.layers"] == ModuleCount("encoder.layers", model=32, loaded=32, unexpected=1)
    assert counts["query_groups.denoising"] == ModuleCount("query_groups.denoising", model=1, loaded=1)
    assert counts["extra.layer"] == ModuleCount("extra.layer", unexpected=1)
    total = ModuleCount.total("all", report.modules)
    assert (total.model, total.loaded) == (report.model_tensors, len(report.loaded))
    assert (total.missing, total.other_shape) == (len(report.missing), len(report.mismatched))
    assert total.unexpected == len(report.unexpected) == 2


def test_the_table_tells_parts_apart_where_they_fared_differently(holes, caplog):
    with caplog.at_level(logging.INFO, logger="dinox"):
        report = load_weights(build_small(DINO, "model.num_classes=3"), holes)
    table = format_modules(report)
    assert table in caplog.text
    assert table.splitlines() == [
        "module                  tensors  loaded  missing  other shape  unexpected",
        "backbone.bottom_up          100     100",
        "backbone.convs               12      11                     1",
        "backbone.extra_convs          4       4",
        "memory_builder                1       1",
        "encoder.layers               32      32                                 1",
        "query_selection              12               12",
        "query_groups.denoising        1       1",
        "query_groups.matching         1       1",
        "decoder                      72      72",
        "heads                         8       8",
        "extra                                                                   1",
        "all                         243     230       12            1           2",
    ]


def test_names_are_told_in_short(holes, caplog):
    load_weights(build_small(DINO, "model.num_classes=3"), holes)
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"Not in {holes}, initialised anew: query_selection.*" in messages
    assert f"In {holes}, but not in the model: extra.layer.weight, encoder.layers.0.gate" in messages
    (shapes,) = [message for message in messages if message.startswith("Not taken")]
    assert shapes.splitlines()[-1].split("  ") == ["backbone.convs.0.conv.weight", "(7,)", "(32, 32, 1, 1)"]


def test_long_lists_are_cut(tmp_path, caplog):
    weights = Layers(body=200, heads=0).state_dict()
    for i in range(40):  # no module whole, no number alone that differs
        weights |= {f"part{i}.x{i}": torch.ones(1)}
    torch.save({"model": weights}, tmp_path / "a.pth")
    load_weights(Layers(body=200, heads=0), str(tmp_path / "a.pth"))
    (message,) = [record.getMessage() for record in caplog.records if "but not in the model" in record.getMessage()]
    lines = message.splitlines()
    assert lines[1] == "  part0.x0" and len(lines) == 1 + 12 + 1 and lines[-1] == "  ... (28 more lines)"


def test_a_file_that_fits_has_a_short_table(tmp_path):
    report = load_weights(build_small(DINO), save(build_small(DINO, seed=1), tmp_path / "a.pth"))
    header, *rows = format_modules(report).splitlines()
    assert header.split() == ["module", "tensors", "loaded"] and len(rows) == 9


class Shared(nn.Module):
    """The second head is the first one."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(2, 3)] * 2)


def test_a_tensor_with_two_names_counts_once(tmp_path):
    report = load_weights(Shared(), save(Shared(), tmp_path / "a.pth"))
    assert report.modules == [ModuleCount("heads", model=2, loaded=2)]


# ----------------------------------------------------------------------------------------------------------- heuristics


def test_an_error_comes_with_the_table_in_the_log(tmp_path, caplog):
    torch.save({"model": {"other.weight": torch.ones(1)}}, tmp_path / "a.pth")
    with caplog.at_level(logging.INFO, logger="dinox"), pytest.raises(CheckpointError):
        load_weights(Layers(body=20, heads=0), str(tmp_path / "a.pth"))
    lines = [line.split() for line in caplog.text.splitlines()]
    assert ["body", "20", "20"] in lines and ["other", "1"] in lines
    assert ["all", "20", "0", "20", "1"] in lines


def test_names_of_a_pth_file_are_never_guessed(tmp_path):
    """detectron2 would match them by their ends where the file says so."""
    weights = {f"wrapper.{name}": tensor for name, tensor in Layers(body=20, heads=0).state_dict().items()}
    torch.save({"model": weights, "matching_heuristics": True}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="0 of the model's 20 tensors loaded"):
        load_weights(Layers(body=20, heads=0), str(tmp_path / "a.pth"))
