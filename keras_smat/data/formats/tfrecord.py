"""The frames of a TFRecord file.

A record is its length (8 bytes, little endian), a checksum of these 8 bytes
(4), the payload, and a checksum of the payload (4).
"""

import os
import struct

import google_crc32c
import numpy as np

HEADER = struct.Struct("<QI")
CHECKSUM = struct.Struct("<I")
FRAME = HEADER.size + CHECKSUM.size


def masked_crc(data):
    """Returns the checksum of bytes: CRC-32C, rotated, plus a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def scan(path):
    """Finds the records of a file; payloads are skipped, not checked.

    Args:
        path: String.

    Returns:
        int64 array of shape `(records,)`, the byte at which each starts.

    Raises:
        ValueError: if a length is corrupt or the last record is cut off.
    """
    size = os.path.getsize(path)
    offsets, offset = [], 0
    with open(path, "rb") as file:
        while offset < size:
            file.seek(offset)
            offsets.append(offset)
            offset += FRAME + _length(file, offset, size)
    return np.array(offsets, "int64")


def read(file, offset):
    """Returns the payload of the record that starts at a byte.

    Args:
        file: Binary file, open for reading.
        offset: Integer, in bytes.

    Raises:
        ValueError: if a checksum does not fit or the record is cut off.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(offset)
    length = _length(file, offset, size)
    payload = file.read(length)
    checksum = file.read(CHECKSUM.size)
    if len(checksum) < CHECKSUM.size:
        raise corrupt(file.name, offset, "a record that is cut off")
    if masked_crc(payload) != CHECKSUM.unpack(checksum)[0]:
        raise corrupt(file.name, offset, "a wrong checksum of its content")
    return payload


def corrupt(path, offset, received):
    """Returns the error that names the record."""
    return ValueError(
        f"Expected a sound record at byte {offset} of {path!r}. "
        f"Received: {received}."
    )


def _length(file, offset, size):
    header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        raise corrupt(file.name, offset, "a record that is cut off")
    length, checksum = HEADER.unpack(header)
    if masked_crc(header[:8]) != checksum:
        raise corrupt(file.name, offset, "a wrong checksum of its length")
    if length > size - offset - FRAME:
        raise corrupt(
            file.name,
            offset,
            f"a record of {length + FRAME} bytes, of which the file has "
            f"{size - offset}",
        )
    return length
