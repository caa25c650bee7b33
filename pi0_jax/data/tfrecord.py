"""TFRecord framing, read with checksums and byte offsets.

    byte 0            8               12                 12 + n        16 + n
    | length n uint64 | crc of length | payload, n bytes | crc of payload |      little-endian, repeated to the end

A stored checksum is the masked CRC-32C of its bytes: the CRC rotated right by 15 bits plus a constant.
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
    number: int  # within the file, from 0
    offset: int  # of the payload's first byte within the file
    payload: bytes | memoryview
    damage: str  # "" if the payload has its checksum; otherwise which was expected and found


def masked_crc(data: bytes | memoryview) -> int:
    """The checksum that TFRecord stores for `data`, uint32."""
    # it takes arrays, but no memoryview
    crc = google_crc32c.value(np.frombuffer(data, np.uint8) if len(data) else b"")
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: storage.AnyPath) -> Iterator[Record]:
    """Yields the records of one file in order, each verified. Holds one record at a time.

    Raises InputError, naming file, record and byte: no such file, truncated record, wrong checksum.
    """
    for record in scan_records(path):
        if record.damage:
            raise InputError(f"{path}: {record.damage}")
        yield record._replace(payload=bytes(record.payload))


def scan_records(path: storage.AnyPath) -> Iterator[Record]:
    """As `read_records`, at the speed of the memory: all payloads take the same place, so each lasts until the next is asked for.

    Goes on after a payload with a wrong checksum, which its record's `damage` tells. A file that is truncated or has a wrong length is an
    InputError here too: where its next record starts is not known.
    """
    buffer = bytearray()
    with storage.open_stream(path) as file:
        size = storage.size(path)
        number, offset = 0, 0
        while offset < size:
            place = f"record {number} at byte {offset}"
            length = _read_length(file, f"{path}: {place}", size - offset)
            if length > len(buffer):
                # fresh memory costs more than what is read into it
                buffer = bytearray(length + length // 4)
            payload = memoryview(buffer)[:length].toreadonly()
            damage = payload_damage(
                payload, _read_payload(file, memoryview(buffer)[:length], f"{path}: {place}")
            )
            yield Record(number, offset + _HEADER.size, payload, damage and f"{place}: {damage}")
            number, offset = number + 1, offset + length + FRAMING_BYTES


def _read_length(file: BufferedReader, where: str, remaining: int) -> int:
    """The length of the next record's payload; `remaining` bytes are left in the file."""
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
    """Fills `place` and gives the checksum's bytes."""
    found = file.readinto(place)
    footer = file.read(CHECKSUM_BYTES)
    if found + len(footer) < len(place) + CHECKSUM_BYTES:
        raise InputError(
            f"{where}: truncated while it was read: expected {len(place)} bytes of payload, found {found}"
        )
    return footer


def payload_damage(payload: bytes | memoryview, footer: bytes) -> str:
    """An empty text if the payload has the checksum that stands behind it; otherwise which was expected and found."""
    (stored,), found = _FOOTER.unpack(footer), masked_crc(payload)
    return "" if found == stored else _mismatch("payload", stored, found)


def _mismatch(part: str, stored: int, found: int) -> str:
    return f"corrupted {part}: expected checksum {stored:#010x}, found {found:#010x}"
