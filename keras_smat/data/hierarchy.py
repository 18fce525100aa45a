"""Groups of related classes, from which some episodes draw their classes."""

import collections
import hashlib

import numpy as np

from keras_smat.data.arguments import some

RULES = ("uniform", "all")


class ClassHierarchy:
    """Which classes belong together, and how an episode draws from a group.

    Each episode takes its classes from one group, all groups alike. A class
    may be in several groups, as the leaves below the nodes of a graph are.

    Args:
        groups: List of integer arrays, the classes of each group as indices
            into the source's `class_names`.
        rule: String. `"uniform"`: the way is uniform up to the size of the
            group, as for the alphabets of Omniglot. `"all"`: every class of
            the group, as for the nodes of the ImageNet graph.

    Attributes:
        groups: Tuple of integer arrays.
        sizes: Integer array of shape `(groups,)`, the classes of each group.
        rule: String.

    Raises:
        ValueError: if there is no group, a group is empty or holds something
            else than different class indices, or the rule is unknown.

    Example:

    ```python
    import numpy as np
    from keras_smat import data

    images = np.zeros((60, 32, 32, 3), "uint8")
    source = data.ArraySource(images, np.repeat(np.arange(12), 5))
    source.hierarchy = data.ClassHierarchy(
        [np.arange(5), np.arange(5, 12)], rule="uniform"
    )
    episodes = data.EpisodeDataset(source, data.MetaDatasetEpisodes())
    episodes.indices(0)["classes"]  # 5 of the first, or 5 to 7 of the second
    ```
    """

    def __init__(self, groups, rule):
        self.groups = tuple(_classes(group) for group in groups)
        self.sizes = np.array([len(group) for group in self.groups], "int64")
        if not self.groups:
            raise ValueError("Expected at least one group. Received: none.")
        if rule not in RULES:
            raise ValueError(
                f"Expected `rule` as one of {RULES}. Received: rule={rule!r}."
            )
        self.rule = rule

    def fingerprint(self):
        """Returns 16 hex digits that tell hierarchies apart."""
        digest = hashlib.sha256(self.rule.encode())
        digest.update(self.sizes.astype("<i8").tobytes())
        digest.update(np.concatenate(self.groups).astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def spanned_leaves(children, leaves):
    """Finds the leaves below every internal node of a directed graph.

    A node is visited once, after all of its children; the work is one union
    of leaf sets per edge.

    Args:
        children: Dict from every node to the list of its children.
        leaves: Dict from every node without children to its class index,
            `0..leaves-1`.

    Returns:
        A dict from every node with children to the sorted integer array of
        the class indices below it, in the order of `children`.

    Raises:
        ValueError: if the graph has a cycle.
    """
    parents = collections.defaultdict(list)
    for node, below in children.items():
        for child in set(below):
            parents[child].append(node)
    waiting = {node: len(set(below)) for node, below in children.items()}
    ready = list(leaves)
    spans = {
        node: np.zeros(len(leaves), bool)
        for node, below in children.items()
        if below
    }
    visited = 0
    while ready:
        node = ready.pop()
        visited += 1
        for parent in parents[node]:
            if node in leaves:
                spans[parent][leaves[node]] = True
            else:
                spans[parent] |= spans[node]
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    if visited < len(children):
        cycle = [node for node, count in waiting.items() if count]
        raise ValueError(
            "Expected a graph without cycles. Received: a cycle through or "
            f"below {some(cycle)}."
        )
    return {node: np.flatnonzero(span) for node, span in spans.items()}


def _classes(group):
    classes = np.asarray(group)
    whole = classes.ndim == 1 and np.issubdtype(classes.dtype, np.integer)
    if (
        not whole
        or not len(classes)
        or classes.min() < 0
        or len(np.unique(classes)) < len(classes)
    ):
        raise ValueError(
            "Expected every group as a one-dimensional array of different "
            f"class indices. Received: {group!r}."
        )
    return classes.astype("int64")
