"""Known-label detection (DN-DETR, section 5.7.1): queries that carry the label of the class that they are to find."""

import pytest
import torch

from dinox.modeling.queries import KnownLabelQueries, LabelEmbedding, MatchingQueries, UnknownLabelContent
from dinox.modeling.queries.matching import LearnedAnchors
from dinox.structures import ANY_CLASS, KnownClasses, QueryContext, Targets

from ..small_models import assert_trains_one_step, build_small, loss_keys, make_input, make_memory, randomise_heads

CONFIG = "dn_detr/known_labels_10ep"


@pytest.fixture(scope="module")
def model():
    return randomise_heads(build_small(CONFIG, "model.num_classes=6")).eval()


def make_group(**known):
    embedding = LabelEmbedding(num_classes=5, embed_dim=8, unknown_class=True, indicator=True)
    queries = MatchingQueries(
        content=UnknownLabelContent(), anchors=LearnedAnchors(num_queries=3), known_labels=KnownLabelQueries()
    )
    memory = make_memory(torch.zeros(2, 1, 8))
    return embedding, queries(QueryContext(memory, label_embedding=embedding, **known))


def test_every_class_has_queries_of_its_own_that_carry_its_label_with_indicator_1():
    known = KnownClasses(torch.tensor([[4, 2], [1, ANY_CLASS]]), torch.tensor([[True, True], [True, False]]))
    embedding, group = make_group(known_classes=known)
    assert group.size == 6 and group.subgroup_size == 3
    assert group.only_class.tolist() == [[4] * 3 + [2] * 3, [1] * 3 + [-1] * 3]
    assert group.padding_mask.tolist() == [[False] * 6, [False] * 3 + [True] * 3]
    assert torch.equal(group.anchors[:, :3], group.anchors[:, 3:])
    assert torch.equal(group.content[0], embedding(torch.tensor([4] * 3 + [2] * 3)))
    assert (group.content[0, :, -1] == 1).all()


def test_training_queries_carry_the_label_of_their_image_and_that_of_no_class_where_there_is_none():
    labels = [torch.tensor([3, 3]), torch.tensor([], dtype=torch.int64)]
    targets = Targets.from_lists(labels, [torch.rand(2, 4), torch.zeros(0, 4)])
    embedding, group = make_group(targets=targets)
    assert group.size == 3 and group.only_class is None
    assert torch.equal(group.content[0], embedding(torch.tensor([3] * 3)))
    assert torch.equal(group.content[1], embedding.unknown().expand(3, -1))


def test_only_known_classes_are_detected(model):
    x = make_input(64, 96, 0)
    assert len(set(model([x])[0]["instances"].pred_classes.tolist())) > 2
    found = model([{**x, "known_classes": [4, 1, 4]}])[0]["instances"]
    found = found[found.scores > 0]
    assert set(found.pred_classes.tolist()) == {1, 4}


def test_detections_are_the_union_over_the_classes(model):
    """1e-5: classes do not see each other, only the order of summation differs."""
    x = make_input(64, 96, 0)
    both = model.raw_predictions([{**x, "known_classes": [4, 1]}])
    for i, c in enumerate((4, 1)):
        alone = model.raw_predictions([{**x, "known_classes": [c]}])
        part = slice(i * model.num_queries, (i + 1) * model.num_queries)
        torch.testing.assert_close(both.logits[:, :, part, c], alone.logits[..., c], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both.boxes[:, :, part], alone.boxes, atol=1e-5, rtol=1e-5)


def test_labels_change_what_is_detected(model):
    """Not only which scores are kept: the same class's logits are others when its label is known."""
    x = make_input(64, 96, 0)
    plain, told = model.raw_predictions([x]), model.raw_predictions([{**x, "known_classes": [4]}])
    assert (plain.logits[..., 4] - told.logits[..., 4]).abs().max() > 1e-3


def test_images_of_one_batch_may_know_other_classes_none_or_nothing(model):
    """1e-4, as for any batch. Without the key an image is detected as ever; with no classes there is nothing in it."""
    known = [{"known_classes": [0, 3, 5]}, {}, {"known_classes": []}, {"known_classes": [2]}]
    inputs = [{**make_input(64, 96, 0, seed=i), **each} for i, each in enumerate(known)]
    together = [output["instances"] for output in model(inputs)]
    assert len(together[2]) == 0
    plain = model([{k: v for k, v in inputs[1].items() if k != "known_classes"}])[0]["instances"]
    torch.testing.assert_close(together[1].scores, plain.scores, atol=1e-4, rtol=0)
    for i, x in enumerate(inputs):
        alone = model([x])[0]["instances"]
        assert len(alone) == len(together[i])
        torch.testing.assert_close(together[i].scores, alone.scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (2, 5)])
def test_training_has_the_same_losses_and_gradients_everywhere(counts):
    inputs = [make_input(64, 96, n, seed=i) for i, n in enumerate(counts)]
    assert set(assert_trains_one_step(build_small(CONFIG), inputs)) == loss_keys(encoder=False)


def test_a_trained_dn_detr_loads_into_it():
    before, after = build_small("dn_detr/dn_detr_r50_50ep"), build_small(CONFIG)
    assert after.load_state_dict(before.state_dict()) and set(before.state_dict()) == set(after.state_dict())


def test_names_are_taken_where_the_model_has_them_and_errors_say_what_is_wrong(model):
    x = make_input(64, 96, 0)
    with pytest.raises(ValueError, match=r"0\.png: known_classes: 'disk' is a name, but the model does not know"):
        model([{**x, "known_classes": ["disk"]}])
    with pytest.raises(ValueError, match=r"0\.png: known_classes: expected 0 <= class < num_classes = 6, got 7"):
        model([{**x, "known_classes": [7]}])
    with pytest.raises(ValueError, match=r"0\.png: known_classes: expected a list of classes, got 'disk'"):
        model([{**x, "known_classes": "disk"}])
    named = randomise_heads(build_small(CONFIG, "model.num_classes=2", "model.class_names=[disk,ring]")).eval()
    found = named([{**x, "known_classes": ["ring"]}])[0]["instances"]
    assert set(found[found.scores > 0].pred_classes.tolist()) == {1}
    with pytest.raises(ValueError, match=r"no class 'dsk'\. Did you mean 'disk'\? It has: disk, ring"):
        named([{**x, "known_classes": ["dsk"]}])
