"""Images of TensorFlow Datasets, read without TensorFlow."""

import os

import numpy as np

from keras_smat.data.formats.cache import read_cache
from keras_smat.data.formats.cache import stamp
from keras_smat.data.formats.cache import write_cache
from keras_smat.data.formats.decoding import Decoder
from keras_smat.data.formats.example_source import ExampleSource
from keras_smat.data.formats.example_source import label_of
from keras_smat.data.formats.example_source import parse
from keras_smat.data.formats.record_files import RecordFiles

# The sets of the paper that TensorFlow Datasets has. Its releases, image
# counts and order of the classes are not those of Meta-Dataset, so neither
# are the class splits: give lists of names.
PAPER_SETS = {
    "ilsvrc_2012": "imagenet2012",
    "omniglot": "omniglot",
    "cu_birds": "caltech_birds2011",
    "dtd": "dtd",
    "quickdraw": "quickdraw_bitmap",
    "vgg_flower": "oxford_flowers102",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "mnist": "mnist",
    "sketch": "domainnet/sketch",
    "clipart": "domainnet/clipart",
    "food101": "food101",
    "pets": "oxford_iiit_pet",
    "cars": "cars196",
}


class TFDSSource(ExampleSource):
    """Any image-classification builder of TensorFlow Datasets.

    Its records are read by position, not as a stream, from the files that
    the builder prepared as `tfrecord` (its default) or `array_record`. The
    labels are read once, from all records, and kept in a file. Classes
    without an image in the split are left out. Class splits: `subset` takes
    lists of names, `split_classes` a seed.

    The sets of the paper that it has:

    | set | name | set | name |
    |---|---|---|---|
    | ImageNet | `imagenet2012` | CIFAR-10 | `cifar10` |
    | Omniglot | `omniglot` | CIFAR-100 | `cifar100` |
    | Birds | `caltech_birds2011` | MNIST | `mnist` |
    | Textures | `dtd` | Sketch | `domainnet/sketch` |
    | QuickDraw | `quickdraw_bitmap` | Clipart | `domainnet/clipart` |
    | Flowers | `oxford_flowers102` | Food | `food101` |
    | Cars | `cars196` | Pets | `oxford_iiit_pet` |

    It has neither Aircraft, Fungi nor Traffic Sign, and MSCOCO without crops.

    Args:
        name: String, as for `tfds.builder`: `"name"`, `"name/config"` or
            `"name/config:version"`; `"tfds://"` before it is allowed.
        image_size: Integer or `(height, width)` of the images, in pixels.
            Defaults to 224.
        split: String, splits of the builder joined by "+". Defaults to
            `"all"`.
        data_dir: String or path of the folder of prepared data sets.
            Defaults to `None`, that of TensorFlow Datasets.
        download: Boolean, whether to download and prepare what is missing.
            Defaults to `False`.
        crop: Float in `(0, 1]` or `None`, as in `FolderSource`. Defaults to
            1.0.
        cache: String or path of the folder for labels and positions.
            Defaults to `None`: the builder's own.

    Raises:
        ImportError: if tensorflow-datasets is not installed.
        ValueError: if the data set is not prepared, is in another format,
            has no single image and label per example, or a label is missing.

    Example:

    ```
    # Once, with access to the network:
    #     tensorflow_datasets.builder("mnist").download_and_prepare()
    source = data.TFDSSource("tfds://mnist", image_size=28)
    splits = source.split_classes((0.6, 0, 0.4), seed=0)
    ```
    """

    def __init__(
        self,
        name,
        image_size=224,
        split="all",
        data_dir=None,
        download=False,
        crop=1.0,
        cache=None,
    ):
        self.decoder = Decoder(image_size, crop)
        self.image_shape = self.decoder.shape
        builder = _prepared(name.removeprefix("tfds://"), data_dir, download)
        self.name = builder.info.full_name
        self.image_key, label_key, names = _features(builder.info)
        files = _files(builder, split)
        cache = os.path.join(
            cache or builder.data_path,
            f"{self.name.replace('/', '_')}_{split}",
        )
        self.records = _records(builder, files, f"{cache}.record_index.npz")
        labels = self._labels(label_key, files, f"{cache}.labels.npz")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
            raise ValueError(
                f"Expected labels in 0..{len(names) - 1} in the split "
                f"{split!r} of {self.name!r}. Received: labels from "
                f"{labels.min()} to {labels.max()}."
            )
        held = np.unique(labels)
        self.class_names = [names[c] for c in held]
        self.labels = np.searchsorted(held, labels).astype("int32")

    def _labels(self, key, files, cache):
        """Reads the labels of all records, or those that were kept."""
        stamps = np.array([stamp(file) for file in files], "int64")
        names = np.array([os.path.basename(file) for file in files])
        held = read_cache(cache)
        same = "labels" in held and np.array_equal(held.get("names"), names)
        if same and np.array_equal(held.get("stamps"), stamps):
            return held["labels"]
        labels = np.empty(len(self.records), "int32")
        for start in range(0, len(labels), 1000):  # not all of it in memory
            part = labels[start : start + 1000]
            where = np.arange(start, start + len(part))
            for k, payload, name in self.records.read(where):
                part[k] = label_of(parse(payload, name), name, key)
        write_cache(cache, labels=labels, names=names, stamps=stamps)
        return labels


def _records(builder, files, cache):
    kind = builder.info.file_format.value
    if kind == "tfrecord":
        return RecordFiles(files, cache)
    if kind == "array_record":
        return _ArrayRecords(files)
    raise ValueError(
        "Expected a data set prepared as `tfrecord` or `array_record`. "
        f"Received: {kind!r} in {os.fspath(builder.data_path)!r}."
    )


class _ArrayRecords:
    """`array_record` files with the interface of `RecordFiles`."""

    def __init__(self, paths):
        from array_record.python import array_record_data_source

        self.paths = paths
        self.source = array_record_data_source.ArrayRecordDataSource(paths)

    def __len__(self):
        return len(self.source)

    def read(self, indices):
        payloads = self.source.__getitems__([int(i) for i in indices])
        for k, payload in enumerate(payloads):
            yield k, payload, f"the record {indices[k]} of {self.paths}"


def _prepared(name, data_dir, download):
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "Expected tensorflow-datasets to read its data sets. Received: no "
            "such package; `pip install tensorflow-datasets`."
        ) from error
    builder = tfds.builder(name, data_dir=data_dir)
    if download:
        builder.download_and_prepare()
    if not builder.is_prepared():
        raise ValueError(
            f"Expected {name!r} to be prepared in {builder.data_dir!r}. "
            "Received: nothing there; `download=True` downloads and prepares "
            "it."
        )
    return builder


def _features(info):
    """Returns the names of image and label, and those of the classes."""
    import tensorflow_datasets as tfds

    found = []
    for kind in (tfds.features.Image, tfds.features.ClassLabel):
        keys = [k for k, f in info.features.items() if isinstance(f, kind)]
        if len(keys) > 1:
            keys = [k for k in keys if k in (info.supervised_keys or ())]
        if len(keys) != 1:
            raise ValueError(
                "Expected a data set for image classification, with one image "
                f"and one label per example. Received: {info.full_name!r} "
                f"with {info.features}."
            )
        found += keys
    return *found, list(info.features[found[1]].names)


def _files(builder, split):
    """Returns the paths of the files of some splits."""
    try:
        parts = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"Expected `split` as some of {list(builder.info.splits)}, joined "
            f"by '+', or 'all'. Received: split={split!r}."
        ) from error
    if any(p.skip or p.take not in (-1, p.examples_in_shard) for p in parts):
        raise ValueError(
            "Expected `split` to be whole splits; `subset` and "
            f"`split_classes` make splits by class. Received: split={split!r}."
        )
    return [os.fspath(part.filename) for part in parts]
