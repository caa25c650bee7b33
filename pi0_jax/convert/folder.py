"""A checkpoint's directory lies on this machine or behind a URL that fsspec knows (gs://, s3://).

This module says what is in it, and publishes a new one.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from pi0_jax.data import remote, storage
from pi0_jax.data.remote_errors import diagnose, errors
from pi0_jax.data.storage import AnyPath, Location, RangeReader, RemotePath
from pi0_jax.errors import FULL_DISK, InputError
from pi0_jax.files import new_path

_REMOTE_BUFFER = 8 << 20


class Folder:
    """Lists a directory once, when it is opened.

    Attributes:
        place: where the directory lies.
        names: what is in it.
    """

    def __init__(self, path: AnyPath) -> None:
        """Lists the directory.

        Raises:
            InputError: there is nothing, or nothing that can be listed.
        """
        self.place = storage.locate(path)
        self.names = frozenset(_listed(self.place))

    def __str__(self) -> str:
        return str(self.place)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def url(self) -> str:
        """Returns the URL for libraries.

        Messages name the folder itself, because a URL may hold secrets.
        """
        return str(self.place.absolute()) if isinstance(self.place, Path) else self.place.url

    def file(self, name: str) -> Location:
        """Returns the place of a file of the folder."""
        return self.place / name

    def folder(self, name: str) -> "Folder":
        """Returns a folder inside of this one."""
        return Folder(self.place / name)

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON object; raises InputError if the file is something else."""
        file = self.file(name)
        data = storage.read_all(file)
        try:
            record = json.loads(data)
        except ValueError as error:
            raise InputError(f"{file}: expected JSON, found: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{file}: expected a JSON object, found {type(record).__name__}")
        return record


def _listed(place: Location) -> list[str]:
    """Returns the names in a directory."""
    if isinstance(place, RemotePath):
        with _remote_files(place) as (files, name):
            return [entry.rstrip("/").rpartition("/")[2] for entry in files.ls(name, detail=False)]
    try:
        return os.listdir(place)
    except OSError as error:
        found = "nothing" if isinstance(error, FileNotFoundError) else error.strerror
        raise InputError(f"{place}: expected a checkpoint, found {found}") from error


@contextlib.contextmanager
def _remote_files(place: RemotePath) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """Gives the file system of a URL and the name there.

    Errors of the file system in the block become an InputError.
    """
    files, name = remote.file_system(place)
    try:
        yield files, name.rstrip("/")
    except errors(place.protocol) as error:
        found = diagnose(error, place.protocol).found
        found = "nothing" if found == "none" else found
        raise InputError(f"{place}: expected a checkpoint, found {found}") from None


# ---- files


def is_file(place: Location) -> bool:
    """Returns whether a place is a file."""
    if isinstance(place, Path):
        return place.is_file()
    with _remote_files(place) as (files, name):
        return files.isfile(name)


def open_file(place: Location) -> BinaryIO:
    """Opens a file for reading anywhere in it.

    Raises:
        InputError: the file cannot be read; for a local one it may be an OSError.
    """
    if isinstance(place, Path):
        return open(place, "rb")
    return io.BufferedReader(_RemoteFile(place), _REMOTE_BUFFER)


class _RemoteFile(io.RawIOBase):
    """Reads a file behind a URL by its byte ranges."""

    def __init__(self, place: RemotePath) -> None:
        self._reader, self._size, self._at = RangeReader(place), storage.size(place), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._reader.read(self._at, max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


# ---- publishing


def check_absent(output: AnyPath) -> None:
    """Raises InputError if a conversion would write over something."""
    place = storage.locate(output)
    if isinstance(place, RemotePath):
        with _remote_files(place) as (files, name):
            taken = files.exists(name)
    else:
        taken = os.path.lexists(place)
    if taken:
        raise InputError(f"{place}: exists; expected a new path to write to")


@contextlib.contextmanager
def new_folder(output: AnyPath, last: str) -> Iterator[Path]:
    """Gives a local directory to fill, which appears at `output` when the block ends.

    After an error nothing appears. For a URL the directory is then copied there.

    Args:
        output: a new path or URL.
        last: a file or folder that is copied last; without it the format is not recognised.

    Raises:
        InputError: something is there, it cannot be written, or the disk is full.
    """
    check_absent(output)
    place = storage.locate(output)
    parent = Path(tempfile.gettempdir())
    try:
        if isinstance(place, Path):
            parent = place.absolute().parent
            parent.mkdir(parents=True, exist_ok=True)
        temporary = new_path(parent, f".{place.name}-unfinished-")
        temporary.mkdir()
    except OSError as error:
        raise InputError(
            f"{place}: expected a place that can be written, found: {error.strerror}"
        ) from error
    try:
        yield temporary
        if isinstance(place, Path):
            check_absent(place)
            os.rename(temporary, place)
        else:
            _upload(temporary, place, last)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise InputError(
            f"{place}: expected more space on its disk, found: {error.strerror}; nothing is left there"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _upload(folder: Path, place: RemotePath, last: str) -> None:
    """Copies a folder to a URL; `last` comes at the end."""
    names = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    with _remote_files(place) as (files, root):
        for name in sorted(names, key=lambda name: (name.parts[0] == last, name)):
            target = f"{root}/{name.as_posix()}"
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
            files.put_file(str(folder / name), target)
