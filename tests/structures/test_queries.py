import torch

from dinox.structures import MATCHING, QueryGroup, build_attention_mask


def group(name: str, size: int, **rules) -> QueryGroup:
    return QueryGroup(name, torch.zeros(2, size, 4), **rules)


def test_one_group_without_rules_needs_no_mask():
    assert build_attention_mask([group(MATCHING, 3)]) is None


def test_groups_see_themselves_and_those_they_are_allowed_to():
    mask = build_attention_mask([group("denoising", 2, sees=frozenset({MATCHING})), group(MATCHING, 2)])
    assert (~mask).int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_subgroups_do_not_see_each_other():
    mask = build_attention_mask([group("denoising", 4, subgroup_size=2)])
    assert (~mask).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_matching_may_be_allowed_to_see_known_objects():
    mask = build_attention_mask([group("known", 1), group(MATCHING, 1, sees=frozenset({"known"}))])
    assert (~mask).int().tolist() == [[1, 0], [1, 1]]


def test_nobody_sees_padded_queries_but_they_see_something():
    padding = torch.tensor([[False, False, True], [False, False, False]])
    mask = build_attention_mask([group(MATCHING, 3, padding_mask=padding)])
    assert mask.shape == (2, 3, 3)
    assert (~mask[0]).int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert not mask[1].any()
    assert not mask.all(-1).any()


def test_an_empty_group_leaves_the_others_as_they_are():
    mask = build_attention_mask([group("denoising", 0, subgroup_size=0), group(MATCHING, 2)])
    assert mask.shape == (2, 2) and not mask.any()
