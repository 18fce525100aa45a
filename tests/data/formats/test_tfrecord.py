import random

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from storage import crc32c
from storage import example
from storage import field
from storage import frame
from storage import varint

from keras_smat.data.formats import tfrecord
from keras_smat.data.formats.example import read_example

try:
    import tensorflow as tf
except ImportError:
    tf = None
needs_tensorflow = pytest.mark.skipif(
    tf is None, reason="TensorFlow is the independent writer"
)


def read_all(path):
    offsets = tfrecord.scan(str(path))
    with open(path, "rb") as file:
        return [tfrecord.read(file, offset) for offset in offsets.tolist()]


def test_checksum():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert google_crc32c.value(b"123456789") == 0xE3069283
    assert google_crc32c.implementation == "c"


def test_own_writer(tmp_path):
    path = tmp_path / "0.tfrecords"
    payloads = [b"", b"one", bytes(300)]
    path.write_bytes(b"".join(map(frame, payloads)))
    assert tfrecord.scan(str(path)).tolist() == [0, 16, 35]
    assert read_all(path) == payloads
    path.write_bytes(b"")
    assert read_all(path) == []


@needs_tensorflow
def test_tensorflow_writer(tmp_path):
    rng = np.random.default_rng(0)
    payloads = [rng.bytes(n) for n in [0, 1, 12, 70_000, 3, 1_000_000]]
    path = tmp_path / "ÿ ż.tfrecords"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in payloads:
            writer.write(payload)
    assert read_all(path) == payloads


def test_every_flipped_bit_is_found(tmp_path):
    whole = frame(b"payload")
    path = tmp_path / "0.tfrecords"
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"byte 0 of .*0\.tfrecords"):
            read_all(path)


def test_every_truncation_is_found(tmp_path):
    first, second = frame(b"first"), frame(b"second")
    path = tmp_path / "0.tfrecords"
    for end in range(1, len(second)):
        path.write_bytes(first + second[:end])
        with pytest.raises(ValueError, match=f"byte {len(first)} of "):
            read_all(path)


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=60), good=st.binary(max_size=9))
def test_any_bytes_are_records_or_a_value_error(tmp_path_factory, data, good):
    path = tmp_path_factory.mktemp("fuzz") / "0.tfrecords"
    path.write_bytes(frame(good) + data)
    try:
        payloads = read_all(path)
    except ValueError as error:
        assert "Expected a sound record at byte" in str(error)
    else:
        assert b"".join(map(frame, payloads)) == frame(good) + data


def test_example_by_hand():
    packed = field(1, varint(3) + varint(-2))
    entries = [
        field(1, b"image") + field(2, field(1, field(1, b"a") + field(1, b""))),
        field(2, field(3, packed)) + field(1, "zażółć".encode()),
        field(1, b"float") + field(2, field(2, field(1, bytes(8)))),
        field(1, b"empty") + field(2, field(1, b"")),
        field(1, b"unset"),
    ]
    data = field(1, b"".join(field(1, entry) for entry in entries))
    unknown = varint(8 * 9) + varint(5) + varint(8 * 10 + 5) + bytes(4)
    assert read_example(data + unknown) == {
        "image": [b"a", b""],
        "zażółć": [3, -2],
        "empty": [],
    }


@needs_tensorflow
@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.lists(st.binary(max_size=300), max_size=3)
        | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
        max_size=4,
    )
)
def test_example_as_tensorflow_writes_it(features):
    message = tf.train.Example()
    for name, value in features.items():
        kind = message.features.feature[name]
        if value and isinstance(value[0], int):
            kind.int64_list.value.extend(value)
        else:
            kind.bytes_list.value.extend(value)
            kind.bytes_list.SetInParent()
    assert read_example(message.SerializeToString()) == features


def mutate(data, rng):
    """Changes, removes or repeats a few bytes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(data) + 1)
        what = rng.randrange(4)
        if what == 0:
            data[i : i + 1] = rng.randbytes(1)
        elif what == 1:
            del data[i : i + rng.randint(1, 5)]
        elif what == 2:
            data[i:i] = rng.randbytes(rng.randint(1, 11))
        else:
            data[i:i] = data[i : i + rng.randint(1, 30)]
    return bytes(data)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=40), seed=st.integers(0, 2**32))
def test_any_bytes_are_an_example_or_a_value_error(data, seed):
    rng = random.Random(seed)
    for payload in [data, mutate(example(data, 7), rng)]:
        try:
            features = read_example(payload)
        except ValueError:
            continue
        for value in features.values():
            assert all(isinstance(v, bytes | int) for v in value)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\x0a\x05abc", "ends after its message"),
        (b"\x0a", "ends after its message"),
        (b"\xff" * 11, "more than ten bytes"),
        (b"\x03", "a field has number 0"),
        (varint(2**32) + b"\x00", "a field has number 536870912"),
        (b"\x0b", "wire type 3"),
    ],
)
def test_malformed_examples(data, message):
    with pytest.raises(ValueError, match=message):
        read_example(data)
