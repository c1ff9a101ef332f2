"""What exported files are traced through computes what the model computes on lists of images."""

import torch

from dinox.modeling import TopKDetections
from dinox.structures import RawPredictions
from dinox.utils.numbers import fewer

from ..small_models import build_small, make_input, randomise_heads


def test_a_batch_of_equal_sizes_is_encoded_as_the_same_images_in_a_list():
    model = build_small().eval()
    images = model.preprocess_image([make_input(70, 90, 0, seed=seed) for seed in range(3)])
    with torch.no_grad():
        listed, batched = model.encode(images), model.encode_batch(torch.stack(images))
    assert batched.spatial_shapes == listed.spatial_shapes and not batched.is_padded
    for name in ("tokens", "positions", "padding_mask", "valid_ratios", "cell_centers"):
        torch.testing.assert_close(getattr(batched, name), getattr(listed, name), atol=1e-5, rtol=0)


def test_selection_proposes_the_tokens_that_it_is_given():
    model = randomise_heads(build_small()).eval()
    memory = model.encode(model.preprocess_image([make_input(70, 90, 0)]))
    selection = model.query_selection
    best = selection.token_scores(memory).topk(model.num_queries, dim=1).indices
    own, given, flipped = selection(memory), selection(memory, best), selection(memory, best.flip(1))
    assert torch.equal(given.anchors, own.anchors)
    torch.testing.assert_close(flipped.anchors, own.anchors.flip(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(flipped.features, own.features.flip(1), atol=1e-5, rtol=0)


def test_detections_are_ranked_in_batches_as_one_by_one():
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(2, 7, 3, generator=generator), torch.rand(2, 7, 4, generator=generator)
    postprocess = TopKDetections(num_detections=5)
    ranked = postprocess.rank(logits, boxes)
    for index, found in enumerate(postprocess(RawPredictions(logits[None], boxes[None]), [(10, 20)] * 2)):
        assert torch.equal(ranked.scores[index], found.scores)
        assert torch.equal(ranked.classes[index], found.pred_classes)
        assert torch.equal(ranked.boxes[index] * torch.tensor([20, 10, 20, 10]), found.pred_boxes.tensor)


def test_detections_come_from_given_pairs_of_query_and_class():
    logits, boxes = torch.zeros(1, 4, 3), torch.arange(16.0).reshape(1, 4, 4)
    ranked = TopKDetections().rank(logits, boxes, pairs=torch.tensor([[2 * 3 + 1, 0]]))
    assert ranked.classes.tolist() == [[1, 0]]
    assert ranked.boxes[0, :, 2:].sub(ranked.boxes[0, :, :2]).tolist() == [[10.0, 11.0], [2.0, 3.0]]  # queries 2 and 0


def test_fewer():
    assert fewer(3, 5) == 3 and fewer(5, 3) == 3 and fewer(4, 4) == 4
