"""Where the images come from: the protocol of all sources, and views."""

import functools
import hashlib

import numpy as np

from keras_smat.checks import check_integer


class ImageSource:
    """Base class of all sources: labelled images that can be loaded by index.

    A subclass sets `labels` and `class_names` and writes `load`; overriding
    `image_shape` spares loading an image to find it out. A source must pickle
    and must not change, since worker processes get copies.

    Attributes:
        labels: Integer array of shape `(N,)`, the class of each image, in
            any order.
        class_names: List of strings, the name of each class.
        hierarchy: `ClassHierarchy` over the classes, for samplers that use
            one. Defaults to `None`, as in every `subset`.
        role: `"ID"` or `"OOD"`, whether models were trained on the domain.
            Defaults to `None`, unknown.

    Example:

    ```python
    import numpy as np
    from keras_smat import data


    class Noise(data.ImageSource):
        labels = np.repeat([0, 1, 2], 100)
        class_names = ["faint", "medium", "strong"]

        def load(self, indices):
            return np.stack([self.draw(i) for i in indices])

        def draw(self, i):
            high = 80 * (self.labels[i] + 1)
            rng = np.random.default_rng(i)
            return rng.integers(0, high, (32, 32, 3), "uint8")


    Noise().class_sizes  # [100, 100, 100]
    ```
    """

    hierarchy = None
    role = None

    def load(self, indices):
        """Loads images.

        Args:
            indices: Integer array of shape `(n,)`, positions in `labels`.

        Returns:
            uint8 array of shape `(n, H, W, C)`, `C` 1 or 3.
        """
        raise NotImplementedError

    @functools.cached_property
    def class_sizes(self):
        """Integer array: how many images each class has."""
        sizes = np.bincount(self.labels, minlength=len(self.class_names))
        if len(sizes) != len(self.class_names):
            raise ValueError(
                "Expected one name per class. Received: "
                f"{len(self.class_names)} class names, largest label "
                f"{len(sizes) - 1}."
            )
        return sizes

    @functools.cached_property
    def image_shape(self):
        """Tuple `(H, W, C)`."""
        return tuple(self.load(np.arange(1)).shape[1:])

    @property
    def image_size(self):
        """Tuple `(H, W)`, in pixels."""
        return self.image_shape[:2]

    def content(self, indices):
        """Returns bytes that change with the images at `indices`."""
        return np.ascontiguousarray(self.load(indices)).tobytes()

    def fingerprint(self):
        """Returns 16 hex digits that tell data sets apart.

        They cover all labels, all class names, the image size and a sample
        of eight images spread over the data.
        """
        spread = np.linspace(0, len(self.labels) - 1, 8).astype("int64")
        digest = hashlib.sha256()
        for start in range(0, len(self.labels), 10**6):  # no copy of them all
            part = self.labels[start : start + 10**6]
            digest.update(np.asarray(part, "<i8").tobytes())
        digest.update(repr((self.class_names, self.image_shape)).encode())
        digest.update(self.content(np.unique(spread)))
        return digest.hexdigest()[:16]

    def subset(self, classes):
        """Returns a view of some classes, as for a class split.

        Args:
            classes: List of class names or of class indices; the view's
                classes have this order.

        Returns:
            An `ImageSource` that loads through this one.

        Raises:
            ValueError: if the list is empty or a class is unknown or twice.
        """
        names = list(self.class_names)
        ids = {name: i for i, name in enumerate(names)}
        chosen = [ids.get(c, c) for c in classes]
        unknown = [c for c in chosen if c not in range(len(names))]
        if unknown or not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(
                "Expected `classes` as different names or indices of the "
                f"source's {len(names)} classes ({names[:5]}, ...). "
                f"Received: classes={list(classes)}, unknown: {unknown}."
            )
        new = np.full(len(names), -1)
        new[chosen] = np.arange(len(chosen))
        labels = new[self.labels]
        positions = np.flatnonzero(labels >= 0)
        names = [names[c] for c in chosen]
        return _View(self, positions, labels[positions], names)

    def split_classes(self, shares=(0.7, 0.15, 0.15), seed=0):
        """Splits the classes at random, for data without a class split.

        Args:
            shares: Three numbers, the relative sizes of the splits. Defaults
                to those of Meta-Dataset.
            seed: Non-negative integer. Defaults to 0.

        Returns:
            A dict of the views `"train"`, `"validation"` and `"test"`, whose
            classes keep their order; a split of share 0 is left out.

        Raises:
            ValueError: if there are not three shares, or a split is left
                without a class.
        """
        shares = np.asarray(shares, "float64")
        if shares.shape != (3,) or (shares < 0).any() or not shares.sum() > 0:
            raise ValueError(
                "Expected `shares` as three numbers of at least 0, not all 0. "
                f"Received: shares={shares.tolist()}."
            )
        total = len(self.class_names)
        ends = np.rint(total * np.cumsum(shares) / shares.sum()).astype(int)
        rng = np.random.default_rng(check_integer("seed", seed, 0))
        parts = np.split(rng.permutation(total), ends[:-1])
        names = ("train", "validation", "test")
        if any(s > 0 and not len(p) for s, p in zip(shares, parts)):
            raise ValueError(
                "Expected at least one class per split. Received: "
                f"{total} classes, shares={shares.tolist()}."
            )
        return {
            name: self.subset(np.sort(part))
            for name, part in zip(names, parts)
            if len(part)
        }


class _View(ImageSource):
    """Images of another source, in any order and with other labels."""

    def __init__(self, source, positions, labels, class_names):
        self.source = source
        self.positions = positions
        self.labels = labels
        self.class_names = class_names

    @property
    def image_shape(self):
        return self.source.image_shape

    def load(self, indices):
        return self.source.load(self.positions[indices])

    def content(self, indices):
        return self.source.content(self.positions[indices])


def repeat_images(source, at_least):
    """Returns a view of `source` that shows the images of a smaller class
    again and again, up to `at_least`."""
    index = ClassIndex(source)
    places = [
        np.resize(np.arange(n), max(n, at_least)) for n in source.class_sizes
    ]
    positions, labels = index.take(np.arange(len(places)), places)
    return _View(source, positions, labels, list(source.class_names))


class ClassIndex:
    """Finds the images of a class.

    It holds two integer arrays and no Python object per image, and only one
    of them if the labels are sorted.
    """

    def __init__(self, source):
        labels = np.asarray(source.labels)
        self.starts = np.cumsum(source.class_sizes) - source.class_sizes
        self.order = None
        if np.any(labels[1:] < labels[:-1]):
            if len(self.starts) <= 2**16:
                labels = labels.astype("uint16")  # NumPy's fast radix sort
            self.order = np.argsort(labels, kind="stable")

    def take(self, classes, positions):
        """Returns indices and episode labels, both of shape `(N,)`.

        Args:
            classes: Integer array of shape `(way,)`.
            positions: List of `way` integer arrays, positions within the
                class.
        """
        pairs = zip(classes, positions)
        indices = np.concatenate([self.starts[c] + p for c, p in pairs])
        labels = np.repeat(np.arange(len(classes)), [*map(len, positions)])
        if self.order is not None:
            indices = self.order[indices]
        return indices, labels
