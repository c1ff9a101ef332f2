"""What is drawn for an image that has a seed depends on that alone, not on the images beside it."""

import dataclasses

import pytest
import torch

from dinox.modeling import (
    ContrastiveBoxNoise,
    DenoisingQueries,
    DynamicGroups,
    LabelEmbedding,
    PositiveQueries,
    SplitAtRandom,
)
from dinox.modeling.queries import ZeroPadding
from dinox.modeling.queries.splits import OneClassPerImage
from dinox.structures import MATCHING, HeadPyramid, QueryContext, Targets
from dinox.utils.image_random import draw_uniform, image_generator
from tests.small_models import make_memory

NUM_CLASSES = 7


def make_targets(*images: tuple[int, int], part: tuple[int, int] | None = None) -> Targets:
    """images: (seed, number of objects), which decide what they are. part: (start, size)."""
    generators = [torch.Generator().manual_seed(seed) for seed, _ in images]
    labels = [torch.randint(NUM_CLASSES, (n,), generator=g) for g, (_, n) in zip(generators, images)]
    boxes = [torch.rand(n, 4, generator=g) * 0.3 + 0.3 for g, (_, n) in zip(generators, images)]
    whole = dataclasses.replace(Targets.from_lists(labels, boxes), seeds=tuple(seed for seed, _ in images))
    return whole if part is None else whole.part(*part)


def make_denoising(**options) -> DenoisingQueries:
    torch.manual_seed(0)
    embedding = LabelEmbedding(num_classes=NUM_CLASSES, embed_dim=8)
    settings = {"groups": DynamicGroups(num_queries=12), "flip_probability": 0.5} | options
    noise = ContrastiveBoxNoise()
    return DenoisingQueries(num_classes=NUM_CLASSES, label_embedding=embedding, box_noise=noise, **settings)


def context(targets: Targets, **options) -> QueryContext:
    return QueryContext(make_memory(torch.zeros(len(targets.counts), 1, 8)), targets=targets, **options)


def copies(group, image: int, objects: int) -> torch.Tensor:
    """(C, objects, 8 + 4): content and anchors of an image's noised objects, copy by copy, without padded slots."""
    slots = group.subgroup_size // ContrastiveBoxNoise.halves
    return torch.cat([group.content[image], group.anchors[image]], dim=-1).unflatten(0, (-1, slots))[:, :objects]


def test_an_image_has_the_same_noise_in_any_batch():
    """Alone it has 4 groups of 3 slots; beside an image of 6 objects 2 groups of 6 slots, whose numbers stay."""
    denoising = make_denoising()
    alone = copies(denoising(context(make_targets((5, 3)))), 0, 3)
    for targets, image in (
        (make_targets((5, 3), (9, 6)), 0),
        (make_targets((9, 6), (4, 0), (5, 3)), 2),
        (make_targets((9, 6), (5, 3), part=(1, 1)), 0),
    ):
        torch.manual_seed(image)  # torch's own generator has no say
        beside = copies(denoising(context(targets)), image, 3)
        assert len(beside) == 4 and len(alone) == 8
        assert torch.equal(beside, alone[:4])


def test_another_seed_is_other_noise():
    denoising, one, other = make_denoising(), make_targets((5, 3)), make_targets((5, 3))
    other = dataclasses.replace(other, seeds=(6,))
    assert not torch.equal(denoising(context(one)).anchors, denoising(context(other)).anchors)


def test_noise_of_images_has_the_distributions_of_other_noise():
    """Of 40,000 numbers: means within 0.02, which is more than five standard deviations of each."""
    counts = (100, 100, 100, 100)
    targets = make_targets(*enumerate(counts))
    noise = make_denoising().sample_noise((4, 100), 100, context(targets))
    assert noise.flip.shape == noise.new_labels.shape == (4, 100, 100)
    assert noise.sign.shape == noise.magnitude.shape == (4, 100, 100, 4)
    assert noise.sign.unique().tolist() == [-1, 1] and abs(noise.sign.mean()) < 0.02
    for uniform in (noise.flip, noise.magnitude):
        assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.02
    assert noise.new_labels.dtype == torch.int64
    shares = noise.new_labels.flatten().bincount(minlength=NUM_CLASSES) / noise.new_labels.numel()
    assert len(shares) == NUM_CLASSES and (shares - 1 / NUM_CLASSES).abs().max() < 0.02
    assert (noise.flip * 1000 % 1 - noise.magnitude[..., 0]).abs().mean() > 0.2  # numbers of their own


def test_an_explicit_generator_goes_before_the_seeds():
    denoising, targets = make_denoising(), make_targets((5, 3))
    without = dataclasses.replace(targets, seeds=None)
    drawn = [denoising(context(t, generator=torch.Generator().manual_seed(1))).anchors for t in (targets, without)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], denoising(context(targets)).anchors)


def test_without_seeds_torchs_own_generator_draws():
    denoising, targets = make_denoising(), dataclasses.replace(make_targets((5, 3)), seeds=None)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(denoising(context(targets)).anchors)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_the_choice_of_objects_that_have_room_is_the_images_own():
    denoising = make_denoising(max_queries=8)  # four objects
    alone = denoising(context(make_targets((5, 6)))).target_index[0]
    for targets, image in ((make_targets((9, 8), (5, 6)), 1), (make_targets((5, 6), (9, 30), part=(0, 1)), 0)):
        assert torch.equal(denoising(context(targets)).target_index[image], alone)
    assert alone[:4].tolist() != [0, 1, 2, 3]  # it is a choice


def test_slots_groups_and_positives_are_those_of_the_whole_batch():
    denoising, images = make_denoising(), [(1, 2), (2, 0), (3, 6)]
    whole = denoising(context(make_targets(*images)))
    for start, size in ((0, 2), (1, 1), (2, 1)):
        part = denoising(context(make_targets(*images, part=(start, size))))
        assert part.batch_positives == whole.batch_positives == (whole.target_index >= 0).sum()
        for name in ("content", "anchors", "target_index"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[start : start + size])


@pytest.mark.parametrize("split", [SplitAtRandom(), OneClassPerImage()])
def test_which_objects_a_group_learns_is_the_images_own(split):
    images = [(1, 6), (2, 3), (3, 5)]
    targets = make_targets(*images)
    whole = split(context(targets))[MATCHING](targets)
    for image, (one, start) in enumerate(zip(images, range(3))):
        part, alone = make_targets(*images, part=(start, 1)), make_targets(one)
        for found in (split(context(part))[MATCHING](part), split(context(alone))[MATCHING](alone)):
            count = whole.counts[image]
            assert found.counts == (count,)
            assert torch.equal(found.boxes[0, :count], whole.boxes[image, :count])
        assert split(context(part))[MATCHING](part).batch.counts == whole.counts


def test_the_keys_of_positive_queries_are_the_images_own():
    maker = PositiveQueries(head="roi", embedding=torch.nn.Identity(), padding=ZeroPadding())
    keys = maker.sample_keys((2, 50), context(make_targets((1, 2), (2, 0))))
    assert torch.equal(keys[1:], maker.sample_keys((1, 50), context(make_targets((2, 0)))))


def test_heads_draw_with_the_images_own_generators():
    pyramid = HeadPyramid([], (), (), seeds=(1, 2))
    draw = lambda generator: torch.rand(3, generator=generator)  # noqa: E731
    assert torch.equal(draw(pyramid.generator_of(1, "boxes")), draw(image_generator(2, "boxes")))
    assert not torch.equal(draw(pyramid.generator_of(1, "boxes")), draw(pyramid.generator_of(1, "other boxes")))
    given = torch.Generator()
    assert HeadPyramid([], (), (), given, seeds=(1, 2)).generator_of(0, "boxes") is given
    assert HeadPyramid([], (), ()).generator_of(0, "boxes") is None


def test_entries_beyond_an_images_own_are_zero():
    draw = {"purpose": "x", "device": torch.device("cpu"), "generator": None}
    padded = draw_uniform((2, 3, 5), seeds=(1, 2), counts=(2, 0), dim=2, **draw)
    assert torch.equal(padded[0, :, :2], draw_uniform((1, 3, 2), seeds=(1,), **draw)[0])
    assert not padded[0, :, 2:].any() and not padded[1].any()
