"""Which files hold which class of a Meta-Dataset folder."""

import dataclasses
import os

import numpy as np

from keras_smat.data.arguments import some
from keras_smat.data.dataset_spec import SPLITS
from keras_smat.data.dataset_spec import read_dataset_spec
from keras_smat.data.spec_fields import FILE


@dataclasses.dataclass(frozen=True, eq=False)
class ClassFiles:
    """The classes of one split.

    Attributes:
        names: List of strings.
        ids: List of integers or `None`, the labels inside the files.
        paths: List of lists of strings, the files of each class.
        sizes: Integer array, the images each class should have, or `None`.
        hierarchy: `ClassHierarchy` or `None`.
    """

    names: list
    ids: list
    paths: list
    sizes: np.ndarray | None = None
    hierarchy: object = None

    def check_sizes(self, sizes, directory):
        """Raises a `ValueError` if a class has other images than it should.

        Args:
            sizes: Integer array of shape `(classes,)`, the images there are.
            directory: String, for the error.
        """
        wrong = sizes == 0
        if self.sizes is not None:
            wrong |= sizes != self.sizes
        if wrong.any():
            named = [self.describe(i, sizes[i]) for i in np.flatnonzero(wrong)]
            more = len(named) - 5
            more = f"; and {more} more classes" if more > 0 else ""
            raise ValueError(
                f"Expected all images of every class in {directory!r}. "
                f"Received: {'; '.join(named[:5])}{more}."
            )

    def describe(self, i, size):
        """Says how many images a class has and should have."""
        text = f"class {self.names[i]!r} has {size} images"
        if self.sizes is not None:
            text += f", should have {self.sizes[i]}"
        return text

    def require(self, directory):
        """Raises a `ValueError` if a file is missing."""
        paths = [path for paths in self.paths for path in paths]
        missing = [p for p in paths if not os.path.isfile(p)]
        empty = [n for n, paths in zip(self.names, self.paths) if not paths]
        if missing or empty:
            names = [os.path.basename(path) for path in missing]
            names += [f"any file of class {name!r}" for name in empty]
            raise ValueError(
                f"Expected the files of all {len(self.names)} classes in "
                f"{directory!r}. Received: a folder without {some(names)}, "
                f"{len(names)} in all."
            )


def find_class_files(directory, split, suffix):
    """Reads from `dataset_spec.json` which files there should be.

    Args:
        directory: String. Without a specification in it, every file with the
            suffix is a class.
        split: `"train"`, `"validation"`, `"test"`, or `None` for all classes.
        suffix: String, such as `".h5"`.

    Returns:
        `ClassFiles`; its files need not exist.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(
            f"Expected `split` as one of {list(SPLITS)} or None. "
            f"Received: split={split!r}."
        )
    if not os.path.isdir(directory):
        raise ValueError(
            "Expected `directory` to be a folder. "
            f"Received: directory={directory!r}."
        )
    if os.path.exists(os.path.join(directory, FILE)) or split is not None:
        return _specified(read_dataset_spec(directory), split, suffix)
    with os.scandir(directory) as entries:
        files = [e.name for e in entries if e.name.endswith(suffix)]
    if not files:
        raise ValueError(
            f"Expected {FILE} or files that end in {suffix} in `directory`. "
            f"Received: directory={directory!r} without them."
        )
    files.sort(key=lambda name: (len(name), name))  # 2 comes before 10
    names = [name.removesuffix(suffix) for name in files]
    return ClassFiles(
        names,
        [int(name) if name.isdecimal() else None for name in names],
        [[os.path.join(directory, name)] for name in files],
    )


def _specified(spec, split, suffix):
    ids = np.arange(len(spec.class_names))
    if split is not None:
        ids = np.asarray(spec.splits[split])
    if not len(ids):
        held = [name for name, classes in spec.splits.items() if len(classes)]
        raise ValueError(
            f"Expected classes in the split {split!r} of {spec.folder!r}. "
            f"Received: a data set with classes for {held} alone."
        )
    return ClassFiles(
        [spec.class_names[i] for i in ids],
        ids.tolist(),
        [
            [os.path.join(spec.folder, name) for name in spec.files(i, suffix)]
            for i in ids
        ],
        spec.class_sizes[ids],
        spec.hierarchy(split) if split else None,
    )
