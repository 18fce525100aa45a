"""A source written outside the library: packs, one `.npz` per data set.

A pack has `data` (encoded images one after the other, uint8), `offsets`
(where each starts, and the end), `labels` and `class_names`. All that a
source needs is `labels`, `class_names` and `load`; the rest here is speed.
"""

import concurrent.futures
import functools
import io
import os

import numpy as np
from PIL import Image

from keras_smat import data


class PackSource(data.ImageSource):
    """Encoded images in one `.npz` file, decoded when first needed.

    The decoded pack stays in memory: `3 * image_size**2` bytes per image.

    Args:
        path: Path of the file.
        image_size: Integer, side of the images in pixels.
    """

    def __init__(self, path, image_size):
        with np.load(path, allow_pickle=False) as pack:
            self.bytes = pack["data"]
            self.offsets = pack["offsets"]
            self.labels = pack["labels"]
            self.class_names = [str(name) for name in pack["class_names"]]
        self.image_shape = (image_size, image_size, 3)

    def load(self, indices):
        return self.images[indices]

    def content(self, indices):
        return b"".join(self.encoded(i) for i in indices)

    def encoded(self, i):
        return self.bytes[self.offsets[i] : self.offsets[i + 1]].tobytes()

    @functools.cached_property
    def images(self):
        images = np.empty((len(self.labels), *self.image_shape), "uint8")

        def decode(i):
            image = Image.open(io.BytesIO(self.encoded(i))).convert("RGB")
            size = self.image_shape[1::-1]
            if image.size != size:
                image = image.resize(size, Image.Resampling.BICUBIC)
            images[i] = image

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(decode, range(len(images))):
                pass
        return images
