"""Opening the folder of one set, in whatever form it has."""

import json
import os

from keras_smat.data.formats.detection import ALL_NAMES
from keras_smat.data.formats.detection import SPLIT_NAMES
from keras_smat.data.formats.detection import find_formats
from keras_smat.data.formats.folder import FolderSource
from keras_smat.data.formats.h5_source import H5Source
from keras_smat.data.formats.memmap_source import ABOUT
from keras_smat.data.formats.memmap_source import MemmapSource
from keras_smat.data.formats.record_source import RecordSource
from keras_smat.data.spec_fields import FILE


def open_folder(folder, split, alone, image_size, crop):
    """Opens one split of a set.

    Args:
        folder: String.
        split: `"train"`, `"validation"` or `"test"`.
        alone: Boolean, whether the set has no other split, so that all of an
            undivided folder is meant.
        image_size, crop: As in `FolderSource`; converted images have the
            size that they were converted with.

    Returns:
        An `ImageSource`.

    Raises:
        ValueError: if the folder has none of the forms.
    """
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".")]
    if FILE in names or "dataset_spec.pkl" in names:
        h5 = "h5" in find_formats(folder)
        kind = H5Source if h5 else RecordSource
        return kind(folder, split, image_size=image_size, crop=crop)
    classes = None
    lists = [name for name in names if name.endswith("splits.json")]
    folders = [n for n in names if os.path.isdir(os.path.join(folder, n))]
    if lists:
        classes = _listed(os.path.join(folder, lists[0]), split)
    elif folders and set(folders) <= ALL_NAMES:
        folder = os.path.join(folder, _one(folders, split, folder))
        if os.path.exists(os.path.join(folder, ABOUT)):
            return MemmapSource(folder)
    elif not alone:
        raise ValueError(
            f"Expected {FILE}, a `splits.json`, or folders for the splits in "
            f"{folder!r}, whose classes are divided among several. "
            "Received: a folder without them."
        )
    return FolderSource(folder, image_size, classes=classes, crop=crop)


def _listed(path, split):
    """Class names of a split in a `splits.json`."""
    try:
        with open(path, encoding="utf-8") as file:
            lists = json.load(file)
        classes = lists[_one(lists, split, path)]
        valid = all(isinstance(name, str) for name in classes)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            "Expected a JSON object with a list of class names for each "
            f"split. Received: {path!r}: {error}"
        ) from error
    if not valid or not isinstance(classes, list):
        raise ValueError(
            f"Expected a list of class names for the split {split!r} in "
            f"{path!r}. Received: {classes!r}."
        )
    return classes


def _one(names, split, where):
    """The first of a split's names that there is."""
    for name in SPLIT_NAMES[split]:
        if name in names:
            return name
    raise ValueError(
        f"Expected {' or '.join(SPLIT_NAMES[split])} in {where!r}. "
        f"Received: {sorted(names)}."
    )
