"""Whatever stands in a specification, one documented error comes of it."""

import copy
import json
import os
import pathlib
import tempfile

import keras
import numpy as np
import pytest
import specs

hypothesis = pytest.importorskip("hypothesis", reason="part of the dev extra")
from hypothesis import strategies as st  # noqa: E402

from keras_smat.data.dataset_spec import read_dataset_spec  # noqa: E402
from keras_smat.data.spec_fields import DatasetSpecError  # noqa: E402

# More for a search of some minutes: KERAS_SMAT_FUZZ=200000.
EXAMPLES = int(os.environ.get("KERAS_SMAT_FUZZ", 150))

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="plain NumPy: one backend is enough",
)
settings = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="KERAS_SMAT_FUZZ" not in os.environ,
)

# Words of the format, so that random values often nearly fit.
WORDS = st.sampled_from(
    ["TRAIN", "VALID", "TEST", "train", "0", "1", "2", "a", "b", "root", "left"]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.sampled_from([2**31, 2**40, 2**63, 10**400]),
    st.floats(),
    st.text(st.characters(codec=None), max_size=4),
    WORDS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(WORDS, st.text(max_size=3)), inner, max_size=4
        ),
    ),
    max_leaves=12,
)


def places(value, path=()):
    """Paths to everything inside a JSON value."""
    yield path
    pairs = value.items() if isinstance(value, dict) else ()
    pairs = enumerate(value) if isinstance(value, list) else pairs
    for key, inner in pairs:
        yield from places(inner, (*path, key))


@st.composite
def damaged(draw):
    """A sound specification in which some places were changed."""
    spec = copy.deepcopy(draw(st.sampled_from(list(specs.ALL.values()))))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(spec))))
        if not path:
            return draw(VALUES)
        inner = spec
        for key in path[:-1]:
            inner = inner[key]
        if draw(st.booleans()):
            inner[path[-1]] = draw(VALUES)
        elif draw(st.booleans()):
            del inner[path[-1]]
        else:  # something from elsewhere in the same file
            other = draw(st.sampled_from(list(places(spec))))
            value = spec
            for key in other:
                value = value[key]
            inner[path[-1]] = copy.deepcopy(value)
    return spec


def read(content):
    """Reads and looks at everything; `None` where it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "dataset_spec.json").write_bytes(content)
        try:
            spec = read_dataset_spec(folder)
        except DatasetSpecError as error:
            assert "dataset_spec.json" in str(error)
            return None
        ids = np.concatenate(list(spec.splits.values()))
        total = len(spec.class_names)
        assert ids.tolist() == list(range(total)) and total
        assert len(set(spec.class_names)) == total
        assert spec.class_sizes.shape == (total,)
        assert spec.class_sizes.dtype == np.int64
        assert (spec.class_sizes >= 0).all()
        assert all(name.encode() for name in map(repr, spec.class_names))
        for i in range(total):
            for name in spec.files(i):
                assert os.path.basename(name) == name
        for split, classes in spec.splits.items():
            hierarchy = spec.hierarchy(split)
            if hierarchy is not None:
                assert np.concatenate(hierarchy.groups).max() < len(classes)
        return spec


@settings
@hypothesis.given(damaged())
def test_damaged_specifications(spec):
    read(json.dumps(spec).encode())


@settings
@hypothesis.given(st.data())
def test_damaged_bytes(data):
    spec = data.draw(st.sampled_from(list(specs.ALL.values())))
    content = bytearray(json.dumps(spec).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, 3 * len(content)))
    read(bytes(content[:end]))


@settings
@hypothesis.given(st.data())
def test_random_graphs(data):
    """Every graph over some nodes, with cycles and without."""
    names = [f"n{i}" for i in range(data.draw(st.integers(1, 7)))]
    below = st.lists(st.sampled_from(names), max_size=3)
    children = {name: data.draw(below) for name in names}
    leaves = [name for name in names if not children[name]]
    nodes = [specs.node(name, children[name], []) for name in names]
    spec = {
        **specs.GRAPH,
        "split_subgraphs": {"TRAIN": nodes, "VALID": [], "TEST": []},
        "images_per_class": {
            "TRAIN": dict.fromkeys(names, 3),
            "VALID": {},
            "TEST": {},
        },
        "class_names": {str(i): leaf for i, leaf in enumerate(leaves)},
    }
    found = read(json.dumps(spec).encode())
    assert (found is not None) == (bool(leaves) and not cyclic(children))


def cyclic(children):
    """Whether some node is below itself, by matrix powers."""
    index = {name: i for i, name in enumerate(children)}
    edges = np.zeros((len(index), len(index)), int)
    for name, below in children.items():
        for child in below:
            edges[index[name], index[child]] = 1
    paths = edges
    for _ in range(len(index)):
        if paths.trace():
            return True
        paths = np.minimum(paths @ edges, 1)
    return False
