"""Images of a Hugging Face data set."""

import numpy as np

from keras_smat.data.formats.decoding import Decoder
from keras_smat.data.sources import ImageSource


class HuggingFaceSource(ImageSource):
    """A `datasets.Dataset` with a column of images and one of labels.

    Images are decoded when an episode needs them. Classes without an image
    are left out. Class splits: `subset` takes lists of names,
    `split_classes` a seed. The package `datasets` is not imported here: the
    object brings it along.

    Args:
        dataset: `datasets.Dataset`, one split, not streamed.
        image_size: Integer or `(height, width)` of the images, in pixels.
            Defaults to 224.
        image_column: String. Defaults to `"image"`.
        label_column: String, a column of integers or of strings. Defaults to
            `"label"`.
        crop: Float in `(0, 1]` or `None`, as in `FolderSource`. Defaults to
            1.0.

    Raises:
        ValueError: if it is no such object, a column is missing, or a label
            is none of the column's classes; in `load`, if an image cannot
            be read.

    Example:

    ```
    dataset = datasets.load_dataset("beans", split="train")
    source = data.HuggingFaceSource(dataset, label_column="labels")
    ```
    """

    def __init__(
        self,
        dataset,
        image_size=224,
        image_column="image",
        label_column="label",
        crop=1.0,
    ):
        self.decoder = Decoder(image_size, crop)
        self.image_shape = self.decoder.shape
        self.image_column = image_column
        _check(dataset, image_column, label_column)
        dataset = dataset.with_format(None)  # Python objects, not tensors
        self.labels, self.class_names = _labels(dataset, label_column)
        dataset = dataset.select_columns([image_column])
        feature = dataset.features[image_column]
        if hasattr(feature, "decode"):
            # Encoded images: JPEG then decodes at a fraction of its size.
            encoded = type(feature)(decode=False)
            dataset = dataset.cast_column(image_column, encoded)
        self.dataset = dataset

    def load(self, indices):
        images = np.empty((len(indices), *self.image_shape), "uint8")
        for image, i, stored in zip(images, indices, self._stored(indices)):
            image[:] = self.decoder(stored, f"the image of row {i}")
        return images

    def content(self, indices):
        stored = self._stored(indices)
        if all(isinstance(image, bytes) for image in stored):
            return b"".join(stored)
        return super().content(indices)

    def _stored(self, indices):
        rows = [int(i) for i in indices]
        stored = self.dataset[rows][self.image_column] if rows else []
        return [_file(image) for image in stored]


def _file(image):
    """An encoded image comes as a dict of its bytes or its path."""
    if isinstance(image, dict):
        return image["path"] if image["bytes"] is None else image["bytes"]
    return image


def _check(dataset, *columns):
    single = hasattr(dataset, "with_format") and hasattr(dataset, "features")
    if not single or not hasattr(dataset, "__len__"):
        splits = ""
        if isinstance(dataset, dict):
            splits = f" with the splits {list(dataset)}; give one of them"
        raise ValueError(
            "Expected `dataset` as a `datasets.Dataset`, not streamed. "
            f"Received: {type(dataset).__name__}{splits}."
        )
    for column in columns:
        if column not in dataset.column_names:
            raise ValueError(
                f"Expected a column {column!r} in `dataset`. "
                f"Received: the columns {list(dataset.column_names)}."
            )


def _labels(dataset, column):
    """Returns int32 labels and the names of the classes that have images."""
    values = np.asarray(dataset[column][:])
    names = getattr(dataset.features[column], "names", None)
    held, labels = np.unique(values, return_inverse=True)
    if names is None:
        names = [str(value) for value in held]
    elif held.dtype.kind in "iu" and 0 <= held[0] <= held[-1] < len(names):
        names = [names[c] for c in held]
    else:
        raise ValueError(
            f"Expected labels in 0..{len(names) - 1} in column {column!r}. "
            f"Received: {held[0]} to {held[-1]}."
        )
    return labels.astype("int32"), names
