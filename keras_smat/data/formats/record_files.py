"""Random access to the records of many TFRecord files."""

import os
import warnings
import zipfile

import numpy as np

from keras_smat.data.formats import tfrecord


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
        known = _read_cache(cache)
        found = {}
        for path in self.paths:
            key = _key(path)
            if key not in known:
                known[key] = found[key] = find_records(path)
        if found:
            _write_cache(cache, known)
        offsets = [known[_key(path)] for path in self.paths]
        self.counts = np.array([len(part) for part in offsets], "int64")
        self.offsets = np.concatenate(offsets)
        self.starts = np.cumsum(self.counts) - self.counts

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
        indices = np.asarray(indices)
        files = np.searchsorted(self.starts, indices, "right") - 1
        order = np.argsort(indices, kind="stable")
        ends = np.flatnonzero(np.diff(files[order])) + 1
        for group in np.split(order, ends) if len(order) else []:
            path = self.paths[files[group[0]]]
            with open(path, "rb") as file:
                for k in group:
                    offset = int(self.offsets[indices[k]])
                    name = f"the record at byte {offset} of {path!r}"
                    yield int(k), tfrecord.read(file, offset), name


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


def _key(path):
    # Names without the folder, which may move.
    status = os.stat(path)
    return os.path.basename(path), status.st_size, status.st_mtime_ns


def _read_cache(cache):
    try:
        with np.load(cache, allow_pickle=False) as held:
            stamps = held["stamps"].tolist()
            keys = [(n, *s) for n, s in zip(held["names"].tolist(), stamps)]
            ends = np.cumsum(held["counts"])
            if len(ends) != len(keys) or ends[-1] != len(held["offsets"]):
                return {}
            return dict(zip(keys, np.split(held["offsets"], ends[:-1])))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}  # none yet, or one that was damaged: found anew


def _write_cache(cache, known):
    names, stamps = zip(*((key[0], key[1:]) for key in known))
    temporary = f"{cache}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            np.savez(
                file,
                names=np.array(names),
                stamps=np.array(stamps, "int64"),
                counts=np.array([len(part) for part in known.values()]),
                offsets=np.concatenate(list(known.values())),
            )
        os.replace(temporary, cache)
    except OSError as error:
        warnings.warn(
            f"The positions of the records could not be kept in {cache!r}, so "
            f"they are found again each time ({error}). Give `cache` a folder "
            "that can be written to.",
            stacklevel=4,
        )
