import pytest
import torch

from dinox.export import ExportSettings, ProgramDetector, export_program

from .tiny import CLASS_NAMES, RESIZE, assert_same_detections, build_tiny, make_images

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return build_tiny()


@pytest.fixture(scope="module")
def report(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "tiny.pt2"
    settings = ExportSettings(preprocessing="inside", postprocessing="inside")
    return export_program(model, path, class_names=CLASS_NAMES, resize=RESIZE, settings=settings)


def test_the_program_computes_what_the_model_computes(report):
    assert len(report.comparisons) == 6 and max(row.worst for row in report.comparisons) < 1e-3


def test_a_detector_from_the_program_detects_what_the_model_detects_in_images_of_any_sizes(model, report):
    detector = ProgramDetector(report.path)
    assert detector.class_names == CLASS_NAMES and detector.resize is not None
    inputs = make_images((64, 96), (97, 51), (64, 96), (33, 120))
    assert_same_detections(detector(inputs), model(inputs))


def test_the_program_runs_without_dinox_and_holds_nothing_of_training(report):
    program = torch.export.load(report.path)
    boxes, scores, classes = program.module()(torch.zeros(3, 3, 50, 70, dtype=torch.uint8))
    assert boxes.shape == (3, 30, 4) and scores.shape == classes.shape == (3, 30)
    assert not [str(node.target) for node in program.graph.nodes if "dinox" in str(node.target)]
    assert not [name for name in program.state_dict if "denoising" in name]
