import pickle

import numpy as np
import pytest

from keras_smat.data import ArraySource
from keras_smat.data import ImageSource
from keras_smat.data.sources import ClassIndex


def numbered(n, size=4):
    """Images whose pixels are their own index."""
    images = np.empty((n, size, size, 3), "uint8")
    images[:] = np.arange(n).reshape(-1, 1, 1, 1)
    return images


def test_array_source():
    images = numbered(5)
    source = ArraySource(images, [1, 0, 1, 1, 0], ["cat", "dog"])
    assert source.images is images
    assert source.image_shape == (4, 4, 3)
    assert source.image_size == (4, 4)
    np.testing.assert_array_equal(source.class_sizes, [2, 3])
    loaded = source.load(np.array([3, 1]))
    np.testing.assert_array_equal(loaded[:, 0, 0, 0], [3, 1])
    assert ArraySource(images, [1, 0, 1, 1, 0]).class_names == ["0", "1"]


@pytest.mark.parametrize(
    "images, labels, class_names, message",
    [
        (np.zeros((2, 4, 4, 3)), [0, 1], None, "uint8"),
        (numbered(2), [0, 2], None, r"no image of \[1\]"),
        (numbered(2), [0], None, "1 labels for 2"),
        (numbered(2), [0, 1], ["a"], "2 different names.*1 names"),
        (numbered(2), [0, 1], ["a", "a"], "2 different names"),
    ],
)
def test_array_source_refuses(images, labels, class_names, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(images, labels, class_names)


def test_memory_maps_are_neither_copied_nor_pickled(tmp_path):
    images = numbered(100, size=32)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    source = ArraySource(mapped, np.repeat([0, 1], 50))
    assert np.shares_memory(source.images, mapped)
    data = pickle.dumps(source)
    assert len(data) < 5000
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.load([99, 3]), images[[99, 3]])
    assert type(again.load([0])) is np.ndarray
    part = pickle.loads(pickle.dumps(ArraySource(mapped[50:], [0] * 50)))
    np.testing.assert_array_equal(part.load([0]), images[[50]])


def test_subset_by_name_and_index():
    names = ["a", "b", "c"]
    source = ArraySource(numbered(6), [2, 1, 0, 0, 1, 2], names)
    view = source.subset(["c", "a"])
    assert view.class_names == ["c", "a"]
    np.testing.assert_array_equal(view.labels, [0, 1, 1, 0])
    np.testing.assert_array_equal(view.class_sizes, [2, 2])
    assert view.image_shape == (4, 4, 3)
    loaded = view.load(np.arange(4))[:, 0, 0, 0]
    np.testing.assert_array_equal(loaded, [0, 2, 3, 5])
    assert view.fingerprint() == source.subset(np.array([2, 0])).fingerprint()
    inner = pickle.loads(pickle.dumps(view)).subset(["a"])
    np.testing.assert_array_equal(inner.load([0, 1])[:, 0, 0, 0], [2, 3])


@pytest.mark.parametrize("classes", [[], ["d"], [3], [-1], ["a", 0]])
def test_subset_refuses(classes):
    source = ArraySource(numbered(3), [0, 1, 2], ["a", "b", "c"])
    with pytest.raises(ValueError, match="Expected `classes`.*Received"):
        source.subset(classes)


def test_split_classes():
    source = ArraySource(
        numbered(20), np.arange(20), [f"c{i}" for i in range(20)]
    )
    splits = source.split_classes(seed=3)
    assert list(splits) == ["train", "validation", "test"]
    names = [view.class_names for view in splits.values()]
    assert [len(part) for part in names] == [14, 3, 3]
    assert sorted(sum(names, [])) == sorted(source.class_names)
    assert names[0] == sorted(names[0], key=source.class_names.index)
    again = source.split_classes(seed=3)
    assert [view.class_names for view in again.values()] == names
    other = source.split_classes(seed=4)
    assert other["test"].class_names != names[2]
    pair = source.split_classes((3, 0, 1))
    assert list(pair) == ["train", "test"] and len(pair["test"].labels) == 5
    with pytest.raises(ValueError, match="three numbers"):
        source.split_classes((0.5, 0.5))
    with pytest.raises(ValueError, match="one class per split.*2 classes"):
        source.subset(["c1", "c2"]).split_classes()


def test_fingerprint():
    images, labels = numbered(20), np.repeat([0, 1], 10)
    source = ArraySource(images, labels)
    assert source.fingerprint() == "d32ca31b0cf7291a"
    narrow = ArraySource(images.copy(), labels.astype("int32"))
    assert narrow.fingerprint() == source.fingerprint()
    changed = images.copy()
    changed[0, 0, 0, 0] += 1
    for other in [
        ArraySource(changed, labels),
        ArraySource(images, labels[::-1].copy()),
        ArraySource(images, labels, ["a", "b"]),
        source.subset([0]),
    ]:
        assert other.fingerprint() != source.fingerprint()


class Constant(ImageSource):
    def __init__(self, labels, num_classes):
        self.labels = labels
        self.class_names = [str(i) for i in range(num_classes)]

    def load(self, indices):
        return np.zeros((len(indices), 6, 8, 1), "uint8")


def test_a_source_of_ones_own():
    source = Constant(np.array([0, 0, 1]), 2)
    assert source.image_shape == (6, 8, 1)
    assert source.subset([1]).image_size == (6, 8)
    with pytest.raises(ValueError, match="1 class names, largest label 1"):
        Constant(np.array([0, 1]), 1).class_sizes


@pytest.mark.parametrize("num_classes", [3, 70_000])
@pytest.mark.parametrize("ordered", [True, False])
def test_class_index(num_classes, ordered):
    labels = np.array([2, 0, 1, 1, 0, 2])
    labels = np.sort(labels) if ordered else labels
    index = ClassIndex(Constant(labels, num_classes))
    assert (index.order is None) == ordered
    picked = [np.array([1]), np.array([1, 0])]
    indices, episode_labels = index.take(np.array([2, 0]), picked)
    expected = [5, 1, 0] if ordered else [5, 4, 1]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(episode_labels, [0, 1, 1])
