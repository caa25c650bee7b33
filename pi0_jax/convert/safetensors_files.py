"""Files of safetensors are read by tensor, and written one tensor after another.

    8 bytes: length n of the header
    n bytes: JSON, name -> dtype, shape, [first, last) byte of the data
    the data

The library reads files of this machine alone, maps what it reads, and writes what is all in
memory. Here a file may be behind a URL, and holds more than memory does. One model is a single
file, or shards, with or without an index.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pi0_jax.convert.folder import Folder
from pi0_jax.convert.source import LazyArray, Tensors
from pi0_jax.data import storage
from pi0_jax.data.storage import Location, RangeReader
from pi0_jax.errors import InputError, expecting

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100 << 20  # bytes, as the format says
_READ_BYTES = 256 << 20


# ---- one file


def read_file(file: Location) -> dict[str, LazyArray]:
    """Reads a file's header, and returns its tensors, which are not read yet.

    Raises:
        InputError: the file is truncated or no safetensors, or no parameter may have a tensor's
            dtype.
    """
    reader, size = RangeReader(file), storage.size(file)
    if size < 8:
        raise InputError(f"{file}: expected a safetensors file, found {size} bytes")
    start = 8 + int.from_bytes(reader.read(0, 8), "little")
    if start > _LONGEST_HEADER:
        raise InputError(f"{file}: expected a safetensors file, found another format")
    if start > size:
        raise InputError(
            f"{file}: truncated: expected a header of {start - 8} bytes, found {size - 8}"
        )
    with expecting("a safetensors header", str(file)):
        header = json.loads(reader.read(8, start - 8).decode())
        header.pop("__metadata__", None)
        entries = [
            (*map(index, entry["data_offsets"]), name, str(entry["dtype"]), tuple(map(index, entry["shape"])))
            for name, entry in header.items()
        ]  # fmt: skip
    tensors, end = {}, 0
    # The format wants neither gaps nor shared bytes.
    for first, last, name, dtype, shape in sorted(entries):
        where = f"{file}: {name}"
        if first != end:
            raise InputError(
                f"{where}: expected its data where the tensor before ends, at byte {end}, found byte {first}"
            )
        if dtype not in DTYPES:
            raise InputError(
                f"{where}: expected one of the dtypes {', '.join(DTYPES)}, found {dtype}"
            )
        read = partial(_read, reader, start + first, shape, DTYPES[dtype])
        tensors[name] = LazyArray(shape, DTYPES[dtype], read)
        if last - first != tensors[name].nbytes:
            raise InputError(
                f"{where}: shape {list(shape)} of {dtype} is {tensors[name].nbytes} bytes, found {last - first}"
            )
        end = last
    if start + end != size:
        raise InputError(
            f"{file}: {'truncated: ' if size < start + end else ''}expected {start + end} bytes, found {size}"
        )
    return {name: tensors[name] for name in header}


def _read(
    reader: RangeReader, first: int, shape: tuple[int, ...], dtype: np.dtype, entry: int | None
) -> np.ndarray:
    """Reads the tensor whose data begin at byte `first`, or its `entry` along the first axis."""
    shape = shape if entry is None else shape[1:]
    length = math.prod(shape) * dtype.itemsize
    first += length * (entry or 0)
    data = bytearray(length)
    for at in range(0, length, _READ_BYTES):
        count = min(_READ_BYTES, length - at)
        data[at : at + count] = reader.read(first + at, count)
    return np.frombuffer(data, dtype).reshape(shape)


def write_file(file: Path, tensors: Tensors) -> None:
    """Writes tensors one after another. Each is read, and held, only while it is written."""
    # Hugging Face's loaders refuse a file without it.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        first, end = end, end + tensor.nbytes
        dtype = _NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data are aligned to 8 bytes
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            array = tensor.read(None)
            assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype), (name, tensor)
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def one_dtype(tensors: Tensors) -> str:
    """Returns what a config.json calls the dtype of these tensors; mixed ones run in the wider."""
    names = {tensor.dtype.name for tensor in tensors.values()}
    return "bfloat16" if names == {"bfloat16"} else "float32"


# ---- one model


def are_in(folder: Folder) -> bool:
    """Returns whether a folder holds such files."""
    return SINGLE in folder or INDEX in folder or any(map(_SHARD.fullmatch, folder.names))


def read_folder(folder: Folder) -> dict[str, LazyArray]:
    """Opens the files of a folder as one model.

    Raises:
        InputError: a shard is missing, or lacks a tensor that the index names; a name is in two
            files; or `read_file` raises it.
    """
    weight_map = _weight_map(folder) if INDEX in folder else {}
    names = _file_names(folder, weight_map)
    if missing := [name for name in names if name not in folder]:
        raise InputError(f"{folder}: {', '.join(missing[:3])}: a shard is missing")
    files = {name: read_file(folder.file(name)) for name in names}
    tensors: dict[str, LazyArray] = {}
    for file, found in files.items():
        for name in found.keys() & tensors.keys():
            first = next(other for other in files if name in files[other])
            raise InputError(f"{folder.file(file)}: {name} is in {folder.file(first)} too")
        tensors.update(found)
    if absent := [name for name in weight_map if name not in tensors]:
        raise InputError(f"{folder.file(INDEX)}: {', '.join(absent[:3])}: named here, in no shard")
    return tensors


def _file_names(folder: Folder, weight_map: Mapping[str, str]) -> Sequence[str]:
    """Returns the names of the files that make the model."""
    shards = [found for name in folder.names if (found := _SHARD.fullmatch(name))]
    if SINGLE in folder and (shards or INDEX in folder):
        raise InputError(f"{folder}: expected {SINGLE} or shards, found both")
    if SINGLE in folder:
        return [SINGLE]
    if INDEX in folder:
        return sorted(set(weight_map.values()))
    if len(counts := {found[2] for found in shards}) > 1:
        some = " and some of ".join(sorted(counts))
        raise InputError(f"{folder}: expected shards of one model, found some of {some}")
    digits, count = len(shards[0][1]), shards[0][2]
    return [f"model-{i + 1:0{digits}d}-of-{count}.safetensors" for i in range(int(count))]


def _weight_map(folder: Folder) -> Mapping[str, str]:
    """Returns the index: tensor -> file."""
    record = folder.read_json(INDEX)
    if "weight_map" not in record or not isinstance(record["weight_map"], dict):
        raise InputError(f"{folder.file(INDEX)}: expected a weight_map, found {', '.join(record)}")
    return record["weight_map"]
