import pathlib
import pickle
import types

import numpy as np
import pytest

from keras_smat import data
from keras_smat.data.formats import tfds_source

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("tensorflow", reason="the writer of the data sets")

FORMATS = ("tfrecord", "array_record")
TRAIN, TEST = 7, 4


def pixels(i):
    rng = np.random.default_rng(i)
    return rng.integers(0, 256, (6, 5, 3), "uint8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same small data set as TensorFlow Datasets writes it."""
    folder = tmp_path_factory.mktemp("tfds")

    class SmatShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = pathlib.Path(folder)

        def _info(self):
            names = ["круг", "unused", "square", "star"]
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "thumbnail": tfds.features.Image(shape=(2, 2, 3)),
                        "photo": tfds.features.Image(shape=(6, 5, 3)),
                        "kind": tfds.features.ClassLabel(names=names),
                    }
                ),
                supervised_keys=("photo", "kind"),
            )

        def _split_generators(self, _):
            ends = (0, TRAIN, TRAIN + TEST)
            return {
                "train": self._generate_examples(range(ends[0], ends[1])),
                "test": self._generate_examples(range(ends[1], ends[2])),
            }

        def _generate_examples(self, numbers):
            for i in numbers:
                small = np.zeros((2, 2, 3), "uint8")
                kind = [0, 2, 3][i % 3]
                yield i, {"photo": pixels(i), "thumbnail": small, "kind": kind}

    for kind in FORMATS:
        builder = tfds.builder(
            "smat_shapes", data_dir=folder / kind, file_format=kind
        )
        builder.download_and_prepare()
    return folder


def order_of(builder, split):
    """The numbers of the images, in the order of the files."""
    stored = list(builder.as_data_source(split))
    hashes = {pixels(i).tobytes(): i for i in range(TRAIN + TEST)}
    return [hashes[item["photo"].tobytes()] for item in stored]


@pytest.mark.parametrize("kind", FORMATS)
def test_reads_what_tfds_wrote(folders, kind, tmp_path):
    source = data.TFDSSource(
        "tfds://smat_shapes",
        image_size=(6, 5),
        data_dir=folders / kind,
        cache=tmp_path,
    )
    assert source.class_names == ["круг", "square", "star"]
    assert source.labels.dtype == "int32"
    assert source.class_sizes.sum() == TRAIN + TEST
    reference = tfds.builder("smat_shapes", data_dir=folders / "array_record")
    order = order_of(reference, "train") + order_of(reference, "test")
    np.testing.assert_array_equal(source.labels, np.array(order) % 3)
    images = source.load(np.arange(TRAIN + TEST))
    np.testing.assert_array_equal(images, [pixels(i) for i in order])
    np.testing.assert_array_equal(source.load([9, 0]), images[[9, 0]])
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.load([8]), images[[8]])
    assert again.fingerprint() == source.fingerprint()


def test_splits(folders, monkeypatch):
    def make(**kwargs):
        return data.TFDSSource(
            "smat_shapes", 8, data_dir=folders / "tfrecord", **kwargs
        )

    assert len(make(split="test").labels) == TEST
    assert len(make(split="train+test").labels) == TRAIN + TEST
    for split in ["train[:3]", "train[1:]"]:
        with pytest.raises(ValueError, match="whole splits"):
            make(split=split)
    with pytest.raises(ValueError, match=r"\['train', 'test'\].*'valid'"):
        make(split="valid")
    # The labels were kept, so no record is read again.
    monkeypatch.setattr(tfds_source, "parse", None)
    assert len(make(split="test").labels) == TEST


def test_labels_out_of_range(folders, monkeypatch, tmp_path):
    monkeypatch.setattr(tfds_source, "label_of", lambda *_: -1)
    with pytest.raises(ValueError, match="labels in 0..3.*from -1 to -1"):
        data.TFDSSource(
            "smat_shapes", data_dir=folders / "tfrecord", cache=tmp_path
        )


def test_not_prepared(tmp_path, folders):
    with pytest.raises(ValueError, match="'smat_shapes' to be prepared"):
        data.TFDSSource("smat_shapes", data_dir=tmp_path)


def test_other_features_and_formats():
    image, label = tfds.features.Image, tfds.features.ClassLabel
    info = types.SimpleNamespace(
        full_name="boxes/1.0.0",
        supervised_keys=None,
        features={"image": image(), "a": label(num_classes=2)},
    )
    assert tfds_source._features(info) == ("image", "a", ["0", "1"])
    info.features["b"] = label(num_classes=2)
    with pytest.raises(ValueError, match="for image classification.*boxes"):
        tfds_source._features(info)
    info.file_format = types.SimpleNamespace(value="parquet")
    builder = types.SimpleNamespace(info=info, data_path="there")
    with pytest.raises(ValueError, match="Received: 'parquet' in 'there'"):
        tfds_source._records(builder, [], "")


def test_the_sets_of_the_paper_exist():
    known = tfds.list_builders(with_community_datasets=False)
    for name in tfds_source.PAPER_SETS.values():
        name, _, config = name.partition("/")
        assert name in known
        if config:
            configs = tfds.builder_cls(name).BUILDER_CONFIGS
            assert config in [c.name for c in configs]
        assert f"`{name}" in data.TFDSSource.__doc__
