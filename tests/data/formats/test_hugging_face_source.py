import pickle

import numpy as np
import pytest
from storage import png
from storage import values

from keras_smat import data


class ImageFeature:
    def __init__(self, decode=True):
        self.decode = decode


class ClassFeature:
    def __init__(self, names):
        self.names = names


class Fake:
    """As much of `datasets.Dataset` as the source uses."""

    def __init__(self, columns, features):
        self.columns, self.features = columns, features

    @property
    def column_names(self):
        return list(self.columns)

    def __len__(self):
        return len(self.columns["label"])

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        assert type(key) is list and all(type(i) is int for i in key)
        return {k: [v[i] for i in key] for k, v in self.columns.items()}

    def with_format(self, kind):
        assert kind is None
        return self

    def select_columns(self, names):
        columns = {name: self.columns[name] for name in names}
        return Fake(columns, {name: self.features[name] for name in names})

    def cast_column(self, name, feature):
        assert isinstance(feature, ImageFeature) and not feature.decode
        return Fake(self.columns, {**self.features, name: feature})


def make(labels=(2, 0, 2), names=("a", "b", "ć"), **columns):
    stored = [{"bytes": png(i), "path": None} for i in range(len(labels))]
    features = {"image": ImageFeature(), "label": ClassFeature(names)}
    if names is None:
        features["label"] = object()
    return Fake({"image": stored, "label": list(labels), **columns}, features)


def test_reads_a_dataset():
    source = data.HuggingFaceSource(make(), image_size=4)
    assert source.class_names == ["a", "ć"]  # no image is a "b"
    assert source.labels.tolist() == [1, 0, 1]
    assert values(source, np.array([2, 0])) == [2, 0]
    assert source.load([]).shape == (0, 4, 4, 3)
    again = pickle.loads(pickle.dumps(source))
    assert values(again) == [0, 1, 2]
    assert again.fingerprint() == source.fingerprint()


def test_other_labels_and_images(tmp_path):
    (tmp_path / "żółw.png").write_bytes(png(7))
    path = str(tmp_path / "żółw.png")
    pixels = np.full((4, 4, 3), 9, "uint8")
    dataset = make(["x", "y"], None)
    dataset.columns["image"] = [{"bytes": None, "path": path}, pixels]
    dataset.features["image"] = object()
    source = data.HuggingFaceSource(dataset, image_size=4)
    assert source.class_names == ["x", "y"]
    assert values(source) == [7, 9]
    assert len(source.fingerprint()) == 16
    numbers = data.HuggingFaceSource(make([30, 5], None), image_size=4)
    assert numbers.class_names == ["5", "30"]
    assert numbers.labels.tolist() == [1, 0]


def test_refuses():
    with pytest.raises(ValueError, match="a column 'fine'.*'image', 'label'"):
        data.HuggingFaceSource(make(), label_column="fine")
    with pytest.raises(ValueError, match=r"splits \['train'\]; give one"):
        data.HuggingFaceSource({"train": make()})
    with pytest.raises(ValueError, match="not streamed.*Received: object"):
        data.HuggingFaceSource(object())
    with pytest.raises(ValueError, match="labels in 0..2.*-1 to 1"):
        data.HuggingFaceSource(make([-1, 1]))
    bad = make()
    bad.columns["image"][1] = {"bytes": b"no image", "path": None}
    with pytest.raises(ValueError, match="image of row 1, which cannot"):
        data.HuggingFaceSource(bad).load([0, 1])


def test_the_real_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"])
    )
    rows = {"image": [{"bytes": png(i)} for i in range(4)], "label": [0, 1] * 2}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.save_to_disk(tmp_path)
    for kind in (None, "numpy"):
        stored = datasets.load_from_disk(tmp_path).with_format(kind)
        source = data.HuggingFaceSource(stored, image_size=4)
        assert source.class_names == ["a", "b"]
        assert source.labels.tolist() == [0, 1, 0, 1]
        assert values(pickle.loads(pickle.dumps(source))) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="splits"):
        data.HuggingFaceSource(datasets.DatasetDict(train=dataset))
    with pytest.raises(ValueError, match="not streamed"):
        data.HuggingFaceSource(dataset.to_iterable_dataset())
