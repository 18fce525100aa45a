"""What was found in data files once, kept for the next time."""

import os
import warnings

import numpy as np

from keras_smat.files import replacing


def stamp(path):
    """Returns the size and the time of a file: another one, other content."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def read_cache(path):
    """Returns a dict of arrays; an empty one if there are none to be read."""
    try:
        with open(path, "rb") as file:
            return dict(np.load(file, allow_pickle=False))
    except Exception:  # None yet, or a damaged file: that raises many types.
        return {}


def write_cache(path, **arrays):
    """Writes arrays, all or none; a `UserWarning` says if it cannot."""
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        warnings.warn(
            f"What was found in the data could not be kept in {path!r}, so it "
            f"is found again each time ({error}). Give `cache` a folder that "
            "can be written to.",
            stacklevel=5,
        )
