"""Decoded images in one memory-mapped file, and how to write it."""

import concurrent.futures
import io
import json
import os

import google_crc32c
import keras
import numpy as np

from keras_smat.checks import check_integer
from keras_smat.data.formats.array_source import ArraySource
from keras_smat.data.hierarchy import ClassHierarchy
from keras_smat.files import write_text

IMAGES, LABELS, ABOUT = "images.npy", "labels.npy", "about.json"
FIELDS = {"class_names", "split", "hierarchy", "image_shape", "made_from"}
CHUNK = 2**24  # bytes of pixels that are written at once


class MemmapSource(ArraySource):
    """Images that `convert` decoded, read at the speed of the disk.

    The folder holds `images.npy`, uint8 `(N, H, W, C)`, `labels.npy` and
    `about.json`; NumPy alone can read it. Images are read when they are
    needed, and worker processes share them.

    Args:
        path: String or path of the folder.

    Attributes:
        split, hierarchy: Those of the source that was converted, or `None`.

    Raises:
        ValueError: if it is no such folder, or an unfinished one.

    Example:

    ```python
    import tempfile

    import numpy as np
    from keras_smat import data

    images = np.zeros((6, 32, 32, 3), "uint8")
    source = data.ArraySource(images, [0, 0, 0, 1, 1, 1])
    path = tempfile.mkdtemp() + "/converted"
    data.convert(source, path, verbose=0)
    data.MemmapSource(path).load([0, 5]).shape  # (2, 32, 32, 3)
    ```
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        about = read_about(self.path)
        if "crc32c" not in about:
            raise ValueError(
                "Expected a folder that `convert` finished. Received: "
                f"{self.path!r}; call `convert` again to go on."
            )
        images = np.load(os.path.join(self.path, IMAGES), mmap_mode="r")
        labels = np.load(os.path.join(self.path, LABELS))
        super().__init__(images, labels, about["class_names"])
        self.split = about["split"]
        if about["hierarchy"]:
            groups, rule = about["hierarchy"]
            self.hierarchy = ClassHierarchy(
                [np.array(group) for group in groups], rule
            )


def convert(source, path, workers=0, verbose=1):
    """Decodes all images of a source once, for `MemmapSource`.

    The images have the size of the source and keep their order. If the call
    is interrupted, the same call goes on where it was; what is not finished
    is called `<path>.partial`.

    Args:
        source: `ImageSource`.
        path: String or path of the folder to write. If it is there already,
            made from the same source, nothing is done.
        workers: Integer, threads that decode. Defaults to 0: none beside the
            calling one.
        verbose: 0 or 1, whether to show a progress bar. Defaults to 1.

    Returns:
        A `MemmapSource`.

    Raises:
        ValueError: if the folder was made from another source, or the source
            cannot load an image.

    Example:

    ```python
    import tempfile

    import numpy as np
    from keras_smat import data

    images = np.zeros((6, 32, 32, 3), "uint8")
    source = data.ArraySource(images, [0, 0, 0, 1, 1, 1])
    path = tempfile.mkdtemp() + "/converted"
    fast = data.convert(source, path, verbose=0)
    fast.image_shape  # (32, 32, 3)
    ```
    """
    check_integer("workers", workers, 0)
    path = os.fspath(path)
    about = _about(source)
    if os.path.exists(path):
        _check_same(path, about)
        return MemmapSource(path)
    partial = f"{path}.partial"
    if os.path.exists(os.path.join(partial, ABOUT)):
        _check_same(partial, about)
    os.makedirs(partial, exist_ok=True)
    _write_json(os.path.join(partial, ABOUT), about)
    np.save(
        os.path.join(partial, LABELS), np.asarray(source.labels).astype("int32")
    )
    checksum = _write_images(source, partial, workers, verbose)
    _write_json(os.path.join(partial, ABOUT), {**about, "crc32c": checksum})
    os.replace(partial, path)
    return MemmapSource(path)


def read_about(path):
    """Returns what `about.json` says."""
    try:
        with open(os.path.join(path, ABOUT), encoding="utf-8") as file:
            about = json.load(file)
        missing = FIELDS - set(about)
        if missing:
            raise ValueError(f"it has no {sorted(missing)}")
        return about
    except (OSError, ValueError, TypeError) as error:
        hint = ""
        if os.path.exists(f"{path}.partial"):
            hint = " It is not finished: call `convert` again to go on."
        raise ValueError(
            f"Expected a folder that `convert` wrote. Received: {path!r}, "
            f"whose {ABOUT} cannot be read: {error}.{hint}"
        ) from error


def _about(source):
    hierarchy = getattr(source, "hierarchy", None)
    return {
        "class_names": list(source.class_names),
        "split": getattr(source, "split", None),
        "hierarchy": hierarchy
        and [[g.tolist() for g in hierarchy.groups], hierarchy.rule],
        "image_shape": list(source.image_shape),
        "made_from": source.fingerprint(),
    }


def _check_same(path, about):
    held = read_about(path)
    if held["made_from"] != about["made_from"]:
        raise ValueError(
            "Expected `path` to be new or made from this source. "
            f"Received: path={path!r}, made from the source "
            f"{held['made_from']}, not {about['made_from']}."
        )


def _write_images(source, folder, workers, verbose):
    """Appends the images that are missing; returns the checksum of all."""
    path = os.path.join(folder, IMAGES)
    shape = (len(source.labels), *source.image_shape)
    size = int(np.prod(shape[1:]))
    header, done, checksum = _start(path, shape, size)
    step = max(1, CHUNK // size)
    bar = keras.utils.Progbar(shape[0], verbose=verbose, unit_name="image")
    with (
        open(path, "ab") as file,
        concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        while done < shape[0]:
            # As many parts as threads: what waits in memory is bounded.
            ends = [done + step * i for i in range(max(1, workers) + 1)]
            ends = np.minimum(ends, shape[0])
            parts = [np.arange(*pair) for pair in zip(ends, ends[1:])]
            for images in pool.map(source.load, filter(len, parts)):
                pixels = np.ascontiguousarray(images).tobytes()
                checksum = google_crc32c.extend(checksum, pixels)
                file.write(pixels)
            file.flush()
            done = int(ends[-1])
            bar.update(done)
        os.fsync(file.fileno())
    expected, written = header + size * shape[0], os.path.getsize(path)
    if written != expected:
        raise ValueError(
            f"Expected {expected} bytes in {path!r}. Received: {written}; the "
            "source changed, or another process writes to the same folder."
        )
    return checksum


def _start(path, shape, size):
    """Gives a new file its header, and an old one a clean end.

    Returns:
        The length of the header in bytes, how many whole images follow it,
        and their checksum.
    """
    header = io.BytesIO()
    layout = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, layout)
    header = header.getvalue()
    with open(path, "ab+") as file:
        file.seek(0)
        if file.read(len(header)) != header:
            file.truncate(0)
            file.write(header)
        file.flush()
        done = (os.path.getsize(path) - len(header)) // size
        checksum = 0
        for _ in range(done):
            checksum = google_crc32c.extend(checksum, file.read(size))
        file.truncate(len(header) + done * size)
    return len(header), done, checksum


def _write_json(path, content):
    write_text(path, json.dumps(content, ensure_ascii=False))
