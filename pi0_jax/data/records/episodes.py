"""Reads raw episodes of an RLDS dataset: opened with TFDS, checked against a row, no image decoded.

An episode is one tf.train.Example. TFDS flattens the feature structure into names
("steps/observation/state") and lays the values of all steps one after the other.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pi0_jax.data.records.example import ByteRanges, Feature, Payload, parse_example
from pi0_jax.data.records.metadata import Shard, list_shards, local_metadata, read_metadata
from pi0_jax.data.records.tfrecord import Record
from pi0_jax.data.rows import STEPS, Dataset, RawField
from pi0_jax.data.storage import Location
from pi0_jax.errors import InputError

IS_FIRST, IS_LAST = f"{STEPS}is_first", f"{STEPS}is_last"
# The marks of RLDS that say where an episode begins and ends.
_MARKS = (IS_FIRST, IS_LAST, f"{STEPS}is_terminal")


class RawEpisode(NamedTuple):
    """Holds one record. T is its number of steps, the same in every column and camera."""

    where: str  # split, number, file and record, for messages
    number: int  # the episode's number within the split
    record: int  # the record's number within the shard
    steps: int  # T
    columns: Mapping[str, np.ndarray]  # path -> [T, *shape]; [*shape] for a field of the episode
    images: Mapping[str, ByteRanges]  # path of a view -> T ranges of bytes within the payload
    prompts: list[list[str]]  # for each language field T texts, or one for the episode
    marks: Mapping[str, np.ndarray]  # path -> bool[T], for those of RLDS's marks that it has
    payload: Payload  # the record's bytes, which are valid until the next record is read
    offset: int  # where the payload begins within the file, in bytes


class _Declared(NamedTuple):
    """Holds what a dataset declares for a field."""

    kind: str  # the TFDS feature's class name
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.kind} {self.dtype}{list(self.shape)}"


def open_shards(row: Dataset, directory: Location) -> list[Shard]:
    """Returns the shard files in the dataset's order, after checking the fields that the row needs.

    Whether the files are there, `version.index_version` checks.

    Raises:
        InputError: the metadata are missing or unreadable, the files have another format, or a
            field is missing or unlike the row's.
    """
    try:
        import tensorflow_datasets as tfds
        from google.protobuf.json_format import ParseError
    except ImportError as error:
        raise InputError(
            f"dataset {row.name}: reading {directory} needs the package tensorflow-datasets:"
            f" pip install 'pi0_jax[data]' (found: {error})"
        ) from error
    metadata = read_metadata(row, directory)
    try:
        info = tfds.builder_from_directory(local_metadata(directory, metadata)).info
        declared = _declared_fields(tfds, info.features)
    except (ParseError, ValueError, KeyError, TypeError, AttributeError) as error:
        # TFDS raises these for metadata that it cannot use.
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"dataset {row.name}: {directory}: expected metadata that TFDS can open, found: {message}"
        ) from error
    if info.file_format is None or info.file_format.value != "tfrecord":
        raise InputError(
            f"dataset {row.name}: {directory}: expected file format tfrecord, found {info.file_format}"
        )
    _check_fields(row, declared)
    return list_shards(row, directory, metadata)


def _declared_fields(tfds: Any, feature: Any, path: str = "") -> dict[str, _Declared]:
    """Returns every leaf of the feature structure; sequences other than the steps are leaves."""
    if isinstance(feature, tfds.features.FeaturesDict):
        leaves: dict[str, _Declared] = {}
        for name, child in feature.items():
            leaves |= _declared_fields(tfds, child, f"{path}/{name}" if path else name)
        return leaves
    if isinstance(feature, tfds.features.Dataset) and f"{path}/" == STEPS:
        return _declared_fields(tfds, feature.feature, path)
    if isinstance(feature, tfds.features.Image | tfds.features.Tensor | tfds.features.Text):
        # For an image its own shape and type are meant. For a tensor the stored ones are meant: an
        # encoded tensor is a string.
        stored = (
            feature if isinstance(feature, tfds.features.Image) else feature.get_serialized_info()
        )
        dtype = np.dtype(stored.np_dtype)
        name = "string" if dtype.kind == "O" else dtype.name
        return {path: _Declared(type(feature).__name__, tuple(stored.shape), name)}
    return {path: _Declared(type(feature).__name__, (), "")}


def _check_fields(row: Dataset, declared: Mapping[str, _Declared]) -> None:
    """Checks that the dataset declares every field of the row as the row has it."""
    text = RawField((), "string")
    coded = row.language.encoding == "code points"
    needed = {**({} if coded else dict.fromkeys(row.language.paths, text)), **row.fields}
    for path in (*needed, *row.language.paths, *row.views):
        if path not in declared:
            raise InputError(
                f"dataset {row.name}: expected field {path}, found {', '.join(sorted(declared))}"
            )

    def check(path: str, expected: str, fits: bool) -> None:
        if not fits:
            raise InputError(
                f"dataset {row.name}: field {path}: expected {expected}, found {declared[path]}"
            )

    for path, field in needed.items():
        kind, *found = declared[path]
        fits = kind != "Image" and found == [field.shape, field.dtype]
        check(path, f"{field.dtype}{list(field.shape)}", fits)
    for path in row.language.paths if coded else ():
        _, shape, dtype = declared[path]
        check(path, "int32[n] code points", (len(shape), dtype) == (1, "int32"))
    for path in row.views:
        kind, shape, dtype = declared[path]
        fits = (kind, dtype, len(shape)) == ("Image", "uint8", 3) and shape[2] in (3, None)
        check(path, "a uint8 RGB image", fits)


def raw_episode(row: Dataset, shard: Shard, record: Record) -> RawEpisode:
    """Returns the episode that a record of `shard` holds.

    Raises:
        InputError: the record is damaged, a field does not fit its declaration, or there is no step.
    """
    number = shard.first + record.number
    if record.damage:
        raise InputError(
            f"dataset {row.name}: split {shard.split} episode {number}: {shard.path}: {record.damage}"
        )
    where = f"dataset {row.name}: split {shard.split} episode {number} ({shard.path.name} record {record.number})"
    try:
        features = parse_example(
            record.payload, {*row.language.paths, *row.fields, *row.views, *_MARKS}
        )
    except ValueError as error:
        raise InputError(f"{where}: expected a tf.train.Example, found: {error}") from error
    columns = {
        path: _column(features, record.payload, path, field, where)
        for path, field in row.fields.items()
    }
    images = {path: _ranges(features, path, where) for path in row.views}
    lengths = {path: len(values) for path, values in columns.items() if path.startswith(STEPS)}
    lengths |= {path: len(ranges.offsets) for path, ranges in images.items()}
    steps = _common_length(lengths, where)
    prompts = [
        _prompts(features, record.payload, path, row.language.encoding, steps, where)
        for path in row.language.paths
    ]
    marks = {path: _mark(features[path], path, steps, where) for path in _MARKS if path in features}
    held = (columns, images, prompts, marks)
    return RawEpisode(where, number, record.number, steps, *held, record.payload, record.offset)


def _mark(value: Feature, path: str, steps: int, where: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.size != steps or not np.isin(value, (0, 1)).all():
        found = f"{value.size} numbers" if isinstance(value, np.ndarray) else "none"
        raise InputError(f"{where}: field {path}: expected {steps} times 0 or 1, found {found}")
    return value != 0


def _value(features: Mapping[str, Feature], path: str, where: str) -> Feature:
    if path not in features:
        raise InputError(f"{where}: expected field {path}, found none in the record")
    return features[path]


def _ranges(features: Mapping[str, Feature], path: str, where: str) -> ByteRanges:
    """Returns the values of a field of bytes, as ranges within the payload."""
    value = _value(features, path, where)
    if value is None:
        return ByteRanges(np.empty(0, np.int64), np.empty(0, np.int64))
    if not isinstance(value, ByteRanges):
        raise InputError(f"{where}: field {path}: expected bytes, found {value.dtype} numbers")
    return value


def _copies(ranges: ByteRanges, payload: Payload, count: int | None = None) -> list[bytes]:
    """Returns copies of the first `count` values."""
    places = zip(ranges.offsets[:count].tolist(), ranges.lengths[:count].tolist(), strict=True)
    return [bytes(payload[offset : offset + length]) for offset, length in places]


def _column(
    features: Mapping[str, Feature], payload: Payload, path: str, field: RawField, where: str
) -> np.ndarray:
    """Returns a field as [T, *shape], or [*shape] for a field of the episode.

    It has the declared dtype; a "string" is an object of type bytes.
    """
    if field.dtype == "string":
        ranges = _ranges(features, path, where)
        flat: np.ndarray = np.array(_copies(ranges, payload), object)
    else:
        value = _value(features, path, where)
        if isinstance(value, ByteRanges):
            raise InputError(f"{where}: field {path}: expected {field.dtype} numbers, found bytes")
        numbers = np.empty(0) if value is None else value
        flat = _exactly(numbers, field.dtype, f"{where}: field {path}")
    # The number of steps is found from the number of values: -1 is what is left.
    leading = (-1,) if path.startswith(STEPS) else ()
    try:
        return flat.reshape((*leading, *field.shape))
    except ValueError as error:
        raise InputError(
            f"{where}: field {path}: expected values of shape {list(field.shape)}, found {flat.size} numbers"
        ) from error


def _exactly(values: np.ndarray, dtype: str, where: str) -> np.ndarray:
    """Returns values, which a record holds as float32[n] or int64[n], in the declared dtype.

    Raises:
        InputError: a value would change, or it is a whole number and not a float, or the reverse.
    """
    if not values.size or (
        np.can_cast(values.dtype, dtype) and values.dtype.kind == np.dtype(dtype).kind
    ):
        return values.astype(dtype, copy=False)
    fits = (values.dtype.kind == "f") == (np.dtype(dtype).kind == "f")
    if not fits:
        raise InputError(f"{where}: expected {dtype} numbers, found {values.dtype} numbers")
    # A float that is too large becomes infinite, which is found below.
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    # NaN differs from itself, and is no change.
    changed = (cast != values) & (values == values)
    if changed.any():
        raise InputError(f"{where}: expected {dtype} numbers, found {values[changed][0]}")
    return cast


def _common_length(lengths: Mapping[str, int], where: str) -> int:
    reference, steps = next(iter(lengths.items()))
    for path, found in lengths.items():
        if found != steps:
            raise InputError(
                f"{where}: field {path}: expected {steps} steps as {reference} has, found {found}"
            )
    if steps == 0:
        raise InputError(f"{where}: expected at least one step, found none")
    return steps


def _prompts(
    features: Mapping[str, Feature],
    payload: Payload,
    path: str,
    encoding: str,
    steps: int,
    where: str,
) -> list[str]:
    """Returns the instruction at every step, or one if it never changes, both stripped."""
    if encoding == "code points":
        value = _value(features, path, where)
        codes = np.empty(0, np.int64) if value is None or isinstance(value, ByteRanges) else value
        said = steps if path.startswith(STEPS) else 1
        if not codes.size or codes.size % said:
            raise InputError(
                f"{where}: field {path}: expected code points for {said} steps, found {codes.size} numbers"
            )
        rows = codes.reshape(said, -1)
        distinct = rows[:1] if (rows == rows[0]).all() else rows
        return [_from_code_points(row, f"{where}: field {path}") for row in distinct]
    ranges = _ranges(features, path, where)
    if len(ranges.offsets) != (steps if path.startswith(STEPS) else 1):
        raise InputError(
            f"{where}: field {path}: expected an instruction for each of {steps} steps, found {len(ranges.offsets)}"
        )
    # Where all values are known to be equal, only the first is copied.
    values = _copies(ranges, payload, 1 if ranges.equal else None)
    texts = values[:1] if values.count(values[0]) == len(values) else values
    try:
        return [text.decode("utf-8").strip() for text in texts]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: field {path}: expected UTF-8, found {error.object!r}"
        ) from error


def _from_code_points(codes: np.ndarray, where: str) -> str:
    """Returns the text of int[n] code points up to the first 0."""
    text = codes[: np.flatnonzero(codes == 0)[0]] if (codes == 0).any() else codes
    try:
        said = "".join(map(chr, text.tolist())).strip()
        said.encode()
    except ValueError as error:
        # The numbers are no code points, or they are surrogates.
        raise InputError(f"{where}: expected Unicode code points, found {text.tolist()}") from error
    return said
