"""TFRecord framing, read with checksums and byte offsets.

    byte 0            8               12                 12 + n        16 + n
    | length n uint64 | crc of length | payload, n bytes | crc of payload |      little-endian, repeated to the end

A stored checksum is the masked CRC-32C of its bytes: the CRC rotated right by 15 bits plus a constant.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import google_crc32c

from pi0_jax.data import storage
from pi0_jax.errors import InputError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
FRAMING_BYTES = _HEADER.size + _FOOTER.size


class Record(NamedTuple):
    number: int  # within the file, from 0
    offset: int  # of the payload's first byte within the file
    payload: bytes


def masked_crc(data: bytes) -> int:
    """The checksum that TFRecord stores for `data`, uint32."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """Yields the records of one file in order, each verified. Holds one record at a time.

    Raises InputError, naming file, record and byte: no such file, truncated record, wrong checksum.
    """
    with storage.open_stream(path) as file:
        size = storage.size(path)
        number, offset = 0, 0
        while offset < size:
            payload = _read_record(file, f"{path}: record {number} at byte {offset}", size - offset)
            yield Record(number, offset + _HEADER.size, payload)
            number, offset = number + 1, offset + _HEADER.size + len(payload) + _FOOTER.size


def _read_record(file: BinaryIO, where: str, remaining: int) -> bytes:
    """The next record's payload, verified; `remaining` bytes are left in the file."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise InputError(f"{where}: truncated: expected a header of {_HEADER.size} bytes, found {len(header)}")
    length, length_crc = _HEADER.unpack(header)
    _check_crc(header[:8], length_crc, f"{where}: corrupted length")
    expected = _HEADER.size + length + _FOOTER.size
    if remaining < expected:
        raise InputError(f"{where}: truncated: expected {expected} bytes, found {remaining}")
    payload, footer = file.read(length), file.read(_FOOTER.size)
    if len(payload) + len(footer) < length + _FOOTER.size:
        raise InputError(f"{where}: truncated while it was read: expected {length} bytes of payload, found {len(payload)}")
    _check_crc(payload, _FOOTER.unpack(footer)[0], f"{where}: corrupted payload")
    return payload


def _check_crc(data: bytes, stored: int, where: str) -> None:
    found = masked_crc(data)
    if found != stored:
        raise InputError(f"{where}: expected checksum {stored:#010x}, found {found:#010x}")
