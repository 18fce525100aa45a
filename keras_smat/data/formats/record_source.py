"""Images in the TFRecord files of Meta-Dataset."""

import os

import numpy as np

from keras_smat.data.formats.class_files import find_class_files
from keras_smat.data.formats.decoding import Decoder
from keras_smat.data.formats.example import read_example
from keras_smat.data.formats.record_files import RecordFiles
from keras_smat.data.sources import ImageSource

SUFFIX = ".tfrecords"


class RecordSource(ImageSource):
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
    import json
    from keras_smat import data

    source = data.RecordSource(root / "aircraft", "train", image_size=112)
    source.class_names[0]  # "A340-300"
    source.load([0, 1]).shape  # (2, 112, 112, 3)
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

    def load(self, indices):
        images = np.empty((len(indices), *self.image_shape), "uint8")
        for k, payload, name in self.records.read(indices):
            encoded, _ = read_image(payload, name)
            images[k] = self.decoder(encoded, name)
        return images

    def content(self, indices):
        read = {k: payload for k, payload, _ in self.records.read(indices)}
        return b"".join(read[k] for k in range(len(read)))


def cache_file(directory, cache=None):
    """Returns the path of the file that keeps the positions of a folder."""
    name = os.path.basename(os.path.abspath(directory))
    return os.path.join(cache or directory, f"{name}.record_index.npz")


def read_image(payload, name, image_key="image", label_key="label"):
    """Returns the encoded image and the label of a `tf.train.Example`.

    Args:
        payload: Bytes.
        name: String, how an error calls the record.
        image_key, label_key: Strings, the names of the features.

    Raises:
        ValueError: if the example is malformed or has no such image.
    """
    try:
        example = read_example(payload)
    except ValueError as error:
        raise ValueError(
            f"Expected a tf.train.Example. Received: {name}, where {error}."
        ) from error
    image, label = example.get(image_key), example.get(label_key)
    if not image or len(image) != 1 or not isinstance(image[0], bytes):
        raise ValueError(
            f"Expected one image as the feature {image_key!r}. "
            f"Received: {name}, with the features {list(example)}."
        )
    whole = label and len(label) == 1 and isinstance(label[0], int)
    return image[0], label[0] if whole else None
