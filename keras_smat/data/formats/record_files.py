"""Random access to the records of many TFRecord files."""

import itertools
import os

import numpy as np

from keras_smat.data.formats import tfrecord
from keras_smat.data.formats.cache import read_cache
from keras_smat.data.formats.cache import stamp
from keras_smat.data.formats.cache import write_cache


class RecordFiles:
    """Knows where each record of some files starts: 8 bytes per record.

    The positions are found once, kept in one file, and found again for files
    whose size or time has changed. A text index of PMF beside a file
    (`7.index` for `7.tfrecords`) spares reading it.

    Args:
        paths: List of strings.
        cache: String, the `.npz` file that keeps the positions.

    Attributes:
        counts: int64 array of shape `(files,)`, the records of each file.
    """

    def __init__(self, paths, cache):
        self.paths = list(paths)
        known = read_positions(cache)
        offsets, changed = [], False
        for path in self.paths:
            name = os.path.basename(path)  # without the folder: it may move
            now = stamp(path)
            if name not in known or known[name][0] != now:
                known[name] = now, find_records(path)
                changed = True
            offsets.append(known[name][1])
        if changed:
            write_positions(cache, known)
        self.counts = np.array([len(part) for part in offsets], "int64")
        self.offsets = np.concatenate(offsets)
        self.starts = np.cumsum(self.counts) - self.counts

    def __len__(self):
        return len(self.offsets)

    def read(self, indices):
        """Reads records, each file opened once and no longer than needed.

        Args:
            indices: Integer array of shape `(n,)`; records count through the
                files in order.

        Yields:
            Triples `(k, payload, name)` in the order of the files: `k` from
            0 to `n - 1` for `indices[k]`, bytes, and a name for errors.

        Raises:
            ValueError: if a record is corrupt.
        """
        for file_index, group in by_file(self.starts, indices):
            path = self.paths[file_index]
            with open(path, "rb") as file:
                for k in group:
                    offset = int(self.offsets[indices[k]])
                    name = f"the record at byte {offset} of {path!r}"
                    yield k, tfrecord.read(file, offset), name


def by_file(starts, indices):
    """Groups indices by the file they point into.

    Args:
        starts: Integer array of shape `(files,)`, the first index of each.
        indices: Integer array of shape `(n,)`.

    Yields:
        Pairs of the file's number and an iterator of positions in `indices`.
    """
    indices = np.asarray(indices, "int64")
    files = np.searchsorted(starts, indices, "right") - 1
    order = np.argsort(indices, kind="stable").tolist()
    yield from itertools.groupby(order, files.__getitem__)


def find_records(path):
    """Returns the byte at which each record starts, `(records,)` int64."""
    offsets = _read_text_index(path)
    return tfrecord.scan(path) if offsets is None else offsets


def _read_text_index(path):
    """PMF's index: lines of offset and length. `None` if it does not fit."""
    try:
        with open(os.path.splitext(path)[0] + ".index", "rb") as file:
            table = np.array(file.read().split(), "int64").reshape(-1, 2)
    except (OSError, ValueError, OverflowError):
        return None
    ends = table.sum(axis=1)
    fits = len(table) and ends[-1] == os.path.getsize(path)
    if fits and table[0, 0] == 0 and (table[1:, 0] == ends[:-1]).all():
        return table[:, 0].copy()
    return None


def read_positions(cache):
    """Returns a dict from a file's name to its stamp and its positions."""
    try:
        held = read_cache(cache)
        ends = np.cumsum(held["counts"])
        offsets = np.split(held["offsets"], ends[:-1])
        pairs = zip(held["stamps"].tolist(), offsets, strict=True)
        return dict(zip(held["names"].tolist(), pairs, strict=True))
    except (KeyError, ValueError):
        return {}


def write_positions(cache, known):
    """Keeps what `read_positions` returns."""
    stamps, offsets = zip(*known.values())
    write_cache(
        cache,
        names=np.array(list(known)),
        stamps=np.array(stamps, "int64"),
        counts=np.array([len(part) for part in offsets]),
        offsets=np.concatenate(offsets),
    )
