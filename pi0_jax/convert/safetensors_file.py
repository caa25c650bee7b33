"""Files of safetensors are read by tensor, and written one tensor after another.

A whole file is never in memory, and no pages are mapped.

    8 bytes: length n of the header
    n bytes: JSON, name -> dtype, shape, [first, last) byte of the data
    the data
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from pi0_jax.convert.source import Leaf
from pi0_jax.data import storage
from pi0_jax.data.storage import Location, RangeReader
from pi0_jax.errors import InputError, expecting

DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100 << 20  # bytes, as the format says
_READ_BYTES = 256 << 20


class _Span(NamedTuple):
    """Says which bytes of which file a tensor is."""

    file: int
    first: int  # the first byte in the file
    length: int


class _Entry(NamedTuple):
    """Holds what a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    first: int  # the first byte in the data
    end: int


def _entry(dtype: str, shape: Sequence[int], data_offsets: Sequence[int]) -> _Entry:
    """Makes an entry of a header's fields."""
    return _Entry(str(dtype), tuple(map(index, shape)), *map(index, data_offsets))


class SafetensorsFiles:
    """Gives the tensors of one file, or of the shards of one model."""

    def __init__(self, files: Sequence[Location]) -> None:
        """Reads the headers of the files.

        Raises:
            InputError: a file is truncated or no safetensors; no parameter may have a tensor's
                dtype; or a name is in two files.
        """
        self.infos: dict[str, Leaf] = {}
        self._spans: dict[str, _Span] = {}
        self._readers = [RangeReader(file) for file in files]
        for number, file in enumerate(files):
            header, start = _header(file, self._readers[number])
            for name, entry in header.items():
                if name in self.infos:
                    raise InputError(f"{file}: {name} is in {files[self._spans[name].file]} too")
                self.infos[name] = _info(file, name, entry)
                self._spans[name] = _Span(number, start + entry.first, _bytes(self.infos[name]))

    def read(self, name: str, entry: int | None = None) -> np.ndarray:
        """Reads a tensor, or its `entry` along the first axis."""
        info, span = self.infos[name], self._spans[name]
        shape, first, length = info.shape, span.first, span.length
        if entry is not None:
            shape, length = shape[1:], length // shape[0]
            first += entry * length
        data = bytearray(length)
        for at in range(0, length, _READ_BYTES):
            count = min(_READ_BYTES, length - at)
            data[at : at + count] = self._readers[span.file].read(first + at, count)
        return np.frombuffer(data, info.dtype).reshape(shape)


def _bytes(leaf: Leaf) -> int:
    """Returns the number of bytes of a tensor."""
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _header(file: Location, reader: RangeReader) -> tuple[dict[str, _Entry], int]:
    """Returns the entries of a file, checked against its size, and the byte where data begin."""
    size = storage.size(file)
    if size < 8:
        raise InputError(f"{file}: expected a safetensors file, found {size} bytes")
    length = int.from_bytes(reader.read(0, 8), "little")
    if length > _LONGEST_HEADER:
        raise InputError(f"{file}: expected a safetensors file, found another format")
    if 8 + length > size:
        raise InputError(
            f"{file}: truncated: expected a header of {length} bytes, found {size - 8}"
        )
    with expecting("a safetensors header", str(file)):
        header = json.loads(reader.read(8, length).decode())
        header.pop("__metadata__", None)
        entries = {
            name: _entry(entry["dtype"], entry["shape"], entry["data_offsets"])
            for name, entry in header.items()
        }
    end = 0
    # The format wants neither gaps nor shared bytes.
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.first != end:
            raise InputError(
                f"{file}: {name}: expected its data where the tensor before ends, at byte {end}, found byte {entry.first}"
            )
        end = entry.end
    if 8 + length + end != size:
        raise InputError(
            f"{file}: {'truncated: ' if size < 8 + length + end else ''}expected {8 + length + end} bytes, found {size}"
        )
    return entries, 8 + length


def _info(file: Location, name: str, entry: _Entry) -> Leaf:
    """Returns a tensor's shape and dtype; raises InputError if its bytes do not fit to them."""
    if entry.dtype not in DTYPES:
        raise InputError(
            f"{file}: {name}: expected one of the dtypes {', '.join(DTYPES)}, found {entry.dtype}"
        )
    leaf = Leaf(entry.shape, DTYPES[entry.dtype])
    if entry.end - entry.first != _bytes(leaf):
        raise InputError(
            f"{file}: {name}: shape {list(leaf.shape)} of {entry.dtype} is {_bytes(leaf)} bytes, found {entry.end - entry.first}"
        )
    return leaf


def write(file: Path, leaves: Mapping[str, Leaf], arrays: Iterable[np.ndarray]) -> None:
    """Writes tensors one after another.

    Args:
        file: the new file.
        leaves: the tensors' shapes and dtypes, in the order in which they are written.
        arrays: the tensors in the same order. Each is held only while it is written.
    """
    # Hugging Face's loaders refuse a file without it.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, leaf in leaves.items():
        first, end = end, end + _bytes(leaf)
        header[name] = {
            "dtype": _NAMES[leaf.dtype],
            "shape": list(leaf.shape),
            "data_offsets": [first, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data are aligned to 8 bytes
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for (name, leaf), array in zip(leaves.items(), arrays, strict=True):
            assert array.shape == leaf.shape and array.dtype == leaf.dtype, (
                name,
                array.shape,
                array.dtype,
                leaf,
            )
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
