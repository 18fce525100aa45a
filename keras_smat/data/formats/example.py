"""Reads a serialized `tf.train.Example` without TensorFlow.

Protocol buffers write a message as fields, each a key and a value. The key,
a varint, holds the field's number and the type of its value. Field numbers:

```
Example  1: Features      Features  1: entry (repeated)
entry    1: name          2: Feature
Feature  1: BytesList     2: FloatList     3: Int64List
every list  1: value (repeated; numbers may be packed in one value)
```
"""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
BYTES, INTEGERS = 1, 3


def read_example(payload):
    """Returns the features of a serialized `tf.train.Example`.

    Args:
        payload: Bytes.

    Returns:
        A dict from the feature's name to a list of bytes or of integers;
        floats are left out.

    Raises:
        ValueError: if the bytes are no such message.
    """
    example = {}
    for features in _messages(memoryview(payload), 1):
        for entry in _messages(features, 1):
            name, feature = b"", memoryview(b"")
            for number, wire, value in _fields(entry):
                if (number, wire) == (1, LENGTH):
                    name = bytes(value)
                elif (number, wire) == (2, LENGTH):
                    feature = value
            example[name.decode("utf-8")] = _values(feature)
    return {k: v for k, v in example.items() if v is not None}


def _values(feature):
    """The list of a Feature; of several kinds the last one counts."""
    kind, values = None, None
    for number, wire, data in _fields(feature):
        if number not in (BYTES, 2, INTEGERS) or wire != LENGTH:
            continue
        if number != kind:
            kind, values = number, [] if number != 2 else None
        if kind == BYTES:
            values.extend(bytes(value) for value in _messages(data, 1))
        elif kind == INTEGERS:
            values.extend(_integers(data))
    return values


def _integers(data):
    for number, wire, value in _fields(data):
        if (number, wire) == (1, VARINT):
            yield _signed(value)
        elif (number, wire) == (1, LENGTH):
            position = 0
            while position < len(value):
                integer, position = _varint(value, position)
                yield _signed(integer)


def _signed(value):
    return value - 2**64 if value >= 2**63 else value


def _messages(data, wanted):
    for number, wire, value in _fields(data):
        if (number, wire) == (wanted, LENGTH):
            yield value


def _fields(data):
    """Yields `(number, wire type, value)`: an integer or a view of bytes."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if not 0 < number < 2**29:
            raise ValueError(f"a field has number {number}")
        if wire == VARINT:
            value, position = _varint(data, position)
            yield number, wire, value
            continue
        if wire == LENGTH:
            size, position = _varint(data, position)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"field {number} has wire type {wire}")
        if size > end - position:
            raise ValueError(f"field {number} ends after its message")
        yield number, wire, data[position : position + size]
        position += size


def _varint(data, position):
    """Seven bits a byte, the lowest first; the top bit says more follow."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("an integer ends after its message")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), position
    raise ValueError("an integer has more than ten bytes")
