import json
import os
import pickle

import numpy as np
import pytest
import specs
from specs import changed

from keras_smat.data.dataset_spec import read_dataset_spec
from keras_smat.data.spec_fields import DatasetSpecError


def read(folder, spec):
    return read_dataset_spec(specs.write(folder, spec))


def lists(values):
    return {key: value.tolist() for key, value in values.items()}


def test_plain(tmp_path):
    spec = read(tmp_path, specs.PLAIN)
    assert spec.folder == str(tmp_path) and spec.name == "birds"
    assert spec.class_names == ("a", "b", "c", "d", "ü")
    assert spec.class_sizes.tolist() == [10, 20, 30, 40, 50]
    assert lists(spec.splits) == {
        "train": [0, 1, 2],
        "validation": [],
        "test": [3, 4],
    }
    assert spec.pool_sizes == {}
    assert all(spec.hierarchy(split) is None for split in spec.splits)
    assert spec.files(3) == ["3.tfrecords"]
    assert spec.files(3, ".h5") == ["3.h5"]


def test_pools(tmp_path):
    spec = read(tmp_path, specs.POOLED)
    assert spec.class_sizes.tolist() == [0, 11, 22, 33, 44]
    assert lists(spec.pool_sizes) == {
        "train": [0, 10, 20, 30, 40],
        "test": [0, 1, 2, 3, 4],
    }
    assert spec.files(2) == ["2_train.tfrecords", "2_test.tfrecords"]


def test_shards_are_found_in_the_folder(tmp_path):
    spec = {**specs.PLAIN, "file_pattern": "{}_{}.tfrecords"}
    spec = read(tmp_path, spec)
    shards = [f"1_{i}.tfrecords" for i in range(11)]
    for name in [*shards, "11_0.tfrecords", "1.tfrecords", "2_1.tfrecords"]:
        (tmp_path / name).touch()
    assert spec.files(1) == shards
    assert spec.files(2) == []


def test_two_levels(tmp_path):
    spec = read(tmp_path, specs.TWO_LEVELS)
    assert lists(spec.splits) == {
        "train": [0, 1, 2, 3, 4],
        "validation": [5],
        "test": [6, 7],
    }
    assert spec.class_names[:3] == (
        "Greek/character01",
        "Greek/character01 #1",
        "Thai/character01",
    )
    assert len(set(spec.class_names)) == 8
    hierarchy = spec.hierarchy("train")
    assert hierarchy.rule == "uniform"
    assert [g.tolist() for g in hierarchy.groups] == [[0, 1], [2, 3, 4]]
    # Indices count from the first class of the split.
    assert [g.tolist() for g in spec.hierarchy("test").groups] == [[0, 1]]


def test_graph(tmp_path):
    """By hand; the graph of ImageNet itself is no part of the tests."""
    spec = read(tmp_path, specs.GRAPH)
    assert spec.class_names == tuple("badcefgh")
    assert spec.class_sizes.tolist() == [12, 10, 11, 14, 13, 2, 3, 7]
    assert lists(spec.splits) == {
        "train": [0, 1, 2, 3, 4],
        "validation": [5, 6],
        "test": [7],
    }
    hierarchy = spec.hierarchy("train")
    assert hierarchy.rule == "all"
    spans = [
        "".join(spec.class_names[i] for i in group)
        for group in hierarchy.groups
    ]
    assert spans == ["badce", "bae", "dce", "dc"]
    assert [g.tolist() for g in spec.hierarchy("validation").groups] == [[0, 1]]
    assert spec.hierarchy("test") is None  # a leaf alone


IMAGENET = {
    "train": (712, 299, 113, 891, 1300),
    "validation": (158, 42, 18, 732, 1300),
    "test": (130, 50, 15, 889, 1300),
}


@pytest.mark.skipif(
    "KERAS_SMAT_IMAGENET_SPEC" not in os.environ,
    reason="KERAS_SMAT_IMAGENET_SPEC names no folder with ImageNet's "
    "dataset_spec.json, which is not part of the repository",
)
def test_graph_of_imagenet():
    """Leaves, internal nodes, eligible nodes and images of Meta-Dataset's
    ImageNet, on a copy of its specification."""
    spec = read_dataset_spec(os.environ["KERAS_SMAT_IMAGENET_SPEC"])
    for split, (leaves, internal, eligible, low, high) in IMAGENET.items():
        sizes = spec.class_sizes[spec.splits[split]]
        spans = spec.hierarchy(split).sizes
        assert len(sizes) == leaves and len(spans) == internal
        assert ((spans >= 5) & (spans <= 392)).sum() == eligible
        assert (sizes.min(), sizes.max()) == (low, high)


P, T, G = specs.PLAIN, specs.TWO_LEVELS, specs.GRAPH
TRAIN = ("split_subgraphs", "TRAIN")
BROKEN = {
    "no class": (P, ..., ["__class__"], "`__class__`"),
    "class": (P, "BenchmarkSpecification", ["__class__"], "`__class__`.*Bench"),
    "name": (P, 3, ["name"], "a string in field `name`.*Received: 3"),
    "surrogate": (P, "\ud800", ["name"], "surrogates in field `name`"),
    "pattern": (P, "{}.h5", ["file_pattern"], "`file_pattern`.*{}.h5"),
    "unfilled": (P, {}, ["class_names"], "`classes_per_split`"),
    "keys": (P, "x", ["class_names", "05"], r"0\.\.5 in .*\['05'\]"),
    "no split": (P, ..., ["classes_per_split", "TEST"], "classes_per_split.TE"),
    "sum": (P, 10**12, ["classes_per_split", "TEST"], r"sum to 5 .*`classes_p"),
    "negative": (P, -1, ["images_per_class", "2"], "`images_per_class.2`.*-1"),
    "boolean": (P, True, ["images_per_class", "2"], "images_per_class.2.*True"),
    "huge": (P, 10**30, ["images_per_class", "2"], "images_per_class.2"),
    "float": (P, 1.0, ["images_per_class", "2"], "images_per_class.2.*1.0"),
    "missing count": (P, ..., ["images_per_class", "4"], "5 counts.*images_pe"),
    "mixed": (P, {"a": 1}, ["images_per_class", "1"], "images_per_class.1"),
    "list": (P, [1], ["images_per_class"], "an object in.*`images_per_class`"),
    "pools": (
        P,
        specs.POOLED["images_per_class"],
        ["images_per_class"],
        "file_",
    ),
    "other pool": (
        specs.POOLED,
        {"train": 1, "x": 1},
        ["images_per_class", "3"],
        "`images_per_class.3.test`",
    ),
    "path in a pool": (
        specs.POOLED,
        {"../train": 1},
        ["images_per_class", "0"],
        "plain names of pools.*images_per_class.0",
    ),
    "superclass": (T, ..., ["superclass_names", "3"], "4 names.*superclass_na"),
    "empty superclass": (T, 0, ["classes_per_superclass", "0"], "at least 1"),
    "superclass sum": (T, 9, ["classes_per_superclass", "0"], "sum to 8"),
    "no superclasses": (T, {}, ["superclasses_per_split"], "per_split.TRAIN"),
    "cycle": (G, ["root"], [*TRAIN, 3, "children_ids"], "no cycle.*root"),
    "self": (G, ["deep"], [*TRAIN, 3, "children_ids"], "no cycle in.*deep"),
    "unknown child": (
        G,
        ["c", "d", "z"],
        [*TRAIN, 3, "children_ids"],
        r"`split_subgraphs.TRAIN.3.children_ids`.*\['z'\]",
    ),
    "twice": (
        G,
        "left",
        [*TRAIN, 2, "wn_id"],
        "every node once.*TRAIN.2.wn_id",
    ),
    "node": (G, "left", [*TRAIN, 2], "TRAIN.2.wn_id`.*Received: 'left'"),
    "no nodes": (G, {}, list(TRAIN), "a list in field `split_subgraphs.TRAIN`"),
    "strange child": (G, [3], [*TRAIN, 3, "children_ids"], "children_ids.0`"),
    "leaf id": (G, "z", ["class_names", "0"], r"ids 0\.\.4 .*TRAIN.*\['b'\]"),
    "same name": (G, "a", ["class_names", "0"], "different node.*class_names"),
    "leaf count": (G, ..., ["images_per_class", "TEST", "h"], "TEST.h`"),
    "extra name": (G, "z", ["class_names", "8"], "8 names, one per leaf"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_errors_name_file_and_field(tmp_path, case):
    spec, value, keys, message = BROKEN[case]
    with pytest.raises(DatasetSpecError, match=message) as caught:
        read(tmp_path, changed(spec, value, *keys))
    assert str(tmp_path / "dataset_spec.json") in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b"[1]", b"null"],
    ids=["empty", "cut", "encoding", "nested", "digits", "list", "null"],
)
def test_files_that_are_no_specification(tmp_path, text):
    (tmp_path / "dataset_spec.json").write_bytes(text)
    with pytest.raises(DatasetSpecError, match="dataset_spec.json"):
        read_dataset_spec(tmp_path)


def test_no_class_at_all(tmp_path):
    empty = {**specs.PLAIN, "images_per_class": {}, "class_names": {}}
    empty["classes_per_split"] = {"TRAIN": 0, "VALID": 0, "TEST": 0}
    with pytest.raises(DatasetSpecError, match="at least one class"):
        read(tmp_path, empty)


def test_missing_files_and_pickles(tmp_path):
    with pytest.raises(DatasetSpecError, match="Received: no such file"):
        read_dataset_spec(tmp_path)
    (tmp_path / "dataset_spec.pkl").write_bytes(pickle.dumps(specs.PLAIN))
    with pytest.raises(DatasetSpecError, match="pickle.*are refused"):
        read_dataset_spec(tmp_path)


def test_many_classes_take_no_time(tmp_path):
    """As large as the largest, Fungi and ImageNet, and more."""
    count = 20_000
    ids = [str(i) for i in range(count)]
    spec = {
        **specs.PLAIN,
        "classes_per_split": {"TRAIN": count, "VALID": 0, "TEST": 0},
        "images_per_class": dict.fromkeys(ids, 10**6),
        "class_names": dict.fromkeys(ids, "same"),
    }
    assert len(json.dumps(spec)) > 5e5
    spec = read(tmp_path, spec)
    assert len(set(spec.class_names)) == count
    assert spec.class_sizes.dtype == np.int64
    assert spec.class_sizes.sum() == count * 10**6
