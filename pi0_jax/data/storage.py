"""Where a dataset's bytes lie. Paths are local; every file of a dataset is opened, sized and read through here."""

import os
from typing import BinaryIO

from pi0_jax.errors import InputError

_BUFFER_BYTES = 1 << 17  # what lies in a buffer is copied twice: large reads should pass it by


def open_stream(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, open for reading from its start. Raises InputError if it cannot be read."""
    try:
        return open(path, "rb", buffering=_BUFFER_BYTES)
    except OSError as error:
        raise InputError(f"{path}: expected a readable file, found: {error.strerror}") from error


def size(path: str | os.PathLike[str]) -> int:
    """In bytes. Raises InputError if there is no such file."""
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise InputError(f"{path}: expected a readable file, found: {error.strerror}") from error


class RangeReader:
    """A file open for reading at any place by any thread; closed when nobody holds it any more."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{path}: expected a readable shard file, found: {error.strerror}") from error

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Raises InputError if the file does not have these bytes."""
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            found = f"found {len(data)}: the file has changed since it was indexed"
            raise InputError(f"{self._path}: expected {length} bytes at byte {offset}, {found}")
        return data
