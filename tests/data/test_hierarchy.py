import numpy as np
import pytest

from keras_smat.data.hierarchy import ClassHierarchy
from keras_smat.data.hierarchy import spanned_leaves


def test_groups():
    hierarchy = ClassHierarchy([[3, 1], np.array([1, 2, 0])], "uniform")
    assert [group.tolist() for group in hierarchy.groups] == [[3, 1], [1, 2, 0]]
    assert hierarchy.sizes.tolist() == [2, 3]
    assert hierarchy.rule == "uniform"


def test_fingerprints_tell_hierarchies_apart():
    variants = [
        ([[0, 1], [2]], "all"),
        ([[0, 1], [2]], "uniform"),
        ([[0], [1, 2]], "all"),
        ([[1, 0], [2]], "all"),
    ]
    prints = [ClassHierarchy(*variant).fingerprint() for variant in variants]
    assert len(set(prints)) == 4
    assert prints[0] == ClassHierarchy(*variants[0]).fingerprint()


@pytest.mark.parametrize(
    "groups, rule, message",
    [
        ([], "all", "at least one group"),
        ([[0], []], "all", r"class indices. Received: \[\]"),
        ([[0, 0]], "all", r"different class indices. Received: \[0, 0\]"),
        ([[-1]], "all", "different class indices"),
        ([[0.5]], "all", "different class indices"),
        ([[[0]]], "all", "different class indices"),
        ([[0]], "some", "rule='some'"),
    ],
)
def test_arguments_are_checked(groups, rule, message):
    with pytest.raises(ValueError, match=message):
        ClassHierarchy(groups, rule)


def reachable(children, node):
    """Leaves below a node, by plain recursion."""
    if not children[node]:
        return {node}
    return set().union(*(reachable(children, c) for c in children[node]))


def test_spans_of_random_graphs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = int(rng.integers(2, 30))
        children = {}
        for i in rng.permutation(count).tolist():
            below = rng.integers(i + 1, count + 3, rng.integers(0, 5)).tolist()
            children[i] = [child for child in below if child < count]
        leaves = [i for i, below in children.items() if not below]
        ids = {leaf: i for i, leaf in enumerate(leaves)}
        spans = spanned_leaves(children, ids)
        assert list(spans) == [i for i, below in children.items() if below]
        for i, span in spans.items():
            expected = sorted(ids[leaf] for leaf in reachable(children, i))
            assert span.tolist() == expected


@pytest.mark.parametrize(
    "children",
    [{"a": ["a"]}, {"a": ["b", "c"], "b": ["a"], "c": []}],
)
def test_cycles(children):
    with pytest.raises(ValueError, match="cycle through or below .a"):
        spanned_leaves(children, {"c": 0} if "c" in children else {})


def test_spans_take_one_visit_per_edge():
    """In a ladder of 60 levels, 2**60 paths lead down to the leaves: walking
    each of them would not end."""
    children = {(60, side): [] for side in (0, 1)}
    for level in range(60):
        for side in (0, 1):
            children[level, side] = [(level + 1, 0), (level + 1, 1)]
    spans = spanned_leaves(children, {(60, 0): 0, (60, 1): 1})
    assert spans[0, 0].tolist() == [0, 1]
    # Deeper than Python's recursion limit.
    chain = {i: [i + 1] for i in range(5000)}
    spans = spanned_leaves({**chain, 5000: []}, {5000: 0})
    assert spans[0].tolist() == [0]
