"""Which files and which rule an index was made for: the record that decides whether an index is still right."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pi0_jax.data.episodes import METADATA_FILES
from pi0_jax.data.rows import DatasetRow, row_version
from pi0_jax.errors import InputError

INDEX_FORMAT = 3  # raised when the files of an index, or the package's own part in their content, change
_ENDS_BYTES = 4096


def index_version(row: DatasetRow, directory: Path) -> dict[str, Any]:
    """{"format", "standardise", "files"} as plain data. Of a shard size and both ends are read, of metadata all."""
    return {"format": INDEX_FORMAT, "standardise": row_version(row), "files": _fingerprint(directory)}


def version_digest(version: dict[str, Any]) -> str:
    """16 hexadecimal digits that name the version."""
    return hashlib.sha256(json.dumps(version, sort_keys=True).encode()).hexdigest()[:16]


def describe_difference(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    """The first thing in which two versions differ, in words."""
    if wanted["format"] != found["format"]:
        return f"index format: expected {wanted['format']}, found {found['format']}"
    for key, value in wanted["standardise"].items():
        if key not in found["standardise"] or found["standardise"][key] != value:
            return f"the row's {key} changed since"
    for name in sorted(wanted["files"].keys() | found["files"].keys()):
        if name not in found["files"]:
            return f"file {name} is new"
        if name not in wanted["files"]:
            return f"file {name} is gone"
        if wanted["files"][name] != found["files"][name]:
            return f"file {name} changed since"
    return "no difference"


def _fingerprint(directory: Path) -> dict[str, list[Any]]:
    """File name -> [size in bytes, hash]."""
    try:
        names = [name for name in sorted(os.listdir(directory)) if ".tfrecord" in name or name in METADATA_FILES]
        return {name: file_fingerprint(directory / name) for name in names}
    except OSError as error:
        raise InputError(f"{error.filename}: expected a readable file or directory, found: {error.strerror}") from error


def file_fingerprint(path: Path) -> list[Any]:
    """[size in bytes, hash] of one file, as `index_version` has it."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if path.name in METADATA_FILES:
            data = file.read(size)
        else:
            data = file.read(_ENDS_BYTES)
            file.seek(max(0, size - _ENDS_BYTES))
            data += file.read(_ENDS_BYTES)
    return [size, hashlib.sha256(data).hexdigest()[:16]]
