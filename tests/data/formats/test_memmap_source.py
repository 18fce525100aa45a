import os
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
from storage import values
from storage import write_records

from keras_smat import data
from keras_smat.data.formats import memmap_source


class Counting(data.ImageSource):
    """Images that are their own number; counts those it loads."""

    image_shape = (4, 4, 3)
    class_names = ["a", "ü"]
    labels = np.repeat([1, 0], [30, 70])

    def __init__(self):
        self.loaded = []
        self.fail_at = None

    def load(self, indices):
        self.loaded += list(indices)
        if self.fail_at in indices:
            raise ValueError("Expected an image.")
        images = np.empty((len(indices), 4, 4, 3), "uint8")
        images[:] = np.reshape(indices, (-1, 1, 1, 1))
        return images


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(memmap_source, "CHUNK", 8 * 48)  # eight images


@pytest.mark.parametrize("workers", [0, 3])
def test_convert(tmp_path, small_parts, workers):
    source, path = Counting(), tmp_path / "größe" / "set"
    fast = data.convert(source, path, workers=workers, verbose=0)
    assert values(fast) == list(range(100))
    assert fast.class_names == source.class_names
    np.testing.assert_array_equal(fast.labels, source.labels)
    assert fast.image_shape == (4, 4, 3)
    assert os.listdir(path.parent) == ["set"]
    assert isinstance(fast.images, np.memmap)
    assert len(pickle.dumps(fast)) < 5000
    again = pickle.loads(pickle.dumps(data.MemmapSource(path)))
    assert values(again, [99, 3]) == [99, 3]
    plain = np.load(path / "images.npy")
    np.testing.assert_array_equal(plain, fast.load(np.arange(100)))
    source.loaded.clear()
    assert values(data.convert(source, path, verbose=0), [5]) == [5]
    assert len(source.loaded) < 20  # the fingerprint's few


def test_split_and_hierarchy(tmp_path):
    root = write_records(tmp_path / "records", [3, 2, 4], train=2)
    source = data.RecordSource(root, "train", image_size=4)
    groups = [np.array([1]), np.array([0, 1])]
    source.hierarchy = memmap_source.ClassHierarchy(groups, "uniform")
    fast = data.convert(source, tmp_path / "fast", verbose=0)
    assert fast.split == "train"
    assert fast.hierarchy.fingerprint() == source.hierarchy.fingerprint()
    assert values(fast) == values(source)


def test_goes_on_after_an_error(tmp_path, small_parts):
    source, path = Counting(), tmp_path / "set"
    source.fail_at = 60
    with pytest.raises(ValueError, match="Expected an image"):
        data.convert(source, path, verbose=0)
    assert os.listdir(tmp_path) == ["set.partial"]
    with pytest.raises(ValueError, match="not finished: call `convert` again"):
        data.MemmapSource(path)
    with pytest.raises(ValueError, match="`convert` finished"):
        data.MemmapSource(f"{path}.partial")
    with pytest.raises(ValueError, match="Expected a data set"):
        data.check_dataset(tmp_path)
    images = tmp_path / "set.partial" / "images.npy"
    with open(images, "ab") as file:
        file.write(b"cut off")
    source.fail_at = None
    source.loaded.clear()
    fast = data.convert(source, path, verbose=0)
    assert values(fast) == list(range(100))
    assert not set(range(20, 40)) & set(source.loaded[8:])
    whole = data.convert(source, tmp_path / "whole", verbose=0)
    assert read_checksum(path) == read_checksum(tmp_path / "whole")
    np.testing.assert_array_equal(fast.images, whole.images)


def read_checksum(path):
    return memmap_source.read_about(path)["crc32c"]


@pytest.mark.parametrize("start", [0, 50, 128, 129])
def test_goes_on_from_any_byte(tmp_path, small_parts, start):
    whole = data.convert(Counting(), tmp_path / "whole", verbose=0)
    partial = tmp_path / "set.partial"
    partial.mkdir()
    content = (tmp_path / "whole" / "images.npy").read_bytes()
    (partial / "images.npy").write_bytes(content[:start])
    fast = data.convert(Counting(), tmp_path / "set", verbose=0)
    np.testing.assert_array_equal(fast.images, whole.images)
    assert read_checksum(tmp_path / "set") == read_checksum(tmp_path / "whole")


SCRIPT = """
import os, sys
sys.path[:0] = {tests!r}
from test_memmap_source import Counting, data, memmap_source

memmap_source.CHUNK = 8 * 48

class Killed(Counting):
    def load(self, indices):
        if indices[0] == 64:
            os.kill(os.getpid(), 9)
        return super().load(indices)

data.convert(Killed(), {path!r}, verbose=0)
"""


@pytest.mark.skipif(os.name == "nt", reason="the signal is that of POSIX")
@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="one backend is enough"
)
def test_goes_on_after_a_kill(tmp_path, small_parts):
    path = tmp_path / "set"
    here = os.path.dirname(__file__)
    tests = [here, os.path.dirname(here)]
    code = SCRIPT.format(tests=tests, path=str(path))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert result.returncode == -9, result.stderr.decode()
    assert os.listdir(tmp_path) == ["set.partial"]
    written = (tmp_path / "set.partial" / "images.npy").stat().st_size
    assert written == 128 + 48 * 64
    source = Counting()
    assert values(data.convert(source, path, verbose=0)) == list(range(100))
    spread = set(np.linspace(0, 99, 8).astype(int))  # for the fingerprint
    assert set(range(64)) & set(source.loaded) <= spread


def test_other_sources_are_refused(tmp_path):
    data.convert(Counting(), tmp_path / "set", verbose=0)
    other = data.ArraySource(np.zeros((2, 4, 4, 3), "uint8"), [0, 1])
    with pytest.raises(ValueError, match="new or made from this source"):
        data.convert(other, tmp_path / "set")
    os.rename(tmp_path / "set", tmp_path / "new.partial")
    with pytest.raises(ValueError, match="new or made from this source"):
        data.convert(other, tmp_path / "new")


def test_a_source_that_changes_meanwhile(tmp_path):
    class Growing(Counting):
        def load(self, indices):
            images = super().load(indices)
            return np.repeat(images, 2, 0) if len(indices) > 8 else images

    with pytest.raises(ValueError, match="Expected 4928 bytes.*changed"):
        data.convert(Growing(), tmp_path / "set", verbose=0)
    assert os.listdir(tmp_path) == ["set.partial"]


@pytest.mark.parametrize("content", [None, "no JSON", "[]", "{}"])
def test_no_such_folder(tmp_path, content):
    if content is not None:
        (tmp_path / "about.json").write_text(content)
    with pytest.raises(ValueError, match="a folder that `convert` wrote"):
        data.MemmapSource(tmp_path)
