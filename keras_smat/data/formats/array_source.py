"""Images that are one array."""

import mmap

import numpy as np

from keras_smat.data.episode import check_images
from keras_smat.data.episode import check_labels
from keras_smat.data.sources import ImageSource


class ArraySource(ImageSource):
    """Images that are one array, in memory or memory-mapped.

    Args:
        images: uint8 array or `numpy.memmap` of shape `(N, H, W, C)`, pixels
            in `[0, 255]`. It is not copied.
        labels: Integers of shape `(N,)` that use every class `0..classes-1`.
        class_names: List of strings. Defaults to `None`: "0", "1", ...

    Raises:
        ValueError: if images or labels are not as above, or the number of
            names is not the number of classes.

    Example:

    ```python
    import numpy as np
    from keras_smat import data

    images = np.zeros((6, 32, 32, 3), "uint8")
    source = data.ArraySource(images, [0, 0, 0, 1, 1, 1], ["cat", "dog"])
    source.class_sizes  # [3, 3]
    ```
    """

    def __init__(self, images, labels, class_names=None):
        checked = check_images(images)
        self.images = images if isinstance(images, np.memmap) else checked
        self.labels = check_labels(labels, len(checked))
        way = int(self.labels.max()) + 1
        if class_names is None:
            class_names = range(way)
        self.class_names = [str(name) for name in class_names]
        if len(self.class_names) != way or len(set(self.class_names)) != way:
            raise ValueError(
                f"Expected `class_names` as {way} different names, one per "
                f"class. Received: {len(self.class_names)} names, "
                f"{self.class_names[:5]}."
            )

    @property
    def image_shape(self):
        return tuple(self.images.shape[1:])

    def load(self, indices):
        return np.asarray(self.images[indices])

    def __getstate__(self):
        # A memory map pickles as all its pixels: send the file's name.
        images, mapped = self.images, None
        if isinstance(images.base, mmap.mmap) and images.filename:
            order = "C" if images.flags.c_contiguous else "F"
            mapped = (images.offset, images.shape, order)
            mapped = (images.filename, images.dtype, "r", *mapped)
        return {**vars(self), "images": None if mapped else images}, mapped

    def __setstate__(self, state):
        values, mapped = state
        vars(self).update(values)
        if mapped:
            self.images = np.memmap(*mapped)
