"""Reading the `dataset_spec.json` of a Meta-Dataset folder."""

import dataclasses
import os

import numpy as np

from keras_smat.data.hierarchy import ClassHierarchy
from keras_smat.data.hierarchy import spanned_leaves
from keras_smat.data.spec_fields import open_fields

SPLITS = {"train": "TRAIN", "validation": "VALID", "test": "TEST"}
PATTERNS = ("{}.tfrecords", "{}_{}.tfrecords")


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetSpec:
    """What a `dataset_spec.json` says; `read_dataset_spec` makes it.

    Attributes:
        folder: String, where the file lies. The placeholder `path` in the
            file is not used.
        name: String.
        class_names: Tuple of different strings, by class id. Two-level data
            have `"superclass/class"`; a name that occurs again gets its id.
        class_sizes: Integer array of shape `(classes,)`, images by class id.
        splits: Dict from `"train"`, `"validation"` and `"test"` to an array
            of consecutive class ids.
        file_pattern: String, `"{}.tfrecords"` or `"{}_{}.tfrecords"`.
        pool_sizes: Dict from the name of a pool to an integer array of shape
            `(classes,)`; empty where images are in no pools.
        hierarchies: Dict from the split to a `ClassHierarchy` or `None`.
    """

    folder: str
    name: str
    class_names: tuple
    class_sizes: np.ndarray
    splits: dict
    file_pattern: str
    pool_sizes: dict
    hierarchies: dict

    def hierarchy(self, split):
        """Returns the `ClassHierarchy` of a split, or `None`.

        Its class indices count from 0 within the split.
        """
        return self.hierarchies[split]

    def files(self, class_id, suffix=".tfrecords"):
        """Returns the names of the files that hold a class, in order.

        Args:
            class_id: Integer.
            suffix: String, for folders that hold the same images in another
                form. Defaults to `".tfrecords"`.

        Returns:
            A list of strings. How many shards a class has is not in the
            specification: they are counted in the folder, so the list is
            empty where the first one is missing.
        """
        if self.file_pattern == PATTERNS[0]:
            return [f"{class_id}{suffix}"]
        if self.pool_sizes:
            return [f"{class_id}_{pool}{suffix}" for pool in self.pool_sizes]
        shards = []
        while True:
            name = f"{class_id}_{len(shards)}{suffix}"
            if not os.path.exists(os.path.join(self.folder, name)):
                return shards
            shards.append(name)


def read_dataset_spec(folder):
    """Reads `<folder>/dataset_spec.json`.

    Args:
        folder: String or path.

    Returns:
        A `DatasetSpec`.

    Raises:
        DatasetSpecError: a `ValueError` that names the file and the field, if
            the file is missing or anything in it is not as it should be.
    """
    folder = os.fspath(folder)
    fields = open_fields(folder)
    kind = fields.get(str, "__class__")
    if kind not in _READERS:
        fields.fail(["__class__"], f"one of {list(_READERS)}", kind)
    splits, names, sizes, hierarchies = _READERS[kind](fields)
    if not names:
        fields.fail(["class_names"], "at least one class", names)
    pattern = fields.get(str, "file_pattern")
    pools = {pool: counts for pool, counts in sizes.items() if pool}
    allowed = PATTERNS[1:] if pools else PATTERNS
    if pattern not in allowed:
        fields.fail(["file_pattern"], f"one of {list(allowed)}", pattern)
    return DatasetSpec(
        folder=folder,
        name=fields.get(str, "name"),
        class_names=_unique(names),
        class_sizes=np.sum(list(sizes.values()), axis=0),
        splits=splits,
        file_pattern=pattern,
        pool_sizes=pools,
        hierarchies=hierarchies,
    )


def _plain(fields):
    """Reads a `DatasetSpecification`."""
    names = fields.by_id(str, "class_names")
    splits = _splits(fields, "classes_per_split", len(names))
    return splits, names, _sizes(fields, len(names)), dict.fromkeys(SPLITS)


def _two_levels(fields):
    """Reads a `BiLevelDatasetSpecification`."""
    names = fields.by_id(str, "class_names")
    counts = fields.by_id(int, "classes_per_superclass")
    groups = fields.by_id(str, "superclass_names")
    if len(groups) != len(counts):
        expected = f"{len(counts)} names, one per superclass"
        fields.fail(["superclass_names"], expected, groups)
    if sum(counts) != len(names) or 0 in counts:
        expected = f"counts of at least 1 that sum to {len(names)} classes"
        fields.fail(["classes_per_superclass"], expected, counts)
    long_names = np.repeat(np.array(groups, object), counts)
    names = [f"{group}/{name}" for group, name in zip(long_names, names)]
    ids = np.split(np.arange(len(names)), np.cumsum(counts)[:-1])
    splits, hierarchies = {}, {}
    superclasses = _splits(fields, "superclasses_per_split", len(counts))
    for split, numbers in superclasses.items():
        members = [ids[i] for i in numbers]
        splits[split] = np.concatenate([np.arange(0), *members])
        relative = [group - splits[split][0] for group in members]
        hierarchies[split] = (
            ClassHierarchy(relative, "uniform") if relative else None
        )
    return splits, names, _sizes(fields, len(names)), hierarchies


def _graph(fields):
    """Reads a `HierarchicalDatasetSpecification`."""
    names = fields.by_id(str, "class_names")
    ids = {name: i for i, name in enumerate(names)}
    if len(ids) < len(names):
        fields.fail(["class_names"], "a different node for each id", names)
    sizes, ends, hierarchies = [], [0], {}
    for split, key in SPLITS.items():
        children = _children(fields, key)
        leaves = [node for node, below in children.items() if not below]
        ends.append(ends[-1] + len(leaves))
        index = {leaf: ids.get(leaf, -1) - ends[-2] for leaf in leaves}
        wanted = range(len(leaves))
        if set(index.values()) != set(wanted):
            strange = [leaf for leaf in leaves if index[leaf] not in wanted]
            expected = f"leaves with the ids {ends[-2]}..{ends[-1] - 1}"
            fields.fail(["split_subgraphs", key], expected, strange)
        for leaf in sorted(leaves, key=index.get):
            sizes.append(fields.get(int, "images_per_class", key, leaf))
        try:
            groups = spanned_leaves(children, index)
        except ValueError as error:
            fields.fail(["split_subgraphs", key], "no cycle", str(error))
        hierarchies[split] = (
            ClassHierarchy(groups.values(), "all") if groups else None
        )
    if ends[-1] != len(names):
        expected = f"{ends[-1]} names, one per leaf"
        fields.fail(["class_names"], expected, len(names))
    splits = _consecutive(np.diff(ends))
    return splits, names, {"": np.array(sizes, "int64")}, hierarchies


def _children(fields, key):
    """Returns a dict from each node of a graph to the list of its children."""
    here = ["split_subgraphs", key]
    children = {}
    for i in range(len(fields.get(list, *here))):
        name = fields.get(str, *here, i, "wn_id")
        if name in children:
            fields.fail([*here, i, "wn_id"], "every node once", name)
        below = fields.get(list, *here, i, "children_ids")
        for j in range(len(below)):
            fields.get(str, *here, i, "children_ids", j)
        children[name] = below
    for i, below in enumerate(children.values()):
        unknown = [child for child in below if child not in children]
        if unknown:
            expected = "nodes of the same graph"
            fields.fail([*here, i, "children_ids"], expected, unknown)
    return children


def _sizes(fields, total):
    """Returns the image counts as a dict from the pool, or "", to an array."""
    key = "images_per_class"
    counts = fields.by_id(object, key)
    if len(counts) != total:
        fields.fail([key], f"{total} counts, one per class", len(counts))
    if not counts or not isinstance(counts[0], dict):
        return {"": np.array(fields.by_id(int, key), "int64")}
    pools = list(counts[0])
    if not pools or not all(pool.isidentifier() for pool in pools):
        fields.fail([key, "0"], "plain names of pools", counts[0])
    sizes = {pool: np.empty(total, "int64") for pool in pools}
    for i, count in enumerate(counts):
        if not isinstance(count, dict) or len(count) != len(pools):
            fields.fail([key, i], f"counts for the pools {pools}", count)
        for pool in pools:
            sizes[pool][i] = fields.get(int, key, str(i), pool)
    return sizes


def _splits(fields, key, total):
    counts = [fields.get(int, key, split) for split in SPLITS.values()]
    if sum(counts) != total:
        fields.fail([key], f"counts that sum to {total}", counts)
    return _consecutive(counts)


def _consecutive(counts):
    """Ids of each split, which follow each other."""
    parts = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    return dict(zip(SPLITS, parts))


def _unique(names):
    """The names, with its id behind one that occurred before."""
    unique = {}
    for i, name in enumerate(names):
        while name in unique:
            name = f"{name} #{i}"
        unique[name] = i
    return tuple(unique)


_READERS = {
    "DatasetSpecification": _plain,
    "BiLevelDatasetSpecification": _two_levels,
    "HierarchicalDatasetSpecification": _graph,
}
