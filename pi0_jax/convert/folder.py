"""A checkpoint's directory, on this machine or behind a URL that fsspec knows (gs://, s3://): what is in it, and publishing one."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from pi0_jax.data import storage
from pi0_jax.data.storage import Location, RemotePath
from pi0_jax.errors import InputError


class Folder:
    """A directory, or one file in it; listed once, when it is opened."""

    def __init__(self, path: str | os.PathLike[str] | Location) -> None:
        """Raises InputError where there is nothing, or nothing that can be listed."""
        self.place = storage.locate(path)
        try:
            self.names = frozenset(_listed(self.place))
        except (OSError, ImportError, ValueError) as error:
            found = "nothing" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
            raise InputError(f"{self.place}: expected a checkpoint, found {found}") from error

    def __str__(self) -> str:
        return str(self.place)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def file(self, name: str) -> Location:
        return self.place / name

    def folder(self, name: str) -> "Folder":
        return Folder(self.place / name)

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises InputError if the file is not a JSON object."""
        try:
            record = json.loads(storage.read_all(self.file(name)).decode())
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.file(name)}: expected JSON, found: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{self.file(name)}: expected a JSON object, found {type(record).__name__}")
        return record


def is_file(place: Location) -> bool:
    if isinstance(place, Path):
        return place.is_file()
    files, root = fsspec.core.url_to_fs(place.url)
    return files.isfile(root)


def _listed(place: Location) -> list[str]:
    if isinstance(place, Path):
        return os.listdir(place)
    files, root = fsspec.core.url_to_fs(place.url)
    return [entry.rstrip("/").rpartition("/")[2] for entry in files.ls(root, detail=False)]


def check_absent(output: str | os.PathLike[str]) -> None:
    """InputError where a conversion would write over something."""
    place = storage.locate(output)
    if isinstance(place, RemotePath):
        files, root = fsspec.core.url_to_fs(place.url)
        taken = files.exists(root)
    else:
        taken = os.path.lexists(place)
    if taken:
        raise InputError(f"{place}: exists; expected a new path to write to")


@contextlib.contextmanager
def new_folder(output: str | os.PathLike[str], last: str) -> Iterator[Path]:
    """A local directory to fill, which appears at `output` when the block ends without an error; else nothing does.

    To a URL it is then copied, with `last` (a file or folder without which the format is not recognised) at the end.
    """
    check_absent(output)
    place = storage.locate(output)
    parent = None
    if isinstance(place, Path):
        parent = place.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}-unfinished-", dir=parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's is for its user alone
        if isinstance(place, Path):
            check_absent(place)
            os.rename(temporary, place)
        else:
            _upload(temporary, place, last)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _upload(folder: Path, place: RemotePath, last: str) -> None:
    files, root = fsspec.core.url_to_fs(place.url)
    names = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    for name in sorted(names, key=lambda name: (name.parts[0] == last, name)):
        target = f"{root.rstrip('/')}/{name.as_posix()}"
        files.makedirs(target.rpartition("/")[0], exist_ok=True)
        files.put_file(str(folder / name), target)
