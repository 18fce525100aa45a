"""Images in the HDF5 files that PMF reads."""

import os

import h5py
import numpy as np

from keras_smat.data.formats.class_files import find_class_files
from keras_smat.data.formats.decoding import Decoder
from keras_smat.data.formats.record_files import by_file
from keras_smat.data.sources import ImageSource

SUFFIX = ".h5"


class H5Source(ImageSource):
    """The HDF5 files of PMF: one per class, one group per image.

    The folder holds `dataset_spec.json` and `<class_id>.h5`, whose groups
    "0", "1", ... have the pixels as `image`, uint8 `(H, W, 3)`. Images that
    have the size asked for keep their pixels. HDF5 checks none of these, so
    a flipped bit in a pixel goes unseen. Memory: 4 bytes per image; no file
    stays open.

    Args:
        directory: String or path of the folder. Without `dataset_spec.json`
            in it, each file is a class, named as the file.
        split: `"train"`, `"validation"` or `"test"`. Defaults to `None`: all
            classes.
        image_size: Integer or `(height, width)` of the images, in pixels.
            Defaults to 224.
        crop: Float in `(0, 1]` or `None`, as in `FolderSource`. Defaults to
            1.0.

    Attributes:
        hierarchy: `ClassHierarchy` of the split, or `None`.

    Raises:
        DatasetSpecError: if the specification is malformed.
        ValueError: if files are missing or unreadable, or a class has
            another number of images than the specification says; in `load`,
            if an image is unreadable.

    Example:

    ```python
    import tempfile

    import h5py
    import numpy as np
    from keras_smat import data

    directory = tempfile.mkdtemp()
    for name in ["cat", "dog"]:
        with h5py.File(f"{directory}/{name}.h5", "w") as file:
            file["0/image"] = np.zeros((224, 224, 3), "uint8")
    source = data.H5Source(directory, image_size=32)
    source.class_names  # ["cat", "dog"]
    source.load([0, 1]).shape  # (2, 32, 32, 3)
    ```
    """

    def __init__(self, directory, split=None, image_size=224, crop=1.0):
        self.directory = os.fspath(directory)
        self.split = split
        self.decoder = Decoder(image_size, crop)
        self.image_shape = self.decoder.shape
        classes = find_class_files(self.directory, split, SUFFIX)
        classes.require(self.directory)
        self.class_names = classes.names
        self.hierarchy = classes.hierarchy
        self.paths = [paths[0] for paths in classes.paths]
        expected = [None] * len(self.paths)
        if classes.sizes is not None:
            expected = classes.sizes
        pairs = zip(self.paths, expected)
        self.class_sizes = np.array([count_images(*pair) for pair in pairs])
        classes.check_sizes(self.class_sizes, self.directory)
        numbers = np.arange(len(self.paths), dtype="int32")
        self.labels = np.repeat(numbers, self.class_sizes)
        self.starts = np.cumsum(self.class_sizes) - self.class_sizes

    def load(self, indices):
        images = np.empty((len(indices), *self.image_shape), "uint8")
        for k, pixels, name in self._read(indices):
            images[k] = self.decoder(pixels, name)
        return images

    def content(self, indices):
        read = {k: pixels.tobytes() for k, pixels, _ in self._read(indices)}
        return b"".join(read[k] for k in range(len(read)))

    def _read(self, indices):
        for c, group in by_file(self.starts, indices):
            with open_h5(self.paths[c]) as file:
                for k in group:
                    number = indices[k] - self.starts[c]
                    name = f"the image {number} of {self.paths[c]!r}"
                    yield k, read_h5(file, number, name)[0], name


def open_h5(path):
    """Opens an HDF5 file for reading."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(
            f"Expected an HDF5 file. Received: {path!r}, which cannot be "
            f"read: {error}"
        ) from error


def count_images(path, expected=None):
    """Returns the number of groups; quickly if it is `expected`."""
    with open_h5(path) as file:
        try:
            if expected and f"{expected - 1}" in file:
                if f"{expected}" not in file:
                    return int(expected)
            return len(file)
        except Exception as error:  # h5py raises many types.
            raise ValueError(
                f"Expected an HDF5 file. Received: {path!r}, which cannot be "
                f"read: {error}"
            ) from error


def read_h5(file, number, name):
    """Returns the pixels and the label (or `None`) of one image.

    Args:
        file: Open HDF5 file.
        number: Integer.
        name: String, how an error calls the image.
    """
    try:
        group = file[f"{number}"]
        label = np.ravel(group["label"][()]) if "label" in group else []
        return group["image"][()], int(label[0]) if len(label) else None
    except Exception as error:  # h5py raises many types.
        raise ValueError(
            f"Expected an image. Received: {name}, which cannot be read: "
            f"{error}"
        ) from error
