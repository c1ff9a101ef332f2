"""What cannot be exported or run is said before long work, and nothing is left behind."""

import importlib.util

import onnx
import pytest
import torch

from dinox.export import (
    Case,
    ExportSettings,
    MissingExtra,
    OnnxDetector,
    ParityError,
    ProgramDetector,
    export_onnx,
    export_program,
    exporting,
    grid_sampler,
    program,
)

from .tiny import CLASS_NAMES, build_tiny

SMALL = ExportSettings(size=(64, 64), batch=1)


@pytest.fixture(scope="module")
def model():
    return build_tiny()


def shifted_sampler(value, spatial_shapes, locations, weights):
    return grid_sampler(value, spatial_shapes, locations + 0.01, weights)


def test_a_file_that_differs_from_the_model_is_not_kept_and_replaces_none(model, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.SAMPLERS, "grid", shifted_sampler)
    path = tmp_path / "tiny.pt2"
    path.write_text("old")
    with pytest.raises(ParityError, match=r"tiny\.pt2 was not kept: its outputs differ.*1 images of 64 x 64") as error:
        export_program(model, path, class_names=CLASS_NAMES, settings=SMALL, overwrite=True)
    assert error.value.comparisons[0].case == Case(1, 64, 64) and error.value.comparisons[0].worst > 1e-3
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_there_is_not_replaced_unasked(model, tmp_path):
    path = tmp_path / "tiny.onnx"
    path.write_text("old")
    with pytest.raises(ValueError, match=r"tiny\.onnx is there already.*--overwrite"):
        export_onnx(model, path, class_names=CLASS_NAMES)
    assert path.read_text() == "old"


def test_another_kind_of_model_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="expected a DetectionTransformer to export, got a Linear"):
        export_onnx(torch.nn.Linear(1, 1), tmp_path / "tiny.onnx", class_names=CLASS_NAMES)


@pytest.mark.parametrize("name, got", [("tiny.pth", "'.pth'"), ("tiny", "none")])
def test_another_ending_is_an_error(model, tmp_path, name, got):
    with pytest.raises(ValueError, match=rf"expected a name that ends in \.onnx, got the ending {got}"):
        export_onnx(model, tmp_path / name, class_names=CLASS_NAMES)


def test_a_folder_that_does_not_exist_is_an_error(model, tmp_path):
    with pytest.raises(ValueError, match=r"existing folder.*make .*nowhere first"):
        export_onnx(model, tmp_path / "nowhere" / "tiny.onnx", class_names=CLASS_NAMES)


@pytest.mark.parametrize("opset", [11, 15, 17])
def test_an_opset_that_torch_does_not_write_is_an_error(model, tmp_path, opset):
    with pytest.raises(ValueError, match=rf"expected 18 or more, got {opset}: .*GridSample \(opset 16\)"):
        export_onnx(model, tmp_path / "tiny.onnx", class_names=CLASS_NAMES, opset=opset)


def test_missing_packages_are_named_with_the_extra_that_has_them(model, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name.startswith("onnx") else find_spec(name, *args)
    )
    with pytest.raises(MissingExtra, match=r"onnx and onnxscript and onnxruntime.*pip install 'dinox\[export\]'"):
        export_onnx(model, tmp_path / "tiny.onnx", class_names=CLASS_NAMES)
    with pytest.raises(MissingExtra, match=r"needs onnxruntime.*dinox\[export\]"):
        OnnxDetector(tmp_path / "tiny.onnx")


def test_another_number_of_class_names_is_an_error(model, tmp_path):
    with pytest.raises(ValueError, match="class_names: expected 5, one for each class of the model, got 1"):
        export_onnx(model, tmp_path / "tiny.onnx", class_names=["cat"])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"preprocessing": "both"}, "preprocessing: expected 'inside' or 'outside', got 'both'"),
        ({"sampler": "grit"}, "sampler: expected 'grid' or 'gather', got 'grit'"),
        ({"input_type": "uint8"}, "set preprocessing to 'inside'"),
        ({"batch": 0}, "batch: expected a number above 0"),
        ({"size": (0, 64)}, "size: expected a height and a width above 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        ExportSettings(**settings)


# ------------------------------------------------------------------------------------------------------------- running


def foreign_onnx(path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [result])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)


def test_an_onnx_file_of_others_is_refused(tmp_path):
    foreign_onnx(tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"other\.onnx: an ONNX file, but not one that `dinox export` wrote"):
        OnnxDetector(tmp_path / "other.onnx")


@pytest.mark.parametrize("load, name", [(OnnxDetector, "broken.onnx"), (ProgramDetector, "broken.pt2")])
def test_a_broken_file_is_an_error_that_names_it(tmp_path, load, name):
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(ValueError, match=name):
        load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing"):
        load(tmp_path / f"missing.{name}")


def test_a_program_of_others_is_refused(tmp_path):
    program = torch.export.export(torch.nn.Identity(), (torch.zeros(1),))
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(ValueError, match=r"other\.pt2: a torch\.export program, but not one"):
        ProgramDetector(tmp_path / "other.pt2")


def test_a_device_that_onnxruntime_does_not_have_is_an_error(tmp_path):
    foreign_onnx(tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="device=cuda: the installed onnxruntime has no CUDAExecutionProvider"):
        OnnxDetector(tmp_path / "other.onnx", device="cuda")
    with pytest.raises(ValueError, match="device: expected cpu or cuda, got 'tpu'"):
        OnnxDetector(tmp_path / "other.onnx", device="tpu")


def test_a_torch_that_cannot_leave_sizes_free_is_an_error_with_two_cures(model, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "takes", lambda function, argument: False)
    with pytest.raises(ValueError, match=r"--size H W --batch N\), or install torch 2\.9"):
        export_program(model, tmp_path / "tiny.pt2", class_names=CLASS_NAMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "case, message", [(Case(1, 64, 96), "64 x 64 pixels, to which it is fixed"), (Case(2, 64, 64), "1 at once")]
)
def test_images_to_compare_on_that_the_file_does_not_take_are_an_error_at_once(model, tmp_path, case, message):
    with pytest.raises(ValueError, match=f"images to compare on: expected .*{message}"):
        export_program(model, tmp_path / "tiny.pt2", class_names=CLASS_NAMES, settings=SMALL, cases=[case])
    assert list(tmp_path.iterdir()) == []
