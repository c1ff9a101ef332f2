"""Names of tensors in few lines."""

import pytest

from dinox.utils.text import compact_names, shortened


def layer(*kinds, layers=range(6)):
    return [f"encoder.layers.{i}.{kind}" for i in layers for kind in kinds]


@pytest.mark.parametrize(
    "names, expected",
    [
        ([], []),
        (["mask"], ["mask"]),
        (layer("norm1.weight"), ["encoder.layers.{0..5}.norm1.weight"]),
        (layer("norm1.weight", "norm1.bias"), ["encoder.layers.{0..5}.norm1.{weight,bias}"]),
        (layer("norm1.weight", layers=[0, 1, 2, 5]), ["encoder.layers.{0..2,5}.norm1.weight"]),
        (layer("norm1.weight", layers=[3]), ["encoder.layers.3.norm1.weight"]),
        (layer("norm1.weight", layers=[4, 1]), ["encoder.layers.{1,4}.norm1.weight"]),
        (["a.0.b.0.c", "a.0.b.1.c", "a.1.b.0.c", "a.1.b.1.c"], ["a.{0..1}.b.{0..1}.c"]),
        # Not all pairs: no product.
        (["a.0.b.0.c", "a.0.b.1.c", "a.1.b.0.c"], ["a.0.b.{0..1}.c", "a.1.b.0.c"]),
        (["b.weight", "a.weight"], ["b.weight", "a.weight"]),
        (["x.2", "x.10"], ["x.{2,10}"]),
    ],
)
def test_names_that_differ_in_numbers_or_in_their_last_part_are_one(names, expected):
    everything = [*names, "encoder.layers.0.linear.weight", "other.weight"]
    # One tensor more in each module, so that none of them is there as a whole.
    everything += [f"{name.rpartition('.')[0]}.more" for name in names]
    assert compact_names(names, among=everything) == expected


def test_a_module_that_is_there_as_a_whole_is_one_name():
    decoder = [f"decoder.layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias", "scale")]
    everything = [*decoder, "encoder.weight"]
    assert compact_names(decoder, among=everything) == ["decoder.*"]
    assert compact_names(decoder[:6], among=everything) == ["decoder.layers.{0..1}.*"]
    assert compact_names(decoder[:5], among=everything) == ["decoder.layers.0.*", "decoder.layers.1.{weight,bias}"]


def test_every_name_is_told_once():
    """Expanded as a shell does it, the short names are the long ones."""
    names = [
        *layer("norm1.weight", "norm1.bias", "linear.weight"),
        *layer("gate.bias", layers=[1, 3]),
        "heads.0.weight",
    ]
    expanded = []
    for pattern in compact_names(names, among=[*names, *layer("linear.bias", "gate.weight")]):
        found = [""]
        for part in pattern.split(".") if ".." not in pattern else pattern.replace("..", "-").split("."):
            choices = [part]
            if part.startswith("{"):
                choices = []
                for choice in part[1:-1].split(","):
                    first, _, last = choice.partition("-")
                    choices += [str(i) for i in range(int(first), int(last) + 1)] if last else [choice]
            found = [f"{before}.{choice}".removeprefix(".") for before in found for choice in choices]
        expanded += found
    assert sorted(expanded) == sorted(names)


def test_lists_are_cut_with_a_count_of_the_rest():
    assert shortened([]) == "" and shortened(["a", "b"]) == "a, b"
    words = ["word"] * 100
    text = shortened(words, length=22)
    assert text == "word, word, word, word, ... (96 more)"
    assert shortened(["x" * 300]) == "x" * 300  # the first one is always told
