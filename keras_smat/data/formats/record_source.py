"""Images in the TFRecord files of Meta-Dataset."""

import os

import numpy as np

from keras_smat.data.formats.class_files import find_class_files
from keras_smat.data.formats.decoding import Decoder
from keras_smat.data.formats.example_source import ExampleSource
from keras_smat.data.formats.record_files import RecordFiles

SUFFIX = ".tfrecords"


class RecordSource(ExampleSource):
    """The TFRecord files of a Meta-Dataset folder, read without TensorFlow.

    The folder holds `dataset_spec.json` and one file per class,
    `<class_id>.tfrecords` (or several, `<class_id>_<shard>.tfrecords`).
    Where each record starts is found once and kept in a file; then any image
    is read in one step. Every record is checked by its checksums when it is
    read. Memory: 12 bytes per image; no file stays open.

    Args:
        directory: String or path of the folder. Without `dataset_spec.json`
            in it, each file is a class, named as the file.
        split: `"train"`, `"validation"` or `"test"`. Defaults to `None`: all
            classes.
        image_size: Integer or `(height, width)` of the images, in pixels.
            Defaults to 224.
        crop: Float in `(0, 1]` or `None`, as in `FolderSource`. Defaults to
            1.0.
        cache: String or path of the folder for the positions of the records.
            Defaults to `None`: `directory` itself.

    Attributes:
        hierarchy: `ClassHierarchy` of the split, or `None`.

    Raises:
        DatasetSpecError: if the specification is malformed.
        ValueError: if files are missing or cut off, or a class has another
            number of images than the specification says; in `load`, if a
            record is corrupt or its image cannot be read. The file and the
            byte are named.

    Example:

    ```python
    import os
    import tempfile

    import tensorflow as tf
    from keras_smat import data

    directory = tempfile.mkdtemp()
    for label, name in enumerate(["cat", "dog"]):
        path = os.path.join(directory, f"{name}.tfrecords")
        with tf.io.TFRecordWriter(path) as writer:
            example = tf.train.Example()
            feature = example.features.feature
            image = tf.io.encode_jpeg(tf.zeros((40, 50, 3), "uint8"))
            feature["image"].bytes_list.value.append(image.numpy())
            feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
    source = data.RecordSource(directory, image_size=32)
    source.class_names  # ["cat", "dog"]
    source.load([0, 1]).shape  # (2, 32, 32, 3)
    ```
    """

    def __init__(
        self, directory, split=None, image_size=224, crop=1.0, cache=None
    ):
        self.directory = os.fspath(directory)
        self.split = split
        self.decoder = Decoder(image_size, crop)
        self.image_shape = self.decoder.shape
        classes = find_class_files(self.directory, split, SUFFIX)
        classes.require(self.directory)
        self.class_names = classes.names
        self.hierarchy = classes.hierarchy
        paths = [path for paths in classes.paths for path in paths]
        self.records = RecordFiles(paths, cache_file(self.directory, cache))
        ends = np.cumsum([0, *(len(paths) for paths in classes.paths)])
        self.class_sizes = np.add.reduceat(self.records.counts, ends[:-1])
        classes.check_sizes(self.class_sizes, self.directory)
        numbers = np.arange(len(self.class_names), dtype="int32")
        self.labels = np.repeat(numbers, self.class_sizes)


def cache_file(directory, cache=None):
    """Returns the path of the file that keeps the positions of a folder."""
    name = os.path.basename(os.path.abspath(directory))
    return os.path.join(cache or directory, f"{name}.record_index.npz")
