"""Which files and which rule an index was made for: the record that decides whether an index is still right."""

import hashlib
import json
from typing import Any

from pi0_jax.data import storage
from pi0_jax.data.metadata import Shard, list_shards, read_metadata
from pi0_jax.data.rows import Dataset, row_version
from pi0_jax.data.storage import Location, MissingFileError
from pi0_jax.errors import InputError

INDEX_FORMAT = (
    4  # raised when the files of an index, or the package's own part in their content, change
)


def index_version(row: Dataset, directory: Location) -> dict[str, Any]:
    """{"format", "standardise", "files"} as plain data. Of metadata all is read, of a shard what storage.identity needs.

    Raises InputError: metadata missing or wrong, a shard missing or not readable.
    """
    return {
        "format": INDEX_FORMAT,
        "standardise": row_version(row),
        "files": _fingerprint(row, directory),
    }


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


def _fingerprint(row: Dataset, directory: Location) -> dict[str, list[Any]]:
    """File name -> [size in bytes, hash or tag]."""
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
