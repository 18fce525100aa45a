import pickle

import h5py
import numpy as np
import pytest
from storage import spec
from storage import values
from storage import write_h5
from storage import write_spec

from keras_smat import data


def test_pixel_exact(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 9, 7, 3), "uint8")
    root = tmp_path / "Größe 大"
    write_spec(root, spec([12]))
    with h5py.File(root / "0.h5", "w") as file:
        for i in rng.permutation(12):
            file[f"{i}/image"] = pixels[i]
            file[f"{i}/label"] = [0]
            file[f"{i}/id"] = 5
    source = data.H5Source(root, "train", image_size=(9, 7))
    np.testing.assert_array_equal(source.load(np.arange(12)), pixels)
    np.testing.assert_array_equal(source.load([11, 2]), pixels[[11, 2]])
    other = data.H5Source(root, "train", image_size=8)
    assert other.load([3]).shape == (1, 8, 8, 3)
    assert source.load([]).shape == (0, 9, 7, 3)


def test_classes_and_splits(tmp_path):
    root = write_h5(tmp_path, [3, 2, 4], train=2)
    source = data.H5Source(root, image_size=4)
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert values(source) == [0, 1, 2, 10, 11, 20, 21, 22, 23]
    test = data.H5Source(root, "test", image_size=4)
    assert test.class_names == ["class 2"] and test.split == "test"
    assert values(test, [3, 0]) == [23, 20]
    again = pickle.loads(pickle.dumps(source))
    assert values(again) == values(source)
    assert again.fingerprint() == source.fingerprint()
    (root / "dataset_spec.json").unlink()
    free = data.H5Source(root, image_size=4)
    assert free.class_names == ["0", "1", "2"]
    assert values(free) == values(source)


@pytest.mark.parametrize("has, should", [(2, 3), (3, 2), (0, 1), (0, 0)])
def test_wrong_counts(tmp_path, has, should):
    root = write_h5(tmp_path, [2, has])
    write_spec(root, spec([2, should]))
    message = f"class 'class 1' has {has} images, should have {should}"
    with pytest.raises(ValueError, match=message):
        data.H5Source(root)


def test_missing_and_truncated_files(tmp_path):
    root = write_h5(tmp_path, [2, 2, 2])
    whole = (root / "1.h5").read_bytes()
    for end in range(0, len(whole), 97):
        (root / "1.h5").write_bytes(whole[:end])
        with pytest.raises(ValueError, match="an HDF5 file.*1.h5"):
            data.H5Source(root)
    (root / "1.h5").unlink()
    (root / "2.h5").unlink()
    with pytest.raises(ValueError, match=r"\[1.h5, 2.h5\], 2 in all"):
        data.H5Source(root)


@pytest.mark.parametrize(
    "pixels", [None, np.zeros((4, 4, 5), "uint8"), np.zeros(3), "text"]
)
def test_groups_without_an_image(tmp_path, pixels):
    root = write_h5(tmp_path, [3])
    source = data.H5Source(root, image_size=4)
    with h5py.File(root / "0.h5", "a") as file:
        del file["1/image"]
        if pixels is not None:
            file["1/image"] = pixels
    assert values(source, [0, 2]) == [0, 2]
    with pytest.raises(ValueError, match="an image.*image 1 of .*0.h5"):
        source.load([0, 1])
