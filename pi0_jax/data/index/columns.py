"""Defines the columns of an index, and writes and reads their files.

A column is a .npy file. It grows while the index is built, and is mapped when the index is read.
"""

import contextlib
import os
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import google_crc32c
import numpy as np

from pi0_jax.data.rows import Dataset
from pi0_jax.errors import InputError

SPLITS = ("train", "val")
EPISODE_COLUMNS = {
    "start": "int64",  # number of its first step in the index
    "length": "int32",
    "stop": "int32",  # steps [0, stop) have an action
    "split": "uint8",  # place in SPLITS
    "shard": "int32",
    "record": "int32",  # within the shard
    "offset": "int64",  # of the record's payload within the shard
    "bytes": "int64",  # of the payload
    "success": "int8",  # 1 or 0, -1 where the dataset does not say
    "kept": "int32",  # steps that may be drawn
}
# The errors that NumPy raises for a damaged header.
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    OverflowError,
    TypeError,
    tokenize.TokenError,
)
# Column -> dtype and shape of a row.
Layout = dict[str, tuple[str, tuple[int, ...]]]


def step_columns(row: Dataset) -> Layout:
    return {
        "state": ("float32", (len(row.embodiment.state),)),
        "action": ("float32", (len(row.embodiment.actions),)),
        "image_offset": ("int64", (len(row.views),)),
        "image_length": ("uint32", (len(row.views),)),
        "prompt": ("int32", (len(row.language.paths),)),
    }


def index_columns(row: Dataset) -> Layout:
    """Returns all columns: of the steps, of the episodes, of kept frames and of prompts."""
    layout = step_columns(row) | {f"frames_{split}": ("int64", ()) for split in SPLITS}
    layout |= {f"episode_{name}": (dtype, ()) for name, dtype in EPISODE_COLUMNS.items()}
    return layout | {"prompt_text": ("uint8", ()), "prompt_end": ("int64", ())}


class ColumnWriter:
    """Writes one .npy file of unknown length, row by row, without holding it."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...] = ()) -> None:
        self._dtype, self._shape = np.dtype(dtype), shape
        self._file = open(path, "wb")
        self._rows = 0
        self._crc = 0
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        assert rows.shape[1:] == self._shape, (rows.shape, self._shape)
        rows = np.ascontiguousarray(rows, self._dtype)
        self._file.write(rows.data)
        self._rows += len(rows)
        self._crc = _extend(self._crc, rows)

    @property
    def checksum(self) -> list[int]:
        return [self._rows, self._crc]

    def close(self) -> None:
        """Completes the file and waits until the disk has it."""
        # NumPy leaves room in a header for the first axis to grow. So it is written again.
        end = self._file.tell()
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == end - self._rows * self._dtype.itemsize * int(
            np.prod(self._shape, dtype=np.int64)
        )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Closes the file as it is, after an error."""
        # The disk may be too full for what is still in the buffer.
        with contextlib.suppress(OSError):
            self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


def column_checksum(column: np.ndarray) -> list[int]:
    """Returns the number of rows of a column and the CRC-32C of their bytes. It reads all of it."""
    return [len(column), _extend(0, np.ascontiguousarray(column))]


def _extend(crc: int, rows: np.ndarray) -> int:
    return google_crc32c.extend(crc, rows.reshape(-1).view(np.uint8)) if rows.size else crc


class ColumnWriters:
    """Writes the columns of one directory, as a context manager."""

    def __init__(self, directory: Path, columns: Layout) -> None:
        self._writers = {
            name: ColumnWriter(column_path(directory, name), *layout)
            for name, layout in columns.items()
        }

    def __enter__(self) -> "ColumnWriters":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        for writer in self._writers.values():
            writer.close() if kind is None else writer.abandon()

    @property
    def checksums(self) -> dict[str, list[int]]:
        """Returns for each column the number of rows, and the CRC-32C of their bytes."""
        return {name: writer.checksum for name, writer in self._writers.items()}

    def append(self, **rows: np.ndarray) -> None:
        for name, values in rows.items():
            self._writers[name].append(values)


def column_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.npy"


def open_column(
    directory: Path, name: str, dtype: str, shape: tuple[int | None, ...]
) -> np.ndarray:
    """Maps a column for reading.

    Raises:
        InputError: the file is missing or damaged, or has another dtype or shape, where None is an
            axis of any length.
    """
    path = column_path(directory, name)
    try:
        column = np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except _UNREADABLE as error:
        raise InputError(f"{path}: expected a column of an index, found: {error}") from error
    fits = column.ndim == len(shape) and all(
        want in (None, have) for want, have in zip(shape, column.shape, strict=True)
    )
    if column.dtype != np.dtype(dtype) or not fits:
        raise InputError(
            f"{path}: expected {dtype}{list(shape)}, found {column.dtype}{list(column.shape)}"
        )
    return column


class Prompts(Sequence[str]):
    """Holds prompts that are mapped, and decoded when they are asked for."""

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self._text, self._ends = text, ends  # uint8[bytes], int64[p]

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> str: ...

    @overload
    def __getitem__(self, number: slice) -> list[str]: ...

    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        # An IndexError past the last prompt ends a loop over the sequence.
        end = self._ends[number]
        start = self._ends[number - 1] if number else 0
        return self._text[start:end].tobytes().decode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)
