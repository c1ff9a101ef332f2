"""One file for any size, written once; its variants are fixed to one size, which is faster to trace."""

import os

import onnx
import pytest
import torch

from dinox.export import Case, ExportSettings, OnnxDetector, export_onnx

from .tiny import CLASS_NAMES, RESIZE, assert_same_detections, build_tiny, make_images

pytestmark = pytest.mark.slow  # half a minute for the file of any size


@pytest.fixture(scope="module")
def model():
    return build_tiny()


@pytest.fixture(scope="module")
def report(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "tiny.onnx"
    return export_onnx(model, path, class_names=CLASS_NAMES, resize=RESIZE)


def test_the_file_computes_what_the_model_computes_on_several_sizes_and_batches(report):
    sizes = {(row.case.height, row.case.width) for row in report.comparisons}
    assert len(sizes) == 3 and {row.case.batch for row in report.comparisons} == {1, 4}
    assert max(row.worst for row in report.comparisons) < 1e-3
    assert report.bytes == os.path.getsize(report.path)


def test_exporting_leaves_the_model_as_it_was(model, report):
    untouched = build_tiny()
    assert model.criterion is not None and "denoising" in model.query_groups
    for (name, tensor), (other_name, other) in zip(
        model.state_dict(keep_vars=True).items(), untouched.state_dict(keep_vars=True).items(), strict=True
    ):
        assert name == other_name and torch.equal(tensor, other) and tensor.requires_grad == other.requires_grad, name


def test_the_file_needs_no_operators_but_those_of_onnx(report):
    file = onnx.load(report.path)
    assert {node.domain for node in file.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", 18)]
    assert "GridSample" in {node.op_type for node in file.graph.node}


def test_batch_height_and_width_are_free_and_named(report):
    (images,) = onnx.load(report.path).graph.input
    dimensions = images.type.tensor_type.shape.dim
    assert [each.dim_param or each.dim_value for each in dimensions] == ["batch", 3, "height", "width"]


def test_the_file_holds_nothing_of_training_and_nothing_of_the_machine(report):
    file = onnx.load(report.path)
    assert not [each.name for each in file.graph.initializer if "denoising" in each.name]
    assert os.getcwd().encode() not in file.SerializeToString()


def test_a_detector_from_the_file_detects_what_the_model_detects_in_images_of_any_sizes(model, report):
    detector = OnnxDetector(report.path)
    inputs = make_images((64, 96), (97, 51), (64, 96), (33, 120))
    assert_same_detections(detector(inputs), model(inputs))


def test_the_file_says_what_it_takes_to_run_it(report):
    detector = OnnxDetector(report.path)
    assert detector.class_names == CLASS_NAMES
    assert detector.input_format == "RGB"
    (resize,) = detector.resize.augs
    assert (resize.short_edge_length, resize.max_size) == ((64,), 96)


@pytest.mark.parametrize("size, message", [((16, 200), "more than 16 pixels"), ((24, 24), "larger images.*20, not 13")])
def test_images_that_are_too_small_are_an_error_that_names_the_image(report, size, message):
    with pytest.raises(
        ValueError, match=rf"small\.png in .*tiny\.onnx: expected .*{message}.*got {size[1]} x {size[0]}"
    ):
        OnnxDetector(report.path)([{**make_images(size)[0], "file_name": "small.png"}])


# --------------------------------------------------------------------------------------------------------- fixed sizes


@pytest.mark.parametrize(
    "config, overrides, settings",
    [
        (
            "dino/dino_r50_4scale_12ep",
            ["model.input_format=BGR"],
            {"preprocessing": "inside", "postprocessing": "inside"},
        ),
        ("dino/ablation_static_queries", [], {"sampler": "gather", "preprocessing": "inside", "input_type": "float32"}),
        ("dino/ablation_pure_selection", [], {"postprocessing": "inside"}),
    ],
    ids=["BGR, all inside", "static queries, gather, float images", "pure selection, boxes inside"],
)
def test_variants_detect_what_the_model_detects(tmp_path, config, overrides, settings):
    model = build_tiny(*overrides, config=config)
    report = export_onnx(
        model,
        tmp_path / "tiny.onnx",
        class_names=CLASS_NAMES,
        settings=ExportSettings(size=(64, 96), batch=2, **settings),
        opset=20,
    )
    assert [row.case for row in report.comparisons] == [Case(2, 64, 96)]
    detector = OnnxDetector(report.path)
    inputs = make_images((64, 96), (64, 96), (64, 96))  # two batches, the second not full
    given = [x if detector.input_format == model.input_format else {**x, "image": x["image"].flip(0)} for x in inputs]
    assert_same_detections(detector(given), model(inputs))
    with pytest.raises(ValueError, match="fixed, got 64 x 64"):
        detector(make_images((64, 64)))
    with_gather = settings.get("sampler") == "gather"
    operators = {node.op_type for node in onnx.load(report.path).graph.node}
    assert ("GridSample" in operators) != with_gather
