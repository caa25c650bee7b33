"""Arrays of an Orbax checkpoint are read and written by layer with TensorStore.

Orbax itself reads what is written here, and writes what is read here. It is not used, because it
holds at once all that it writes, and reads an array whole.

    DIR/_METADATA        the tree: keys of every array
        manifest.ocdbt   and folders beside it: a key-value store with one Zarr array for every
                         leaf, named by its keys joined with "."
"""

import json
import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from pi0_jax.convert.folder import Folder
from pi0_jax.convert.source import LazyArray, Source, is_stacked
from pi0_jax.errors import FULL_DISK, InputError, expecting

METADATA = "_METADATA"
_CHUNK_BYTES = 128 << 20
_DICT_KEY = 2  # Orbax's number for a key of a dict


def _context() -> ts.Context:
    """Returns settings without a cache, because nothing is read twice."""
    return ts.Context({"cache_pool": {"total_bytes_limit": 0}})


# ---- in


def read_arrays(folder: Folder) -> dict[str, LazyArray]:
    """Returns the arrays of a folder, named by their keys joined with "/"; none is read yet.

    Raises:
        InputError: it is no Orbax checkpoint, or one whose arrays cannot be opened.
    """
    if METADATA not in folder:
        found = ", ".join(sorted(folder.names)[:5]) or "nothing"
        raise InputError(f"{folder}: expected an Orbax checkpoint with {METADATA}, found {found}")
    record, context = folder.read_json(METADATA), _context()
    stores = {
        "/".join(keys): _open(folder, record, ".".join(keys), context)
        for keys in _keys(record, str(folder.file(METADATA)))
    }
    held: dict[tuple[str, int], np.ndarray] = {}
    return {
        name: LazyArray(
            tuple(store.shape),
            store.dtype.numpy_dtype,
            partial(_read, store, f"{folder}: {name}", held),
        )
        for name, store in stores.items()
    }


def _keys(record: Mapping[str, Any], source: str) -> list[list[str]]:
    """Returns the keys of every array."""
    if "tree_metadata" not in record:
        raise InputError(f"{source}: expected tree_metadata, found {', '.join(record)}")
    with expecting("tree_metadata as Orbax writes it", source):
        return [
            [str(key["key"]) for key in entry["key_metadata"]]
            for entry in record["tree_metadata"].values()
        ]


def _open(
    folder: Folder, record: Mapping[str, Any], name: str, context: ts.Context
) -> ts.TensorStore:
    """Opens an array."""
    url = folder.url.rstrip("/") + "/"
    if isinstance(folder.place, Path):
        url = f"file://{url}"
    kvstore = {"driver": "ocdbt", "base": url, "path": f"{name}/"}
    # If zeros are stored like all numbers, a chunk that is not there is lost.
    zeros_stored = record.get("store_array_data_equal_to_fill_value", False)
    spec = {
        "driver": "zarr3" if record.get("use_zarr3", False) else "zarr",
        "kvstore": kvstore if "manifest.ocdbt" in folder else f"{url}{name}/",
        "fill_missing_data_reads": not zeros_stored,
    }
    opening = ts.open(spec, open=True, read=True, context=context)
    return _result(opening, f"{folder}: {name}: expected a readable array")


def _result(future: Any, expected: str) -> Any:
    """Returns the result of a reading; raises InputError where TensorStore found something else."""
    try:
        return future.result()
    except ValueError as error:
        raise InputError(f"{expected}, found: {str(error).splitlines()[0]}") from error


def _read(
    store: ts.TensorStore,
    where: str,
    held: dict[tuple[str, int], np.ndarray],
    entry: int | None,
) -> np.ndarray:
    """Reads an array, or its `entry` along the first axis.

    The chunks that hold an entry are kept in `held` until others are read. So for entries in a row
    they are read once.
    """
    expected = f"{where}: expected a whole array"
    if entry is None:
        held.clear()
        return _result(store.read(), expected)
    chunk = store.chunk_layout.read_chunk.shape
    assert chunk is not None and chunk[0] is not None, where  # it is stored in chunks
    first = entry // chunk[0] * chunk[0]  # the first entry of the chunk that holds this one
    if (where, first) not in held:
        held.clear()  # frees its memory before the next chunks are read
        rows = store[first : min(first + chunk[0], store.shape[0])]
        held[where, first] = _result(rows.read(), expected)
    return held[where, first][entry - first]


# ---- out


def write_leaves(source: Source, folder: Path, *, prefix: str) -> None:
    """Fills a new directory with every leaf as an array named by `prefix` and its path.

    Large leaves that are stacked are written layer by layer.
    """
    folder.mkdir()
    context, tree = _context(), {}
    for path, leaf in source.leaves.items():
        by_layer = is_stacked(path) and leaf.nbytes > _CHUNK_BYTES
        keys = (prefix + path).split("/")
        store = _create(folder, ".".join(keys), leaf, by_layer, context)
        for layer in range(leaf.shape[0]) if by_layer else (None,):
            _written((store if layer is None else store[layer]).write(leaf.read(layer)))
        tree[str(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in keys],
            "value_metadata": {
                "value_type": "np.ndarray",
                "skip_deserialize": False,
                "write_shape": list(leaf.shape),
            },
        }
    record = {
        "tree_metadata": tree, "use_ocdbt": True, "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True, "custom_metadata": None,
    }  # fmt: skip
    # Without the tree the directory is no checkpoint, so it comes last.
    (folder / METADATA).write_text(json.dumps(record))


def _create(
    folder: Path, name: str, leaf: LazyArray, by_layer: bool, context: ts.Context
) -> ts.TensorStore:
    """Makes an array whose chunks have at most 128 MiB, and hold one layer at most if `by_layer`."""
    chunks = [1 if by_layer and axis == 0 else size for axis, size in enumerate(leaf.shape)]
    for axis, size in enumerate(chunks):
        rest = math.prod(chunks[axis + 1 :]) * leaf.dtype.itemsize
        chunks[axis] = max(1, min(size, _CHUNK_BYTES // rest))
    base = f"file://{folder.absolute()}/"
    compressor = {"id": "zstd", "level": 1}
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
        "metadata": {"shape": leaf.shape, "chunks": chunks, "compressor": compressor},
        "dtype": leaf.dtype.name,
        "store_data_equal_to_fill_value": True,
    }
    return _written(ts.open(spec, create=True, context=context))


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
