"""Which formats a folder holds, seen from the names in it."""

import os

from keras_smat.data.formats.folder import SUFFIXES
from keras_smat.data.formats.memmap_source import ABOUT
from keras_smat.data.formats.memmap_source import IMAGES
from keras_smat.data.spec_fields import FILE

# The names that a split has in folders and in `splits.json`.
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
ALL_NAMES = {name for names in SPLIT_NAMES.values() for name in names}
# PMF keeps validation episodes, not images, beside its classes.
EPISODES = "val_ep"


def find_formats(folder):
    """Returns the formats of a folder of one data set.

    Args:
        folder: String.

    Returns:
        A list of some of `"memmap"`, `"tfrecords"`, `"h5"`, `"folder"` (one
        folder per class) and `"split folders"` (`"folder"` or `"memmap"` in
        one folder per split); empty if it is no data set.
    """
    names, folders = _entries(folder)
    found = []
    if folder.endswith(".partial"):  # a conversion that is under way
        return found
    if {ABOUT, IMAGES} <= set(names):
        found.append("memmap")
    if any(name.endswith(".tfrecords") for name in names):
        found.append("tfrecords")
    if any(n.endswith(".h5") and not n.startswith(EPISODES) for n in names):
        found.append("h5")
    if not found and FILE in names:
        found.append("tfrecords")
    if found or not folders:
        return found
    if any(_has_images(os.path.join(folder, name)) for name in folders):
        return ["folder"]
    divided = set(folders) <= ALL_NAMES and any(
        find_formats(os.path.join(folder, name)) in (["folder"], ["memmap"])
        for name in folders
    )
    return ["split folders"] if divided else []


def subfolders(folder):
    """Returns the names of the folders in a folder, sorted."""
    return sorted(_entries(folder)[1])


def _has_images(folder):
    return any(n.lower().endswith(SUFFIXES) for n in _entries(folder)[0])


def _entries(folder):
    """Names of the files and of the folders, save hidden ones."""
    names, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if entry.is_dir() else names).append(entry.name)
    return names, folders
