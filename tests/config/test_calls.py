"""What is known about LazyCalls: the kinds that annotations and values have."""

import collections.abc
from typing import Any, Literal, Optional, Union

import pytest
import torch
from detectron2.config import LazyCall as L
from torch import nn

from dinox.config.calls import ANY_KIND, annotation_kinds, argument_kinds, parameters, value_kind


@pytest.mark.parametrize(
    "annotation, kinds",
    [
        (int, {"int"}),
        (float, {"int", "float"}),
        (bool, {"bool"}),
        (str | None, {"str", "null"}),
        (Optional[float], {"int", "float", "null"}),  # noqa: UP045 - older code is read as well
        (Union[int, list[int]], {"int", "list"}),  # noqa: UP007
        (collections.abc.Sequence[str], {"list"}),
        (tuple[float, float], {"list"}),
        (dict[str, float], {"dict"}),
        (Literal["once", "twice"], {"str"}),
        (nn.Module, {"object"}),
        (nn.ModuleList, {"object"}),
        (collections.abc.Callable[[int], int], {"object"}),
        (torch.dtype, {"object"}),
        (Any, ANY_KIND),
        ("Undefined", ANY_KIND),
        (int | Any, ANY_KIND),
    ],
)
def test_kinds_of_annotations(annotation, kinds):
    assert annotation_kinds(annotation) == kinds


@pytest.mark.parametrize(
    "value, kind",
    [
        (None, "null"),
        (True, "bool"),
        (1, "int"),
        (1.0, "float"),
        ("a", "str"),
        ((1,), "list"),
        ({}, "dict"),
        (L(int)(), "object"),
    ],
)
def test_kinds_of_values(value, kind):
    assert value_kind(value) == kind


def old_style(a, b: int = None):  # noqa: RUF013 - as much code outside of dinox is
    pass


def test_default_none_is_allowed_where_it_is_not_annotated():
    assert argument_kinds(L(old_style)(a=1), "b") == {"int", "null"}
    assert argument_kinds(L(old_style)(a=1), "a") is ANY_KIND


def test_target_may_be_a_name():
    assert "bias" in parameters(L("torch.nn.Linear")(in_features=1))
    assert argument_kinds(L("torch.nn.Linear")(in_features=1), "bias") == {"bool"}
