import pytest

from dinox.utils.node_lists import expand_nodes, expand_task_counts


@pytest.mark.parametrize(
    "text, names",
    [
        ("gpu3", ["gpu3"]),
        ("a,b-2", ["a", "b-2"]),
        ("node[001-004,007],gpu3", ["node001", "node002", "node003", "node004", "node007", "gpu3"]),
        ("node[9-11]", ["node9", "node10", "node11"]),
        ("node[098-101]", ["node098", "node099", "node100", "node101"]),
        ("n[1-2]x,n[5]", ["n1x", "n2x", "n5"]),
        ("rack[1-2]n[0-1]", ["rack1n0", "rack1n1", "rack2n0", "rack2n1"]),
        ("c1.cluster.org", ["c1.cluster.org"]),
    ],
)
def test_nodes_come_in_the_order_of_the_list(text, names):
    assert expand_nodes(text) == names


@pytest.mark.parametrize("text", ["", " ", "a,,b", "a,", "n[1-", "n[]", "n[3-1]", "n[a-b]", "n]1[", "a b", ",a"])
def test_what_is_no_list_of_nodes_is_an_error(text):
    with pytest.raises(ValueError, match="expected a list of nodes such as"):
        expand_nodes(text)


@pytest.mark.parametrize("text, counts", [("4", [4]), ("4(x2),1", [4, 4, 1]), ("2,3(x1)", [2, 3])])
def test_tasks_of_each_node(text, counts):
    assert expand_task_counts(text) == counts


@pytest.mark.parametrize("text", ["", "4x2", "(x2)", "4(x2", "-1"])
def test_what_are_no_tasks_is_an_error(text):
    with pytest.raises(ValueError, match="expected numbers of tasks"):
        expand_task_counts(text)
