"""The comparison finds what differs, and forgives nothing but the order of scores that are as good as equal."""

import copy
import dataclasses
import json

import pytest
import torch

from dinox.export import ExportedDetector, ExportSettings, FileDescription, TensorDetector
from dinox.export.exporting import describe
from dinox.export.parity import TOLERANCE, Case, compare, default_cases, varied_images
from dinox.export.postprocess import ranking_part
from dinox.export.runners import count_outputs
from dinox.export.wrapper import Rankings, count_moved, rank_by_rank
from dinox.modeling import BestClassDetections, ClassNMS, ClassSoftNMS

from .tiny import CLASS_NAMES, ONE_LEVEL, RESIZE, assert_same_detections, build_tiny, make_images

CASE = Case(2, 64, 96)


@pytest.fixture(scope="module")
def model():
    return build_tiny()


class FakeFile:
    """A runtime that computes as torch does, after ``change`` of the rankings and of the outputs."""

    def __init__(self, model, *, place="outside", change_rankings=lambda r: r, change_outputs=lambda o: o):
        self.detector = TensorDetector(model, postprocessing=place)
        settings = ExportSettings(postprocessing=place)
        self.description = describe(model, settings, class_names=CLASS_NAMES, resize=RESIZE)
        self.change_rankings, self.change_outputs = change_rankings, change_outputs

    def __call__(self, images):
        model = self.detector.model
        memory = self.detector.encode(images)
        selection = model.query_selection
        tokens = None if selection is None else selection.token_scores(memory).topk(model.num_queries, dim=1).indices
        rankings = self.change_rankings(Rankings(tokens))
        pairs = ranked = None
        if self.detector.postprocessing == "inside":
            logits, _ = self.detector.predict(memory, rankings)
            part = ranking_part(model)
            pairs = ranked = part.best_pairs(part.scores(logits))
            if self.description.ranking == "queries":  # then these are what a file's top-k takes
                ranked = pairs // model.num_classes
        rankings = dataclasses.replace(rankings, pairs=pairs)
        outputs = self.change_outputs(self.detector.detect(memory, images, rankings))
        return (*outputs, *(ranking for ranking in (rankings.tokens, ranked) if ranking is not None))


class WithoutRankings(FakeFile):
    """As files are run when nothing is compared."""

    @torch.no_grad()
    def __call__(self, images):
        return super().__call__(images)[: count_outputs(self.description)]


def compared(model, **changes):
    file = FakeFile(model, **changes)
    return compare(file.detector, file, CASE, varied_images(CASE, seed=0))


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_the_same_computation_has_no_difference(model, place):
    assert compared(model, place=place).worst == 0


@pytest.mark.parametrize("place, index", [("outside", 0), ("outside", 1), ("inside", 0), ("inside", 1)])
def test_one_number_that_differs_is_found(model, place, index):
    def change(outputs):
        outputs[index].flatten()[7] += 0.01 if place == "outside" or index == 1 else 1.0  # pixels
        return outputs

    assert compared(model, place=place, change_outputs=change).worst > TOLERANCE


def test_another_class_is_found(model):
    result = compared(model, place="inside", change_outputs=lambda o: (o[0], o[1], (o[2] + 1) % 5))
    assert result.worst == float("inf")


def test_nan_is_found(model):
    assert compared(model, change_outputs=lambda o: (o[0] * float("nan"), o[1])).worst == float("inf")


def test_another_number_of_queries_is_found(model):
    assert compared(model, change_outputs=lambda o: (o[0][:, :-1], o[1])).worst == float("inf")


def test_a_proposal_of_another_score_at_a_rank_is_found(model):
    """The best and the worst proposal change places; the outputs agree on that."""
    result = compared(model, change_rankings=lambda r: Rankings(r.tokens.flip(1)))
    assert result.logits == result.boxes == 0
    assert result.ranking > TOLERANCE and result.worst == result.ranking


def test_proposals_of_equal_scores_may_change_places(model):
    """Rejected tokens share one score; images with few tokens select many of them."""
    tied = build_tiny("model.num_queries=25")
    for parameter in tied.query_selection.class_head.parameters():
        parameter.data.zero_()  # every token has the same score
    result = compared(tied, change_rankings=lambda r: Rankings(r.tokens.flip(1)))
    assert result.moved > 0 and result.worst == 0


# ------------------------------------------------------------------------------------------------ one class for a query


@pytest.fixture(scope="module")
def detr():
    return build_tiny(ONE_LEVEL, config=DETR)


DETR = "detr/detr_r50_300ep"


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_the_same_computation_of_detr_has_no_difference(detr, place):
    assert compared(detr, place=place).worst == 0


@pytest.mark.parametrize("shift", [1, 5, -100])
def test_another_class_of_detr_is_found_in_range_or_not(detr, shift):
    result = compared(detr, place="inside", change_outputs=lambda o: (o[0], o[1], o[2] + shift))
    assert result.worst > TOLERANCE


def test_detr_ranks_queries_and_classes_of_each():
    postprocess = BestClassDetections(num_detections=2)
    scores = torch.tensor([[[0.1, 0.7], [0.2, 0.1], [0.5, 0.4]]])  # three queries of two classes
    (best, queries), (classes, chosen) = postprocess.choices(scores, postprocess.best_pairs(scores))
    assert torch.equal(best, torch.tensor([[0.7, 0.2, 0.5]])) and queries.tolist() == [[0, 2]]
    assert torch.equal(classes, torch.tensor([[0.1, 0.7], [0.5, 0.4]])) and chosen.tolist() == [[1], [0]]


def test_a_post_processing_of_ones_own_cannot_be_exported():
    other = build_tiny(ONE_LEVEL, config=DETR)
    other.postprocess = torch.nn.Identity()
    with pytest.raises(ValueError, match="expected TopKDetections or BestClassDetections, got Identity"):
        describe(other, ExportSettings(), class_names=CLASS_NAMES, resize=RESIZE)


def test_what_a_file_ranks_is_said_in_it_and_was_pairs_before(model, detr):
    described, of_detr = (
        describe(each, ExportSettings(), class_names=CLASS_NAMES, resize=RESIZE) for each in (model, detr)
    )
    assert (described.ranking, of_detr.ranking) == ("pairs", "queries")
    assert FileDescription.from_json(of_detr.to_json(), path="") == of_detr
    old = json.loads(described.to_json())
    del old["ranking"]
    assert FileDescription.from_json(json.dumps(old), path="") == described
    with pytest.raises(ValueError, match=r"new\.onnx: .*its ranking is 'votes'.*another version of dinox"):
        FileDescription.from_json(json.dumps(old | {"ranking": "votes"}), path="new.onnx")


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_a_file_of_detr_gives_the_detections_of_the_model(detr, place):
    inputs = make_images((64, 96), (97, 51))
    file = ExportedDetector(WithoutRankings(detr, place=place), "detr.onnx")
    assert_same_detections(file(inputs), detr(inputs))


@pytest.mark.parametrize("place", ["outside", "inside"])
@pytest.mark.parametrize(
    ("part", "settings", "said"),
    [
        (ClassNMS, {}, {"method": "nms"}),
        (ClassSoftNMS, {"num_detections": 20, "min_score": 0.01}, {"method": "linear soft-nms", "num_detections": 20}),
    ],
)
def test_nms_is_not_in_a_file_which_says_so_and_is_run_by_the_detector(detr, place, part, settings, said):
    """It leaves another number of detections of every image, which no tensor could hold."""
    model = copy.copy(detr)
    model.postprocess = part(ranking=detr.postprocess, iou_threshold=0.5, **settings)
    inputs = make_images((64, 96), (97, 51))
    runner = WithoutRankings(model, place=place)
    assert vars(runner.description.nms_outside).items() >= (said | {"iou_threshold": 0.5}).items()
    assert runner.description.num_detections == 30  # of the ranking
    assert FileDescription.from_json(runner.description.to_json(), path="") == runner.description
    found, expected = ExportedDetector(runner, "nms.onnx")(inputs), model(inputs)
    assert_same_detections(found, expected)
    assert all(len(one["instances"]) < len(other["instances"]) for one, other in zip(found, detr(inputs), strict=True))
    assert compared(model, place=place).worst < TOLERANCE


def test_files_from_before_nms_are_without_it():
    described = describe(build_tiny(ONE_LEVEL), ExportSettings(), class_names=CLASS_NAMES, resize=RESIZE)
    old = json.loads(described.to_json())
    assert old.pop("nms_outside") is None
    assert FileDescription.from_json(json.dumps(old), path="") == described
    unknown = json.dumps(old | {"nms_outside": {"method": "votes", "iou_threshold": 0.5}})
    with pytest.raises(ValueError, match=r"new\.onnx: .*its NMS is 'votes'.*another version of dinox"):
        FileDescription.from_json(unknown, path="new.onnx")


def test_nms_of_something_that_files_do_not_know_cannot_be_exported(detr):
    own = copy.copy(detr)
    own.postprocess = ClassNMS(ranking=torch.nn.Identity())
    with pytest.raises(ValueError, match="expected TopKDetections or BestClassDetections, got Identity"):
        describe(own, ExportSettings(), class_names=CLASS_NAMES, resize=RESIZE)


# -------------------------------------------------------------------------------------------------------------- ranks


def test_rank_by_rank():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.5001, 0.0]])

    def distance(*ranking):
        return rank_by_rank(scores, torch.tensor([ranking]))

    assert distance(1, 3, 2) == 0
    assert distance(1, 2, 3) == pytest.approx(1e-4, rel=1e-2)
    assert distance(1, 3, 0) == pytest.approx(0.4)
    assert distance(3, 1, 2) == pytest.approx(0.3999)
    assert distance(1, 3, 3) == float("inf")
    assert count_moved(scores, torch.tensor([[1, 2, 3]])) == 2


def test_images_to_compare_on_vary_and_come_again():
    images = varied_images(Case(3, 40, 50), seed=1)
    assert images.shape == (3, 3, 40, 50) and images.min() >= 0 and images.max() <= 255
    assert images.std() > 40
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images, varied_images(Case(3, 40, 50), seed=1))


def test_sizes_to_compare_on_are_those_that_the_file_takes(model):
    describe_with = lambda **settings: describe(  # noqa: E731
        model, ExportSettings(**settings), class_names=CLASS_NAMES, resize=RESIZE
    )
    cases = default_cases(describe_with())
    assert {case.batch for case in cases} == {1, 4} and len({(case.height, case.width) for case in cases}) == 3
    for case in cases:
        describe_with().check_size(case.height, case.width, path="")
    assert default_cases(describe_with(size=(64, 96), batch=3)) == [Case(3, 64, 96)]
