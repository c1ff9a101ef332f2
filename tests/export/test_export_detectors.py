"""Detectors other than DINO as ONNX files, one for each kind of decoder, attention and selection.

Of a fixed size, which is faster to trace, but for one.
"""

import onnx
import pytest

from dinox.export import ExportSettings, OnnxDetector, export_onnx

from .tiny import CLASS_NAMES, ONE_LEVEL, RESIZE, assert_same_detections, build_tiny, make_images

pytestmark = pytest.mark.slow  # about 8 seconds for each file

ROUNDING = 1e-4
"""Of two runtimes in float32: the largest differences seen here are 5e-5, where proposals are at the image's border."""


@pytest.mark.parametrize(
    ("config", "levels", "postprocessing"),
    [
        ("detr/detr_r50_300ep", [ONE_LEVEL], "outside"),
        ("conditional_detr/conditional_detr_r50_50ep", [ONE_LEVEL], "inside"),
        ("dn_detr/dn_deformable_encoder_detr_r50_50ep", [], "outside"),
        ("deformable_detr/deformable_detr_r50_50ep", [], "outside"),
        ("deformable_detr/deformable_detr_r50_two_stage_50ep", [], "inside"),
        ("dino/dino_swin_large_4scale_12ep", [], "inside"),
    ],
    ids=[
        "dense, a class for a query",
        "conditional, points",
        "conditional, boxes, several levels",
        "deformable, points",
        "deformable, class-agnostic selection",
        "windows of a backbone",
    ],
)
def test_files_detect_what_the_model_detects(tmp_path, config, levels, postprocessing):
    model = build_tiny(*levels, config=config)
    settings = ExportSettings(size=(64, 96), batch=2, postprocessing=postprocessing)
    report = export_onnx(model, tmp_path / "tiny.onnx", class_names=CLASS_NAMES, settings=settings)
    assert max(row.worst for row in report.comparisons) < ROUNDING
    inputs = make_images((64, 96), (64, 96), (64, 96))
    assert_same_detections(OnnxDetector(report.path)(inputs), model(inputs))
    file = onnx.load(report.path)
    assert {node.domain for node in file.graph.node} == {""}
    assert "CastLike" not in {node.op_type for node in file.graph.node}  # onnxruntime warns about those it cannot fold
    assert not [each.name for each in file.graph.initializer if "denoising" in each.name]


def test_a_file_of_anchor_detr_takes_images_of_any_sizes(tmp_path):
    """Its attention goes along the longer axis first, which has to be the same whatever is longer."""
    model = build_tiny(ONE_LEVEL, config="anchor_detr/anchor_detr_r50_50ep")
    settings = ExportSettings(postprocessing="inside")
    report = export_onnx(model, tmp_path / "tiny.onnx", class_names=CLASS_NAMES, resize=RESIZE, settings=settings)
    assert len(report.comparisons) == 6 and max(row.worst for row in report.comparisons) < ROUNDING
    inputs = make_images((64, 96), (97, 51), (64, 96), (33, 120))
    assert_same_detections(OnnxDetector(report.path)(inputs), model(inputs))
