"""Reads what a dataset says of itself: its version's folder, its metadata, and its shards.

Shards are named as TFDS names them, from dataset_info.json. They are never listed, since a web
server does not list. Reading them needs no TFDS.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pi0_jax.data import storage
from pi0_jax.data.remote import RemotePath
from pi0_jax.data.rows import Dataset
from pi0_jax.data.storage import AnyPath, Location, MissingFileError
from pi0_jax.errors import InputError
from pi0_jax.files import cache_folder, replacing

_INFO, _FEATURES = "dataset_info.json", "features.json"
METADATA_FILES = (_INFO, _FEATURES)
# TFDS's template for the names of shards, where a dataset says no other.
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_FOREIGN = {"*.hdf5": "HDF5", "*.h5": "HDF5", "*.zarr*": "Zarr", "*.parquet": "Parquet"}
_FOREIGN |= {"*.bag": "ROS bag"}


@dataclasses.dataclass(frozen=True)
class Shard:
    """Holds one shard file of a dataset."""

    split: str  # the dataset's own name
    path: Location
    episodes: int
    first: int  # the number, within the split, of its first episode


def dataset_directory(row: Dataset, data_dir: AnyPath) -> Location:
    """Returns data_dir/tfds_name/version for the first of the row's versions that is there.

    Raises:
        InputError: none is there.
    """
    parent = storage.locate(data_dir) / row.tfds_name
    if isinstance(parent, RemotePath):
        for version in row.versions:
            if storage.exists(parent / version / _INFO):
                return parent / version
        raise InputError(
            f"dataset {row.name}: expected {' or '.join(row.versions)}/{_INFO} in {parent}, found none"
        )
    try:
        found = sorted(os.listdir(parent))
    except OSError as error:
        if other := foreign_format(parent.parent):
            raise InputError(f"dataset {row.name}: {other}") from error
        raise InputError(
            f"dataset {row.name}: expected a readable directory {parent}, found: {error.strerror}"
        ) from error
    for version in row.versions:
        if version in found:
            return parent / version
    if other := foreign_format(parent):
        raise InputError(f"dataset {row.name}: {other}")
    raise InputError(
        f"dataset {row.name}: expected version {' or '.join(row.versions)} in {parent}, found {', '.join(found) or 'nothing'}"
    )


def foreign_format(folder: Path) -> str:
    """Returns what a folder holds that is no folder of RLDS datasets, and what to do, or ""."""
    if (folder / "meta" / "info.json").is_file():
        return (
            f"{folder} is a LeRobot dataset (meta/info.json), which is not read here: expected RLDS, <name>/<version>/dataset_info.json"
            f" and TFRecords; make them with: python -m launch.import_lerobot --input={folder} --output=DATA_DIR"
        )
    if (folder / _INFO).is_file():
        return (
            f"{folder} is one version of an RLDS dataset ({_INFO}): expected the folder two levels up, data_dir, of"
            " data_dir/<name>/<version>"
        )
    for pattern, kind in _FOREIGN.items():
        if example := next(iter(sorted(folder.glob(pattern))), None):
            return f"{folder} holds {kind} files ({example.name}): expected RLDS, <name>/<version>/dataset_info.json and TFRecords"
    return ""


def read_metadata(row: Dataset, directory: Location) -> dict[str, bytes]:
    """Returns the content of METADATA_FILES, by name.

    Raises:
        InputError: a file is missing, or is no JSON.
    """
    files: dict[str, bytes] = {}
    for name in METADATA_FILES:
        try:
            files[name] = storage.read_all(directory / name)
            json.loads(files[name])
        except MissingFileError as error:
            raise InputError(
                f"dataset {row.name}: expected a readable {directory / name}, found: No such file"
            ) from error
        except ValueError as error:
            raise InputError(
                f"dataset {row.name}: expected JSON in {directory / name}, found: {error}"
            ) from error
    return files


def declared_image_sizes(row: Dataset, directory: Location) -> dict[str, list[int | None]]:
    """Returns for each view of the row the height and width that features.json declares.

    A height or width is None where any is allowed.
    """
    features = json.loads(read_metadata(row, directory)[_FEATURES])
    return {view: _declared_size(features, view.split("/")) for view in row.views}


def _declared_size(feature: Any, path: list[str]) -> list[int | None]:
    """Returns height and width of the image that the names in `path` lead to."""
    match feature:
        case {"sequence": {"feature": inner}}:
            return _declared_size(inner, path)
        case {"featuresDict": {"features": {**features}}} if path and path[0] in features:
            return _declared_size(features[path[0]], path[1:])
        case {"image": {"shape": {"dimensions": [height, width, _]}}} if not path:
            return [int(size) if int(size) > 0 else None for size in (height, width)]
    return [None, None]


def list_shards(row: Dataset, directory: Location, metadata: Mapping[str, bytes]) -> list[Shard]:
    """Returns the shard files in the dataset's order, whether or not they are there.

    Raises:
        InputError: the metadata name no shard.
    """
    info = json.loads(metadata[_INFO])
    try:
        splits = [_split_shards(directory, info, split) for split in info["splits"]]
        shards = list(itertools.chain.from_iterable(splits))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = f"none of {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"dataset {row.name}: {directory / _INFO}: expected metadata that TFDS can open, found {found}"
        ) from error
    if not shards:
        raise InputError(
            f"dataset {row.name}: {directory / _INFO}: expected at least one shard, found none"
        )
    return shards


def local_metadata(directory: Location, metadata: Mapping[str, bytes]) -> Path:
    """Returns a local folder with the metadata files.

    It is the dataset's own folder, or a copy in the cache. If the content changes, a new copy is
    made.

    Raises:
        InputError: the cache cannot be written.
    """
    if isinstance(directory, Path):
        return directory
    digest = hashlib.sha256(
        b"".join(hashlib.sha256(metadata[name]).digest() for name in METADATA_FILES)
    ).hexdigest()[:16]
    folder = cache_folder() / "metadata" / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in metadata.items():
            if not (folder / name).is_file() or (folder / name).read_bytes() != content:
                with replacing(folder / name) as temporary:
                    temporary.write_bytes(content)
    except OSError as error:
        found = f"found: {error.strerror}; set XDG_CACHE_HOME to another folder"
        raise InputError(f"{folder}: expected a folder that can be written, {found}") from error
    return folder


def _split_shards(
    directory: Location, info: Mapping[str, Any], split: Mapping[str, Any]
) -> Iterator[Shard]:
    """Yields the shards of one split, with the names that TFDS gives them."""
    lengths = split["shardLengths"] if "shardLengths" in split else []
    template = (split["filepathTemplate"] if "filepathTemplate" in split else "") or _TEMPLATE
    digits = max(5, len(str(len(lengths))))
    total, first = f"{len(lengths):0{digits}}", 0
    for number, episodes in enumerate(map(int, lengths)):
        shard = f"{number:0{digits}}"
        name = template.format(
            DATASET=info["name"],
            SPLIT=split["name"],
            FILEFORMAT=info["fileFormat"] if "fileFormat" in info else "tfrecord",
            SHARD_INDEX=shard,
            NUM_SHARDS=total,
            SHARD_X_OF_Y=f"{shard}-of-{total}",
        )
        if "/" in name:
            raise ValueError(f"a shard in a folder of its own: {name}")
        yield Shard(split["name"], directory / name, episodes, first)
        first += episodes
