"""Reads parquet files: whole small ones of meta/, and forward through those that hold frames."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pi0_jax.data.lerobot.declared import Feature
from pi0_jax.errors import InputError

# Rows that are held at a time, beside those of the episode; a row may hold several images.
_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20


def open_parquet(file: Path) -> pq.ParquetFile:
    """Opens a parquet file, which is then read page by page.

    Raises:
        InputError: the file is missing or no parquet file.
    """
    try:
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: expected a parquet file, found: {error}") from error


def read_columns(file: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Returns columns of a small parquet file as lists.

    Raises:
        InputError: the file is broken or a column is missing.
    """
    with open_parquet(file) as parquet:
        _check_columns(parquet, names, file)
        try:
            return parquet.read(list(names)).to_pydict()
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{file}: does not read: {error}") from error


def text_column(file: Path) -> str:
    """Returns the name of the only column of a parquet file that holds texts."""
    with open_parquet(file) as parquet:
        schema = parquet.schema_arrow
    texts = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    if len(texts) != 1:
        raise InputError(
            f"{file}: expected one column of texts, found {', '.join(texts) or 'none'}"
        )
    return texts[0]


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Returns the records of a file that has one JSON object on each line.

    Raises:
        InputError: the file is missing, or a line is no JSON object.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected a readable file, found: {error}") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise InputError(f"{file}: line {number}: expected JSON, found: {error}") from error
        if record is not None:
            if not isinstance(record, dict):
                raise InputError(f"{file}: line {number}: expected a JSON object, found {line!r}")
            records.append(record)
    return records


class RowReader:
    """Reads rows of parquet files. Rows that follow the last ones are read without going back."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = list(columns)
        self._file: Path | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._held: list[pa.RecordBatch] = []  # rows from self._row on
        self._row = 0

    def read(self, file: Path, rows: int, start: int, count: int) -> pa.Table:
        """Returns rows [start, start + count) of a file that should have `rows` rows.

        Raises:
            InputError: the file is missing, broken, or has another number of rows or no such
                column.
        """
        try:
            if file != self._file or start < self._row:
                self._open(file, rows, start)
            self._fill(start + count)
            table = pa.Table.from_batches(self._held)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{file}: does not read: {error}") from error
        skipped = start - self._row
        rest = table.slice(skipped + count)
        self._held, self._row = rest.to_batches(), start + count
        return table.slice(skipped, count)

    def _open(self, file: Path, rows: int, start: int) -> None:
        """Begins to read at the row group that holds row `start`."""
        parquet = open_parquet(file)
        _check_columns(parquet, self._columns, file)
        if parquet.metadata.num_rows != rows:
            raise InputError(
                f"{file}: expected {rows} rows as meta/ says, found {parquet.metadata.num_rows}"
            )
        first, group = 0, 0
        while first + (size := parquet.metadata.row_group(group).num_rows) <= start:
            first, group = first + size, group + 1
        self._file, self._row, self._held = file, first, []
        self._batches = parquet.iter_batches(
            _BATCH_ROWS, range(group, parquet.num_row_groups), self._columns, use_threads=False
        )

    def _fill(self, stop: int) -> None:
        """Reads until all rows below `stop` are in memory."""
        end = self._row + sum(len(batch) for batch in self._held)
        while end < stop:
            batch = next(self._batches)
            self._held.append(batch)
            end += len(batch)


def numbers(table: pa.Table, feature: Feature, where: str, *, round_float64: bool) -> np.ndarray:
    """Returns a feature's values in its declared dtype; float64 becomes float32.

    TFRecords hold floating-point numbers as float32.

    Args:
        table: n rows.
        feature: a feature of numbers.
        where: for messages.
        round_float64: whether numbers that float32 does not hold are rounded.

    Returns:
        [n, *shape].

    Raises:
        InputError: values are missing or have another shape, or the declared dtype does not hold
            them exactly (with `round_float64`, float32 may round float64).
    """
    column = table.column(feature.name).combine_chunks()
    expected = f"{feature.dtype} of shape {list(feature.shape)} in each of {len(table)} frames"
    # Lists of one value, and none, are the same.
    axes, per_frame = iter([size for size in feature.shape if size > 1]), 1
    while _is_list(column.type):
        _check_whole(column, where)
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        if (lengths != 1).any():
            size = next(axes, 1)
            if wrong := np.flatnonzero(lengths != size).tolist():
                raise InputError(
                    f"{where}: expected {expected}, found a list of {lengths[wrong[0]]} in frame {wrong[0] // per_frame}"
                )
            per_frame *= size
        column = column.flatten()
    _check_whole(column, where)
    values = column.to_numpy(zero_copy_only=False)
    shape = (len(table), *feature.shape)
    if values.size != np.prod(shape, dtype=int) or values.dtype.kind not in "fiub":
        raise InputError(
            f"{where}: expected {expected}, found {values.size} values of {values.dtype}"
        )
    wanted = np.dtype(feature.stored_dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        kept = values.astype(wanted)
        same = np.array_equal(kept.astype(values.dtype), values, equal_nan=values.dtype.kind == "f")
    if not same and not (round_float64 and values.dtype == np.float64 and wanted == np.float32):
        advice = "; --round_float64 rounds them" if wanted == np.float32 else ""
        raise InputError(
            f"{where}: expected numbers that {wanted} holds exactly, found others in {values.dtype}{advice}"
        )
    return kept.reshape(shape)


def texts(table: pa.Table, name: str, where: str) -> list[str]:
    """Returns the texts of a column, one for each row."""
    column = table.column(name)
    _check_whole(column, where)
    found = column.to_pylist()
    if not all(isinstance(text, str) for text in found):
        raise InputError(f"{where}: expected texts, found {column.type}")
    return found


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _check_whole(column: pa.Array, where: str) -> None:
    if column.null_count:
        raise InputError(
            f"{where}: expected a value in each frame, found {column.null_count} without one"
        )


def _check_columns(parquet: pq.ParquetFile, names: Sequence[str], file: Path) -> None:
    found = parquet.schema_arrow.names
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{file}: expected a column {missing[0]!r}, found {', '.join(found[:20])}")
