import pytest

from dinox.config import load_config
from dinox.data import split_classes


@pytest.mark.parametrize(("share", "num_known"), [(0.7, 56), (0.5, 40), (0.001, 1), (0.999, 79)])
def test_every_class_is_in_one_part_of_the_split(share, num_known):
    split = split_classes(80, known_share=share, seed=3)
    assert len(split["known"]) == num_known
    assert sorted(split["known"] + split["unknown"]) == list(range(80))


def test_a_seed_gives_the_same_split_and_another_seed_another_one():
    assert split_classes(80, known_share=0.7, seed=0) == split_classes(80, known_share=0.7, seed=0)
    assert split_classes(80, known_share=0.7, seed=0) != split_classes(80, known_share=0.7, seed=1)


UNKNOWN = {
    "known_objects_70_30": "5 8 9 12 13 16 20 21 25 36 37 39 44 46 47 51 58 59 64 65 67 70 74 76",
    "known_objects_50_50": "0 1 5 8 9 12 13 14 15 16 18 19 20 21 24 25 29 32 35 36 37 39 43 44 46 47 49 51 54 58 59 61 "
    "64 65 67 70 74 75 76 78",
    "known_objects_shapes": "0 3 4",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_splits_of_the_configs_never_change(name):
    """Figures of different machines and years are about the same classes."""
    cfg = load_config(f"dn_detr/{name}")
    split, unknown = cfg.model.query_groups.split, [int(c) for c in UNKNOWN[name].split()]
    assert list(split.unknown) == unknown == list(cfg.dataloader.evaluator.classes)
    assert list(split.known) == sorted(set(range(cfg.model.num_classes)) - set(unknown))


def test_an_override_tells_the_model_the_known_objects_of_the_ground_truth():
    override = "dataloader.test.mapper.known_objects=${model.query_groups.split.known}"
    cfg = load_config("dn_detr/known_objects_50_50", [override])
    assert list(cfg.dataloader.test.mapper.known_objects) == list(cfg.model.query_groups.split.known)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0.5), "num_classes: expected a whole number of at least 2 to split, got 1"),
        ((80, 1.0), "known_share: expected a number between 0 and 1, got 1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_classes(arguments[0], known_share=arguments[1], seed=0)
