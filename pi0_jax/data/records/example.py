"""Reads tf.train.Example from its wire format: numbers as arrays, bytes as ranges in the payload.

    Example  { features: Features = 1 }
    Features { feature: map<string, Feature> = 1 }          a map entry is { key = 1, value = 2 }
    Feature  { bytes_list = 1 | float_list = 2 | int64_list = 3 }, each list { repeated value = 1 }

Images are never copied: a range says where their encoded bytes lie. A protobuf library would copy
all of them.
"""

from array import array
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_FIRST, _SECOND = 1 << 3 | _DELIMITED, 2 << 3 | _DELIMITED  # tags of fields 1 and 2

Payload = bytes | memoryview


class ByteRanges(NamedTuple):
    """Holds the values of a bytes_list as places within the payload."""

    offsets: np.ndarray  # int64[n], in bytes
    lengths: np.ndarray  # int64[n], in bytes
    equal: bool = False  # True where all values are known to be the same bytes


# A feature's value is float32[n] (a view into the payload where that is possible), int64[n],
# ranges, or None for a feature that holds no list.
Feature = np.ndarray | ByteRanges | None


def parse_example(payload: Payload, names: Collection[str]) -> dict[str, Feature]:
    """Returns the features called `names` of a serialised tf.train.Example.

    Other features are skipped and not read.

    Raises:
        ValueError: the bytes are not a tf.train.Example.
    """
    found: dict[str, Feature] = {}
    try:
        for _, _, start, end in _fields(payload, 0, len(payload)):
            for name, value_start, value_end in _entries(payload, start, end):
                if name in names:
                    found[name] = _feature(payload, value_start, value_end)
    except IndexError as error:
        raise ValueError("a number runs past the end of the message") from error
    return found


def _varint(buffer: Payload, position: int) -> tuple[int, int]:
    """Returns the varint at `position`, and the position after it."""
    value, shift = 0, 0
    while True:
        byte = buffer[position]
        position += 1
        # A byte holds seven bits, the lowest ones first. Its top bit says that more bytes follow.
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _fields(buffer: Payload, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields (number, wire type, start, end) of each field of a message."""
    while position < end:
        # Most varints are one byte long. Only longer ones cost a call.
        tag, position = buffer[position], position + 1
        if tag >= 0x80:
            tag, position = _varint(buffer, position - 1)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _DELIMITED:
            length, position = buffer[position], position + 1
            if length >= 0x80:
                length, position = _varint(buffer, position - 1)
        elif wire_type == _VARINT:
            length = _varint(buffer, position)[1] - position
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if position + length > end:
            raise ValueError(
                f"field {number} at byte {position} needs {length} bytes, {end - position} are left"
            )
        yield number, wire_type, position, position + length
        position += length


def _entries(buffer: Payload, position: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Yields the name of each feature and the place of its Feature: `_fields`, unrolled."""
    while position < end:
        if buffer[position] != _FIRST:
            raise ValueError(f"a map of features holds tag {buffer[position]} at byte {position}")
        length, start = buffer[position + 1], position + 2
        if length >= 0x80:
            length, start = _varint(buffer, position + 1)
        position = start + length
        if position > end:
            raise ValueError(
                f"a feature at byte {start} needs {length} bytes, {end - start} are left"
            )
        yield _name_and_value(buffer, start, position)


def _name_and_value(buffer: Payload, start: int, end: int) -> tuple[str, int, int]:
    """Returns the name of one map entry, and where its value starts and ends."""
    if start + 2 < end and buffer[start] == _FIRST:
        name_start = start + 2
        name_end = name_start + buffer[start + 1]
        if name_end - name_start < 0x80 and name_end + 1 < end and buffer[name_end] == _SECOND:
            length, value_start = buffer[name_end + 1], name_end + 2
            if length >= 0x80:
                length, value_start = _varint(buffer, name_end + 1)
            # Writers lay an entry out like this: a short name, then the value.
            if value_start + length == end:
                return str(buffer[name_start:name_end], "utf-8"), value_start, end
    return _map_entry(buffer, start, end)


def _map_entry(buffer: Payload, position: int, end: int) -> tuple[str, int, int]:
    """Returns the name of any map entry, and where its value starts and ends."""
    name, value = "", (end, end)
    for number, _, start, stop in _fields(buffer, position, end):
        if number == 1:
            name = str(buffer[start:stop], "utf-8")
        elif number == 2:
            value = (start, stop)
    return name, *value


def _feature(buffer: Payload, position: int, end: int) -> Feature:
    value: Feature = None
    for number, _, start, stop in _fields(buffer, position, end):
        if number == _BYTES_LIST:
            value = _byte_ranges(buffer, start, stop)
        elif number == _FLOAT_LIST:
            value = _floats(buffer, start, stop)
        elif number == _INT64_LIST:
            value = _integers(buffer, start, stop)
    return value


def _byte_ranges(buffer: Payload, position: int, end: int) -> ByteRanges:
    if position == end:
        return ByteRanges(np.empty(0, np.int64), np.empty(0, np.int64), equal=True)
    length, start = _varint(buffer, position + 1)
    # The bytes of the first value, with its tag and its length. If all values are the same, the
    # list is these bytes again and again.
    field = start + length - position
    count, rest = divmod(end - position, field)
    alike = (
        count > 1
        and not rest
        and bytes(buffer[position:end]) == bytes(buffer[position : position + field]) * count
    )
    if alike and buffer[position] == _FIRST:
        # It is an instruction that is the same at every step.
        return ByteRanges(start + field * np.arange(count), np.full(count, length), equal=True)
    return _walk(buffer, position, end)


def _walk(buffer: Payload, position: int, end: int) -> ByteRanges:
    """Reads a bytes_list in one pass: `_fields`, unrolled, since it runs once for every image."""
    offsets, lengths = array("q"), array("q")
    while position < end:
        if buffer[position] != _FIRST:
            raise ValueError(f"a bytes_list holds tag {buffer[position]} at byte {position}")
        length = buffer[position + 1]
        position += 2
        if length >= 0x80:
            more = buffer[position]
            position += 1
            # The first byte's top bit was counted as 0x80, and is taken off again.
            length += (more << 7) - 0x80
            if more >= 0x80:
                rest, position = _varint(buffer, position)
                length += (rest << 14) - (0x80 << 7)
        offsets.append(position)
        lengths.append(length)
        position += length
    if position != end:
        raise ValueError(f"a bytes_list ends at byte {position}, its message at {end}")
    return ByteRanges(np.frombuffer(offsets, np.int64), np.frombuffer(lengths, np.int64))


def _floats(buffer: Payload, position: int, end: int) -> np.ndarray:
    """Returns a float_list as float32[n], where possible as a view into the payload."""
    parts = []
    # Writers pack a list into one field. The format also allows one field for each value.
    for _, _, start, stop in _fields(buffer, position, end):
        if (stop - start) % 4:
            raise ValueError(f"a float_list of {stop - start} bytes at byte {start}")
        parts.append(np.frombuffer(buffer, "<f4", (stop - start) // 4, start))
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])


def _integers(buffer: Payload, position: int, end: int) -> np.ndarray:
    """Returns an int64_list as int64[n]. Each field is a packed run of varints, or one varint."""
    parts = [
        decode_varints(np.frombuffer(buffer, np.uint8, stop - start, start))
        for _, _, start, stop in _fields(buffer, position, end)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int64), *parts])


def decode_varints(data: np.ndarray) -> np.ndarray:
    """Decodes the varints that fill uint8[bytes] `data`, all together, as int64[n].

    Raises:
        ValueError: the last number is cut off, or a number is longer than 10 bytes.
    """
    if data.max(initial=0) < 0x80:
        # Every number has one byte: flags, small counts, ASCII.
        return data.astype(np.int64)
    ends = np.flatnonzero(data < 0x80) + 1  # int64[n]
    if len(data) != (ends[-1] if len(ends) else 0):
        raise ValueError("an int64_list ends within a number")
    starts = np.concatenate([[0], ends[:-1]])
    sizes = ends - starts
    longest = int(sizes.max(initial=0))
    if longest > 10:
        raise ValueError(f"an int64_list holds a number of {longest} bytes")
    values = np.zeros(len(ends), np.uint64)
    # The first byte of every number is taken, then the second byte of every number, and so on.
    for k in range(longest):
        has = sizes > k
        values[has] |= (data[starts[has] + k] & np.uint64(0x7F)) << np.uint64(7 * k)
    return values.view(np.int64)
