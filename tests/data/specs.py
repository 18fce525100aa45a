"""Small specifications of the three classes, written by hand."""

import copy
import json

PLAIN = {
    "__class__": "DatasetSpecification",
    "name": "birds",
    "path": "/path/to/records/birds",
    "file_pattern": "{}.tfrecords",
    "classes_per_split": {"TRAIN": 3, "VALID": 0, "TEST": 2},
    "images_per_class": {"4": 50, "0": 10, "1": 20, "2": 30, "3": 40},
    "class_names": {"0": "a", "1": "b", "2": "c", "3": "d", "4": "ü"},
}
POOLED = {
    **PLAIN,
    "file_pattern": "{}_{}.tfrecords",
    "images_per_class": {
        str(i): {"train": 10 * i, "test": i} for i in range(5)
    },
}
TWO_LEVELS = {
    "__class__": "BiLevelDatasetSpecification",
    "name": "omniglot",
    "path": "/path/to/records/omniglot",
    "file_pattern": "{}.tfrecords",
    "superclasses_per_split": {"TRAIN": 2, "VALID": 1, "TEST": 1},
    "classes_per_superclass": {"0": 2, "1": 3, "2": 1, "3": 2},
    "superclass_names": {"0": "Greek", "1": "Thai", "2": "Tifi", "3": "Aurek"},
    "images_per_class": {str(i): 20 for i in range(8)},
    "class_names": {str(i): "character01" for i in range(8)},
}


def node(name, children, parents):
    return {
        "wn_id": name,
        "words": name.upper(),
        "children_ids": list(children),
        "parents_ids": list(parents),
    }


# The leaf "e" hangs below two nodes, as birds do in WordNet; the ids do not
# follow the order of the nodes.
GRAPH = {
    "__class__": "HierarchicalDatasetSpecification",
    "name": "imagenet",
    "path": "/path/to/records/imagenet",
    "file_pattern": "{}.tfrecords",
    "split_subgraphs": {
        "TRAIN": [
            node("root", ["left", "right"], []),
            node("left", ["a", "b", "e"], ["root"]),
            node("right", ["e", "deep"], ["root"]),
            node("deep", ["c", "d"], ["right"]),
            *(node(leaf, [], ["left"]) for leaf in "ab"),
            *(node(leaf, [], ["deep"]) for leaf in "dc"),
            node("e", [], ["left", "right"]),
        ],
        "VALID": [
            node("right", ["f", "g"], []),
            node("f", [], ["right"]),
            node("g", [], ["right"]),
        ],
        "TEST": [node("h", [], [])],
    },
    "images_per_class": {
        "TRAIN": {
            **{"root": 60, "left": 30, "right": 50, "deep": 25},
            **{"a": 10, "b": 12, "c": 14, "d": 11, "e": 13},
        },
        "VALID": {"right": 5, "f": 2, "g": 3},
        "TEST": {"h": 7},
    },
    "class_names": dict(zip("01234567", "badcefgh")),
}
ALL = {
    "plain": PLAIN,
    "pooled": POOLED,
    "two levels": TWO_LEVELS,
    "graph": GRAPH,
}


def write(folder, spec):
    """Writes a specification into a folder and returns the folder."""
    text = json.dumps(spec)
    (folder / "dataset_spec.json").write_text(text, encoding="utf-8")
    return folder


def changed(spec, value, *keys):
    """A copy of `spec` with another value below `keys`; `...` deletes it."""
    spec = copy.deepcopy(spec)
    inner = spec
    for key in keys[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return spec
