"""Arrays of an Orbax checkpoint are read and written by layer with TensorStore.

Orbax itself reads what is written here, and writes what is read here.

    DIR/_METADATA        the tree: keys of every array
        manifest.ocdbt   and folders beside it: a key-value store with one Zarr array for every
                         leaf, named by its keys joined with "."
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from pi0_jax.convert.folder import Folder
from pi0_jax.convert.source import Leaf, Source, is_stacked
from pi0_jax.errors import FULL_DISK, InputError, expecting

METADATA = "_METADATA"
_CHUNK_BYTES = 128 << 20
_DICT_KEY = 2  # Orbax's number for a key of a dict
_CONTEXT = {"cache_pool": {"total_bytes_limit": 0}}  # no cache, because nothing is read twice


class OrbaxArrays:
    """Gives the arrays of an Orbax checkpoint, named by their keys joined with "/"."""

    def __init__(self, folder: Folder) -> None:
        """Opens all arrays of a folder, and reads none yet.

        Raises:
            InputError: it is no Orbax checkpoint, or one whose arrays cannot be opened.
        """
        self._folder = folder
        self._context = ts.Context(_CONTEXT)
        if METADATA not in folder:
            found = ", ".join(sorted(folder.names)[:5]) or "nothing"
            raise InputError(
                f"{folder}: expected an Orbax checkpoint with {METADATA}, found {found}"
            )
        record = folder.read_json(METADATA)
        self._zarr3 = "use_zarr3" in record and record["use_zarr3"]
        # If zeros are stored like all numbers, a chunk that is not there is lost.
        self._zeros_stored = (
            "store_array_data_equal_to_fill_value" in record
            and record["store_array_data_equal_to_fill_value"]
        )
        self._stores = {
            "/".join(keys): self._open(keys) for keys in _keys(record, str(folder.file(METADATA)))
        }
        self.infos = {
            name: Leaf(tuple(store.shape), store.dtype.numpy_dtype)
            for name, store in self._stores.items()
        }
        # The chunks that were read last: the array's name, their first entry, and the entries.
        self._block: tuple[str, int, np.ndarray] | None = None

    def _open(self, keys: list[str]) -> ts.TensorStore:
        """Opens an array."""
        name = ".".join(keys)
        url = _url(self._folder)
        kvstore = (
            {"driver": "ocdbt", "base": url, "path": f"{name}/"}
            if "manifest.ocdbt" in self._folder
            else f"{url}{name}/"
        )
        driver = "zarr3" if self._zarr3 else "zarr"
        spec = {
            "driver": driver,
            "kvstore": kvstore,
            "fill_missing_data_reads": not self._zeros_stored,
        }
        try:
            return ts.open(spec, open=True, read=True, context=self._context).result()
        except ValueError as error:
            raise InputError(
                f"{self._folder}: {name}: expected a readable array, found: {str(error).splitlines()[0]}"
            ) from error

    def read(self, name: str, entry: int | None = None) -> np.ndarray:
        """Reads an array, or its `entry` along the first axis.

        The chunks that hold an entry are kept. So for entries in a row they are read once.
        """
        store = self._stores[name]
        if entry is None:
            self._block = None
            return self._read(store, name)
        if (
            self._block is None
            or self._block[0] != name
            or not 0 <= entry - self._block[1] < len(self._block[2])
        ):
            chunk = store.chunk_layout.read_chunk.shape
            assert chunk is not None and chunk[0] is not None, name  # it is stored in chunks
            step = chunk[0]
            first = entry // step * step  # the first entry of the chunk that holds this one
            self._block = None  # frees its memory before the next chunks are read
            self._block = (
                name,
                first,
                self._read(store[first : min(first + step, store.shape[0])], name),
            )
        return self._block[2][entry - self._block[1]]

    def _read(self, store: ts.TensorStore, name: str) -> np.ndarray:
        """Reads an array; raises InputError if it is not whole."""
        try:
            return store.read().result()
        except ValueError as error:
            raise InputError(
                f"{self._folder}: {name}: expected a whole array, found: {str(error).splitlines()[0]}"
            ) from error


def _url(folder: Folder) -> str:
    """Returns a folder's URL as TensorStore wants it."""
    url = folder.url.rstrip("/")
    return f"file://{url}/" if isinstance(folder.place, Path) else f"{url}/"


def _keys(record: Mapping[str, Any], source: str) -> list[list[str]]:
    """Returns the keys of every array."""
    if "tree_metadata" not in record:
        raise InputError(f"{source}: expected tree_metadata, found {', '.join(record)}")
    with expecting("tree_metadata as Orbax writes it", source):
        return [
            [str(key["key"]) for key in entry["key_metadata"]]
            for entry in record["tree_metadata"].values()
        ]


class OrbaxWriter:
    """Fills a new directory, array by array."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._context = ts.Context(_CONTEXT)
        self._tree: dict[str, Any] = {}

    def write(
        self,
        name: str,
        leaf: Leaf,
        parts: Iterator[tuple[int | None, np.ndarray]],
        *,
        by_entry: bool,
    ) -> None:
        """Writes an array by its parts.

        Args:
            name: the array's keys, joined with "/".
            leaf: its shape and dtype.
            parts: pairs (entry along the first axis, array) if `by_entry`; else one pair (None, all
                of it).
            by_entry: whether each entry is written alone.
        """
        keys = tuple(name.split("/"))
        spec = {
            "driver": "zarr",
            "kvstore": {
                "driver": "ocdbt",
                "base": f"file://{self._folder.absolute()}/",
                "path": f"{'.'.join(keys)}/",
            },
            "metadata": {
                "shape": leaf.shape,
                "chunks": chunk_shape(leaf, by_entry),
                "compressor": {"id": "zstd", "level": 1},
            },
            "dtype": leaf.dtype.name,
            "store_data_equal_to_fill_value": True,
        }
        store = _written(ts.open(spec, create=True, context=self._context))
        for entry, array in parts:
            _written((store if entry is None else store[entry]).write(array))
        self._tree[str(keys)] = {
            "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in keys],
            "value_metadata": {
                "value_type": "np.ndarray",
                "skip_deserialize": False,
                "write_shape": list(leaf.shape),
            },
        }

    def close(self) -> None:
        """Writes the tree; without it the directory is no checkpoint."""
        record = {
            "tree_metadata": self._tree, "use_ocdbt": True, "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True, "custom_metadata": None,
        }  # fmt: skip
        (self._folder / METADATA).write_text(json.dumps(record))


def _written(future: Any) -> Any:
    """Returns the result of a write; where the disk is full it raises OSError.

    TensorStore has only words for that.
    """
    try:
        return future.result()
    except ValueError as error:
        for number in FULL_DISK:
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number)) from error
        raise


def write_leaves(source: Source, folder: Path, *, prefix: str) -> None:
    """Writes every leaf as an array named by `prefix` and its path.

    Large leaves that are stacked are written layer by layer.
    """
    writer = OrbaxWriter(folder)
    for path, leaf in source.leaves.items():
        by_layer = is_stacked(path) and math.prod(leaf.shape) * leaf.dtype.itemsize > _CHUNK_BYTES
        parts = source.parts(path) if by_layer else iter([(None, source.read(path))])
        writer.write(prefix + path, leaf, parts, by_entry=by_layer)
    writer.close()


def chunk_shape(leaf: Leaf, by_entry: bool) -> tuple[int, ...]:
    """Returns the shape of an array's chunks, which have at most 128 MiB.

    A chunk holds entries of the first axis, or a part of one. With `by_entry` it holds one entry at
    most, so that each is written alone.
    """
    shape = [1 if by_entry and axis == 0 else size for axis, size in enumerate(leaf.shape)]
    for axis, size in enumerate(shape):
        rest = math.prod(shape[axis + 1 :]) * leaf.dtype.itemsize
        shape[axis] = max(1, min(size, _CHUNK_BYTES // rest))
    return tuple(shape)
