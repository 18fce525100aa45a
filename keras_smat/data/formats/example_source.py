"""Images that are stored as `tf.train.Example`, one per record."""

import numpy as np

from keras_smat.data.formats.example import read_example
from keras_smat.data.sources import ImageSource


class ExampleSource(ImageSource):
    """Base class of sources whose images are records.

    A subclass sets `labels`, `class_names`, `image_shape` and what follows.

    Attributes:
        records: Has `read(indices)`, as `RecordFiles`.
        decoder: `Decoder`.
        image_key: String, the feature with the encoded image.
    """

    image_key = "image"

    def load(self, indices):
        images = np.empty((len(indices), *self.image_shape), "uint8")
        for k, payload, name in self.records.read(indices):
            example = parse(payload, name)
            encoded = image_of(example, name, self.image_key)
            images[k] = self.decoder(encoded, name)
        return images

    def content(self, indices):
        read = {k: payload for k, payload, _ in self.records.read(indices)}
        return b"".join(read[k] for k in range(len(read)))


def parse(payload, name):
    """Returns the features of a record, or says what is wrong with it.

    Args:
        payload: Bytes.
        name: String, how an error calls the record.
    """
    try:
        return read_example(payload)
    except ValueError as error:
        raise ValueError(
            f"Expected a tf.train.Example. Received: {name}, where {error}."
        ) from error


def image_of(example, name, key="image"):
    """Returns the bytes of the image file in an example."""
    values = example.get(key) or [None]
    if len(values) != 1 or not isinstance(values[0], bytes):
        raise ValueError(
            f"Expected one image as the feature {key!r}. "
            f"Received: {name}, with the features {list(example)}."
        )
    return values[0]


def label_of(example, name, key="label"):
    """Returns the label in an example, an integer."""
    values = example.get(key) or [None]
    if len(values) != 1 or not isinstance(values[0], int):
        raise ValueError(
            f"Expected one integer as the feature {key!r}. "
            f"Received: {name}, with the features {list(example)}."
        )
    return values[0]
