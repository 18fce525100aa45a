"""Writers of our own for the formats that the tests read."""

import io
import json
import struct

import numpy as np
from PIL import Image


def crc32c(data):
    """Bit by bit, as the definition says."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def frame(payload):
    length = struct.pack("<Q", len(payload))
    return length + masked(length) + payload + masked(payload)


def varint(value):
    out = bytearray()
    value %= 2**64
    while value > 127:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def field(number, content):
    return varint(8 * number + 2) + varint(len(content)) + content


def example(image, label):
    """A serialized tf.train.Example."""
    entries = {
        b"image": field(1, field(1, image)),
        b"label": field(3, field(1, varint(label))),
    }
    return field(
        1,
        b"".join(
            field(1, field(1, name) + field(2, feature))
            for name, feature in entries.items()
        ),
    )


def png(value, size=4):
    """The file of a small image in which every pixel has one value."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(file, "png")
    return file.getvalue()


def spec(sizes, train=None):
    """A specification of classes "class 0", "class 1", ..."""
    train = len(sizes) if train is None else train
    return {
        "__class__": "DatasetSpecification",
        "name": "set",
        "path": "",
        "file_pattern": "{}.tfrecords",
        "classes_per_split": {
            "TRAIN": train,
            "VALID": 0,
            "TEST": len(sizes) - train,
        },
        "images_per_class": {str(i): n for i, n in enumerate(sizes)},
        "class_names": {str(i): f"class {i}" for i in range(len(sizes))},
    }


def write_spec(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset_spec.json"
    path.write_text(json.dumps(content), encoding="utf-8")


def write_records(folder, sizes, train=None):
    """A folder of records; image i of class c has the pixels 10 * c + i."""
    write_spec(folder, spec(sizes, train))
    for c, n in enumerate(sizes):
        records = [frame(example(png(10 * c + i), c)) for i in range(n)]
        (folder / f"{c}.tfrecords").write_bytes(b"".join(records))
    return folder


def write_h5(folder, sizes, train=None, size=4):
    """The same folder in the form that PMF reads."""
    import h5py

    write_spec(folder, spec(sizes, train))
    for c, n in enumerate(sizes):
        with h5py.File(folder / f"{c}.h5", "w") as file:
            for i in range(n):
                group = file.create_group(str(i))
                pixels = np.full((size, size, 3), 10 * c + i, "uint8")
                group["image"] = pixels
                group["label"] = np.array([c])
                group["id"] = 0
    return folder


def values(source, indices=None):
    """The value of the first pixel of each image."""
    if indices is None:
        indices = np.arange(len(source.labels))
    return source.load(indices)[:, 0, 0, 0].tolist()
