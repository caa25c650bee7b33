"""Where a dataset's bytes lie: on this machine or behind a URL. Every file of a dataset is opened, sized and read through here.

A local file is opened by its path as any other. For a URL (http://, gs://, s3://, whatever fsspec knows) see remote.py.
"""

import hashlib
import io
import os
import re
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

from pi0_jax.data import remote
from pi0_jax.data.remote import MissingFileError, RemotePath
from pi0_jax.errors import InputError

T = TypeVar("T")
R = TypeVar("R")

Location: TypeAlias = Path | RemotePath  # both have `/`, `name` and a text for messages
AnyPath: TypeAlias = str | os.PathLike[str] | RemotePath

_BUFFER_BYTES = 1 << 17  # what lies in a buffer is copied twice: large reads should pass it by
_ENDS_BYTES = 4096
_AT_ONCE = 32  # requests for small things
# What a storage says of a file's content, the surest first. No time of change: copies of a file differ in it, and the ends are cheap.
_CONTENT_KEYS = ("md5Hash", "Content-MD5", "Digest", "crc32c", "ETag", "etag", "generation")


def locate(path: AnyPath) -> Location:
    """The place that a path or URL names; file:// is local."""
    if isinstance(path, Path | RemotePath):
        return path
    text = os.fspath(path)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return RemotePath(text) if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) else Path(text)


def open_stream(path: AnyPath) -> io.BufferedReader:
    """The file, open for reading from its start. Raises InputError if it cannot be read."""
    place = locate(path)
    if isinstance(place, RemotePath):
        return remote.open_stream(place)
    try:
        return io.BufferedReader(io.FileIO(place), _BUFFER_BYTES)
    except OSError as error:
        raise _unreadable(place, error) from error


def read_all(path: AnyPath) -> bytes:
    """A small file, whole. Raises InputError if it cannot be read."""
    place = locate(path)
    if isinstance(place, RemotePath):
        return remote.read_all(place)
    try:
        return place.read_bytes()
    except OSError as error:
        raise _unreadable(place, error) from error


def size(path: AnyPath) -> int:
    """In bytes. Raises InputError if the file cannot be read, MissingFileError if there is none."""
    place = locate(path)
    if isinstance(place, RemotePath):
        return remote.file_info(place)["size"]
    try:
        return os.path.getsize(place)
    except OSError as error:
        raise _unreadable(place, error) from error


def exists(path: AnyPath) -> bool:
    """Raises InputError where that cannot be known."""
    try:
        size(path)
    except MissingFileError:
        return False
    return True


def identity(path: AnyPath) -> tuple[int, str]:
    """Size in bytes, and a text that changes with the content: the storage's own checksum or tag, else a hash of both ends.

    Raises InputError if the file cannot be read, MissingFileError if there is none.
    """
    place = locate(path)
    if isinstance(place, RemotePath):
        info = remote.file_info(place)
        total = info["size"]
        for key in _CONTENT_KEYS:
            if info.get(key):
                return total, f"{key} {str(info[key]).removeprefix('W/')}"
    else:
        total = size(place)
    file, length = RangeReader(place), min(total, _ENDS_BYTES)
    ends = file.read(0, length) + file.read(total - length, length)
    return total, hashlib.sha256(ends).hexdigest()[:16]


def concurrently(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`function` of each item, in order, many at a time: for thousands of small requests. The first error ends it."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, items))


class RangeReader:
    """A file open for reading at any place by any thread; closed when nobody holds it any more."""

    def __init__(self, path: AnyPath) -> None:
        self._path = locate(path)
        if isinstance(self._path, RemotePath):
            return
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        # Not __del__, which may run when the interpreter has taken `os` down already. At exit the system closes it.
        weakref.finalize(self, os.close, self._descriptor).atexit = False

    def read(self, offset: int, length: int) -> bytes:
        """Raises InputError if the file does not have these bytes, or they cannot be had."""
        if isinstance(self._path, RemotePath):
            return remote.read_range(self._path, offset, length)
        try:
            data = os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        if len(data) != length:
            found = f"found {len(data)}: the file has changed since it was indexed"
            raise InputError(f"{self._path}: expected {length} bytes at byte {offset}, {found}")
        return data


def _unreadable(path: Path, error: OSError) -> InputError:
    kind = (
        MissingFileError
        if isinstance(error, FileNotFoundError | NotADirectoryError)
        else InputError
    )
    return kind(f"{path}: expected a readable file, found: {error.strerror}")
