"""Reads the records of TFRecord files, with checksums and byte offsets.

    byte 0            8               12                 12 + n        16 + n
    | length n uint64 | crc of length | payload, n bytes | crc of payload |      little-endian,
                                                                      repeated to the end

A stored checksum is the masked CRC-32C of its bytes: the CRC rotated right by 15 bits plus a
constant.
"""

import struct
from collections.abc import Iterator
from io import BufferedReader
from typing import NamedTuple

import google_crc32c
import numpy as np

from pi0_jax.data import storage
from pi0_jax.errors import InputError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
CHECKSUM_BYTES = _FOOTER.size  # after the payload
FRAMING_BYTES = _HEADER.size + CHECKSUM_BYTES


class Record(NamedTuple):
    """Holds one record of a file.

    Attributes:
        number: its number within the file, from 0.
        offset: where the payload begins within the file, in bytes.
        payload: the bytes of the payload.
        damage: "" if the payload has its checksum, or a text with the stored and the computed one.
    """

    number: int
    offset: int
    payload: bytes | memoryview
    damage: str


def masked_crc(data: bytes | memoryview) -> int:
    """Returns the checksum that TFRecord stores for `data`, a uint32."""
    # The library takes arrays, but no memoryview.
    crc = google_crc32c.value(np.frombuffer(data, np.uint8) if len(data) else b"")
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: storage.AnyPath) -> Iterator[Record]:
    """Yields the records of one file in order, each verified. It holds one record at a time.

    Raises:
        InputError: there is no such file, a record is truncated, or a checksum is wrong. The
            message names file, record and byte.
    """
    for record in scan_records(path):
        if record.damage:
            raise InputError(f"{path}: {record.damage}")
        yield record._replace(payload=bytes(record.payload))


def scan_records(path: storage.AnyPath) -> Iterator[Record]:
    """Yields the records of one file as `read_records` does, at the speed of the memory.

    All payloads take the same place in memory, so each is valid until the next is asked for. After
    a payload with a wrong checksum it goes on, and the record's `damage` says so. If a file is
    truncated or has a wrong length, it is not known where its next record starts.

    Raises:
        InputError: there is no such file, a record is truncated, or the checksum of a length is
            wrong.
    """
    buffer = bytearray()
    with storage.open_stream(path) as file:
        size = storage.size(path)
        number, offset = 0, 0
        while offset < size:
            place = f"record {number} at byte {offset}"
            length = _read_length(file, f"{path}: {place}", size - offset)
            if length > len(buffer):
                # Fresh memory costs more time than reading into it, so it is taken rarely.
                buffer = bytearray(length + length // 4)
            payload = memoryview(buffer)[:length].toreadonly()
            damage = payload_damage(
                payload, _read_payload(file, memoryview(buffer)[:length], f"{path}: {place}")
            )
            yield Record(number, offset + _HEADER.size, payload, damage and f"{place}: {damage}")
            number, offset = number + 1, offset + length + FRAMING_BYTES


def _read_length(file: BufferedReader, where: str, remaining: int) -> int:
    """Returns the length of the next record's payload, with `remaining` bytes left in the file."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise InputError(
            f"{where}: truncated: expected a header of {_HEADER.size} bytes, found {len(header)}"
        )
    length, stored = _HEADER.unpack(header)
    found = masked_crc(header[:8])
    if found != stored:
        raise InputError(
            f"{where}: {_mismatch('length', stored, found)}; no record after it can be found"
        )
    if remaining < length + FRAMING_BYTES:
        raise InputError(
            f"{where}: truncated: expected {length + FRAMING_BYTES} bytes, found {remaining}"
        )
    return length


def _read_payload(file: BufferedReader, place: memoryview, where: str) -> bytes:
    """Fills `place` with the payload and returns the bytes of its checksum."""
    found = file.readinto(place)
    footer = file.read(CHECKSUM_BYTES)
    if found + len(footer) < len(place) + CHECKSUM_BYTES:
        raise InputError(
            f"{where}: truncated while it was read: expected {len(place)} bytes of payload, found {found}"
        )
    return footer


def payload_damage(payload: bytes | memoryview, footer: bytes) -> str:
    """Returns "" if the payload has its checksum, or a text with the stored and computed one."""
    (stored,), found = _FOOTER.unpack(footer), masked_crc(payload)
    return "" if found == stored else _mismatch("payload", stored, found)


def _mismatch(part: str, stored: int, found: int) -> str:
    return f"corrupted {part}: expected checksum {stored:#010x}, found {found:#010x}"
