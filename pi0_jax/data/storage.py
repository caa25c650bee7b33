"""Opens, measures and reads every file of a dataset, on this machine or behind a URL.

A local file is opened by its path as any other. For a URL (http://, gs://, s3://, and whatever else
fsspec knows) see remote.py.
"""

import contextlib
import hashlib
import io
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

from pi0_jax.data import remote
from pi0_jax.data.remote import MissingFileError, RemotePath
from pi0_jax.errors import InputError

T = TypeVar("T")
R = TypeVar("R")

# Both kinds have `/`, `name` and a text for messages.
Location: TypeAlias = Path | RemotePath
AnyPath: TypeAlias = str | os.PathLike[str] | RemotePath

# What lies in a buffer is copied twice, so large reads should not go through it.
_BUFFER_BYTES = 1 << 17
_ENDS_BYTES = 4096
_AT_ONCE = 32  # requests for small things
# What a storage says of a file's content, the surest first. A time of change is not used, because
# copies of a file differ in it, and a hash of the file's ends is cheap.
_CONTENT_KEYS = ("md5Hash", "Content-MD5", "Digest", "crc32c", "ETag", "etag", "generation")


def locate(path: AnyPath) -> Location:
    """Returns the place that a path or URL names. A file:// URL is local."""
    if isinstance(path, Path | RemotePath):
        return path
    text = os.fspath(path)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return RemotePath(text) if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) else Path(text)


def open_stream(path: AnyPath) -> io.BufferedReader:
    """Opens a file for reading from its start.

    Raises:
        InputError: it cannot be read.
    """
    place = locate(path)
    if isinstance(place, RemotePath):
        return remote.open_stream(place)
    with _readable(place):
        return io.BufferedReader(io.FileIO(place), _BUFFER_BYTES)


def read_all(path: AnyPath) -> bytes:
    """Returns the bytes of a small file.

    Raises:
        InputError: it cannot be read.
    """
    place = locate(path)
    if isinstance(place, RemotePath):
        return remote.read_all(place)
    with _readable(place):
        return place.read_bytes()


def size(path: AnyPath) -> int:
    """Returns the size of a file in bytes.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file cannot be read.
    """
    place = locate(path)
    if isinstance(place, RemotePath):
        return remote.file_info(place)["size"]
    with _readable(place):
        return os.path.getsize(place)


def exists(path: AnyPath) -> bool:
    """Returns whether there is such a file.

    Raises:
        InputError: that cannot be known.
    """
    try:
        size(path)
    except MissingFileError:
        return False
    return True


def identity(path: AnyPath) -> tuple[int, str]:
    """Returns a file's size in bytes, and a text that changes with its content.

    The text is the storage's own checksum or tag, or else a hash of both ends of the file.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file cannot be read.
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
    """Returns `function` of each of thousands of items, in order. The first error ends it."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, items))


class RangeReader:
    """Holds a file open for reading at any place by any thread.

    The file is closed when nobody holds the reader any more.
    """

    def __init__(self, path: AnyPath) -> None:
        self._path = locate(path)
        if isinstance(self._path, RemotePath):
            return
        with _readable(self._path):
            self._descriptor = os.open(self._path, os.O_RDONLY)
        # A method __del__ may run when the interpreter has already removed `os`, so there is none.
        # At exit the system closes the file.
        weakref.finalize(self, os.close, self._descriptor).atexit = False

    def read(self, offset: int, length: int) -> bytes:
        """Returns `length` bytes from byte `offset` on.

        Raises:
            InputError: the file does not have these bytes, or they cannot be read.
        """
        if isinstance(self._path, RemotePath):
            return remote.read_range(self._path, offset, length)
        try:  # and not _readable, which takes as long as reading a small image
            data = os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        if len(data) != length:
            found = f"found {len(data)}: the file has changed since it was indexed"
            raise InputError(f"{self._path}: expected {length} bytes at byte {offset}, {found}")
        return data


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns an error of the system about a local file into an InputError."""
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> InputError:
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    kind = MissingFileError if missing else InputError
    return kind(f"{path}: expected a readable file, found: {error.strerror}")
