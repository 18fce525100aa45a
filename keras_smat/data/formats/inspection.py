"""Looking for what is wrong with the images of one class.

Each function returns how many images there are (`None` where that cannot be
told) and a list of strings, the problems. `sample` is how many images are
read, spread over the class, or `None` for all.
"""

import google_crc32c
import numpy as np

from keras_smat.data.formats import tfrecord
from keras_smat.data.formats.example_source import image_of
from keras_smat.data.formats.example_source import label_of
from keras_smat.data.formats.example_source import parse
from keras_smat.data.formats.folder import FolderSource
from keras_smat.data.formats.h5_source import open_h5
from keras_smat.data.formats.h5_source import read_h5
from keras_smat.data.formats.memmap_source import MemmapSource
from keras_smat.data.formats.memmap_source import read_about


def inspect_records(paths, label, decoder, sample):
    """Looks at the TFRecord files of a class.

    Args:
        paths: List of strings.
        label: Integer that the records should have, or `None`.
        decoder: `Decoder`.
        sample: Integer or `None`.
    """
    count, problems = 0, []
    for path in paths:
        try:
            offsets = tfrecord.scan(path)
        except (OSError, ValueError) as error:
            return None, [*problems, str(error)]
        count += len(offsets)
        with open(path, "rb") as file:
            for offset in _spread(offsets, sample):
                name = f"the record at byte {offset} of {path!r}"
                try:
                    payload = tfrecord.read(file, int(offset))
                    example = parse(payload, name)
                    decoder(image_of(example, name), name)
                    held = label_of(example, name)
                except ValueError as error:
                    problems.append(str(error))
                else:
                    problems += _wrong_label(name, held, label)
    return count, problems


def inspect_h5(paths, label, decoder, sample):
    """Looks at the HDF5 files of a class; arguments as above."""
    count, problems = 0, []
    for path in paths:
        try:
            with open_h5(path) as file:
                here = len(file)
                for number in _spread(np.arange(here), sample):
                    name = f"the image {number} of {path!r}"
                    try:
                        pixels, held = read_h5(file, number, name)
                        decoder(pixels, name)
                    except ValueError as error:
                        problems.append(str(error))
                    else:
                        problems += _wrong_label(name, held, label)
        except Exception as error:  # h5py raises many types.
            return None, [*problems, str(error)]
        count += here
    return count, problems


def inspect_folder(directory, name, image_size, sample):
    """Looks at one class of an image folder."""
    try:
        source = FolderSource(directory, image_size, classes=[name])
    except ValueError as error:
        return 0, [str(error)]
    problems = []
    for i in _spread(np.arange(len(source.labels)), sample):
        try:
            source.load([i])
        except ValueError as error:
            problems.append(str(error))
    return len(source.labels), problems


def inspect_memmap(path):
    """Looks at all classes of a folder that `convert` wrote."""
    try:
        source = MemmapSource(path)
        checksum = 0
        for start in range(0, len(source.labels), 1000):
            pixels = source.images[start : start + 1000].tobytes()
            checksum = google_crc32c.extend(checksum, pixels)
        expected = read_about(path).get("crc32c")
    except (OSError, ValueError) as error:
        return None, [str(error)]
    if checksum != expected:
        return len(source.labels), [
            f"the pixels have the checksum {checksum}, should have {expected}"
        ]
    return len(source.labels), []


def _spread(values, sample):
    if sample is None or sample >= len(values):
        return values
    return values[np.linspace(0, len(values) - 1, sample).astype("int64")]


def _wrong_label(name, held, label):
    if label is None or held == label:
        return []
    return [f"{name} has the label {held}, should have {label}"]
