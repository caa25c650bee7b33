"""Says for which files and which rule an index was made, and keeps that in its index.json.

This record decides whether an index is still right. It has a hash of itself.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pi0_jax.data import storage
from pi0_jax.data.records.metadata import Shard, dataset_directory, list_shards, read_metadata
from pi0_jax.data.rows import Dataset, row_version
from pi0_jax.data.storage import AnyPath, Location, MissingFileError, locate
from pi0_jax.errors import InputError
from pi0_jax.files import cache_folder

INDEX_FILE = "index.json"
# This number is raised when the files of an index change, or the package's own part in their
# content.
INDEX_FORMAT = 4
_SEAL = "sha256"  # the hash of everything else in an index.json
SEALED = ("checksums", "told", "declared_sizes")  # only an index.json with such a hash has these
# What index.json held in every version.
_RECORD = {
    "steps": int,
    "episodes": int,
    "prompts": int,
    "views": list,
    "shards": list,
    "skipped": list,
}
_RECORD |= {"image_sizes": dict, "version": dict, "decode_all": bool}


def located(
    row: Dataset, data_dir: AnyPath, index_dir: AnyPath | None
) -> tuple[Location, Path, dict[str, Any]]:
    """Returns the dataset's directory, the folder of its indices, and the right version."""
    directory = dataset_directory(row, data_dir)
    return directory, _index_root(row, directory, index_dir), index_version(row, directory)


def _index_root(row: Dataset, directory: Location, index_dir: AnyPath | None) -> Path:
    if index_dir is None and isinstance(directory, Path):
        return directory / "pi0_index"
    folder = cache_folder() / "index" if index_dir is None else locate(index_dir)
    if not isinstance(folder, Path):
        raise InputError(
            f"dataset {row.name}: expected a local folder for its index, found {folder}"
        )
    return folder / row.name / directory.name


def index_version(row: Dataset, directory: Location) -> dict[str, Any]:
    """Returns {"format", "standardise", "files"} as plain data.

    All metadata are read, and of a shard what storage.identity needs.

    Raises:
        InputError: metadata are missing or wrong, or a shard is missing or not readable.
    """
    return {
        "format": INDEX_FORMAT,
        "standardise": row_version(row),
        "files": _fingerprint(row, directory),
    }


def version_digest(version: dict[str, Any]) -> str:
    """Returns 16 hexadecimal digits that name the version."""
    return hashlib.sha256(json.dumps(version, sort_keys=True).encode()).hexdigest()[:16]


def describe_difference(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    """Returns the first thing in which two versions differ, in words."""
    if wanted["format"] != found["format"]:
        return f"index format: expected {wanted['format']}, found {found['format']}"
    ours, theirs = wanted["standardise"], found["standardise"]
    for key in ours | theirs:
        if key not in ours or key not in theirs or ours[key] != theirs[key]:
            return f"the row's {key} changed since"
    for name in sorted(wanted["files"].keys() | found["files"].keys()):
        if name not in found["files"]:
            return f"file {name} is new"
        if name not in wanted["files"]:
            return f"file {name} is gone"
        if wanted["files"][name] != found["files"][name]:
            return f"file {name} changed since"
    return "no difference"


def _fingerprint(row: Dataset, directory: Location) -> dict[str, list[Any]]:
    """Returns file name -> [size in bytes, hash or tag]."""
    metadata = read_metadata(row, directory)
    shards = list_shards(row, directory, metadata)
    identities = storage.concurrently(lambda shard: _identity(row, shard), shards)
    files: dict[str, list[Any]] = {
        name: [len(data), hashlib.sha256(data).hexdigest()[:16]] for name, data in metadata.items()
    }
    return files | {
        shard.path.name: list(identity) for shard, identity in zip(shards, identities, strict=True)
    }


def _identity(row: Dataset, shard: Shard) -> tuple[int, str]:
    try:
        return storage.identity(shard.path)
    except MissingFileError as error:
        raise InputError(
            f"dataset {row.name}: split {shard.split}: expected the shard file {shard.path}, found none"
        ) from error


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what index.json holds, with its hash."""
    text = json.dumps(record, sort_keys=True)
    return {**record, _SEAL: hashlib.sha256(text.encode()).hexdigest()}


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes an index.json with its hash, and waits until the disk has it."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(sealed(record), file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())


def read_record(path: Path) -> dict[str, Any]:
    """Reads an index.json.

    Raises:
        InputError: the file is missing, changed or damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the description of an index, found: {error}") from error
    if found := _damage(record):
        raise InputError(
            f"{path}: expected the description of an index, found {found}: it was changed or is damaged;"
            f" delete {path.parent} and build the index again"
        )
    return record


def _damage(record: Any) -> str:
    """Returns what is wrong with the content of an index.json, or ""."""
    if not isinstance(record, dict):
        return type(record).__name__
    rest = {name: value for name, value in record.items() if name != _SEAL}
    # An index.json from before there was a hash has none.
    if (sealed(rest) != record) if _SEAL in record else not rest.keys().isdisjoint(SEALED):
        return "another checksum"
    wrong = (name for name, kind in _RECORD.items() if not isinstance(record.get(name), kind))
    return next((f"no {name}" for name in wrong), "")
