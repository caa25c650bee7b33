"""Statistics of states and actions: accumulate, apply, invert, save, load. Float64 on the host; no device code.

One set per (dataset, embodiment). Two ways to normalise, chosen in the config:
    zscore:   (x - mean) / (std + 1e-6)                          as published for π0
    quantile: 2 (x - q01) / (q99 - q01 + 1e-6) - 1
and where the config sets a clip, what lies beyond ±clip in model units is cut off. The way back never clips.
A dimension without spread (see `constant`) is never divided by: it is centred only.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np

from pi0_jax.errors import InputError
from pi0_jax.files import replacing

if TYPE_CHECKING:
    import jax

A = TypeVar("A", np.ndarray, "jax.Array")
Mode = Literal["zscore", "quantile"]
EPSILON = 1e-6
CONSTANT = 1e-6  # a dimension with less spread counts as constant
# of the float32 in which states and actions travel, relative to their size
RESOLUTION = float(np.finfo(np.float32).eps)
OUTLYING = 0.1  # of a standard deviation: if 98% of the values lie closer together, it is the others that make the spread

FAR = 20.0  # standard deviations from the mean: a value worth a look


class VectorStatistics(NamedTuple):
    """Per dimension, float64[n]. Statistics that we computed have every field; those read from norm_stats.json may lack some."""

    mean: np.ndarray
    std: np.ndarray  # population standard deviation
    q01: np.ndarray | None  # 1st percentile
    q99: np.ndarray | None
    minimum: np.ndarray | None
    maximum: np.ndarray | None

    @property
    def ranges(self) -> "Ranges":
        """Of statistics that we computed."""
        _, _, q01, q99, minimum, maximum = self
        assert q01 is not None and q99 is not None and minimum is not None and maximum is not None
        return Ranges(q01, q99, minimum, maximum)


class Ranges(NamedTuple):
    """What lies where, per dimension: float64[n]."""

    q01: np.ndarray
    q99: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray


class Statistics(NamedTuple):
    """Of one dataset on one embodiment, in robot units; actions after the delta conversion, over whole chunks."""

    state: VectorStatistics
    actions: VectorStatistics


# ---- accumulate


class Counted(NamedTuple):
    """Rows of which some occur many times."""

    values: np.ndarray  # float32 or float64[n, dims]
    counts: np.ndarray  # int64[n, dims]: how often each value occurs; 0 for one that does not, but some do in every dimension


Blocks = Iterable[np.ndarray | Counted]  # float32 or float64[n, dims], all of one dtype


class _Moments(NamedTuple):
    """Of one dimension."""

    number: int
    mean: float
    squares: float  # sum of squared distances from the mean
    minimum: float
    maximum: float


def accumulate(blocks: Blocks) -> VectorStatistics:
    """Exact statistics of the rows of all blocks; of any number, since one block is held at a time.

    The blocks are run through several times (three if float32, five if float64): give a list, or an object whose iterator begins
    anew, and no generator. Percentiles are those of np.quantile (method "linear").

    Raises InputError: no rows, a value that is not finite.
    """
    assert iter(blocks) is not blocks, (
        "blocks must be a list, or an object whose iterator begins anew"
    )
    moments: dict[int, _Moments] = {}
    dtypes = set()
    for dimension, values, counts in _columns(blocks):
        dtypes.add(values.dtype)
        found = _moments(values, counts)
        moments[dimension] = _merge(moments[dimension], found) if dimension in moments else found
    if not moments and any(
        len(block.values if isinstance(block, Counted) else block) for block in blocks
    ):
        # rows without a dimension: a robot that records no state
        return VectorStatistics(*np.empty((len(VectorStatistics._fields), 0)))
    if not moments:
        raise InputError("statistics of no rows: expected at least one")
    count, mean, squares, minimum, maximum = (
        np.array(field) for field in zip(*moments.values(), strict=True)
    )
    if not np.isfinite(squares).all():
        raise InputError(
            f"statistics of dimension {np.isfinite(squares).argmin()}: expected finite numbers, found NaN or infinity"
        )
    (dtype,) = dtypes
    q01, q99 = _quantiles(blocks, (0.01, 0.99), count, dtype)
    return VectorStatistics(mean, np.sqrt(squares / count), q01, q99, minimum, maximum)


def _columns(blocks: Blocks) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """(dimension, float[n], None or int64[n]) for every dimension of every block that has rows."""
    for block in blocks:
        values, counts = block if isinstance(block, Counted) else (np.asarray(block), None)
        if len(values):
            for dimension in range(values.shape[1]):
                occurs = slice(None) if counts is None else counts[:, dimension] > 0
                column = np.ascontiguousarray(values[occurs, dimension])
                yield dimension, column, None if counts is None else counts[occurs, dimension]


def _moments(values: np.ndarray, counts: np.ndarray | None) -> _Moments:
    x = values.astype(np.float64)
    count = len(x) if counts is None else int(counts.sum())
    mean = np.average(x, weights=counts)
    # About the mean, not about zero: a mean much larger than the spread costs no digits.
    return _Moments(
        count, mean, count * np.average((x - mean) ** 2, weights=counts), x.min(), x.max()
    )


def _merge(a: _Moments, b: _Moments) -> _Moments:
    """Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979)."""
    count, step = a.number + b.number, b.mean - a.mean
    squares = a.squares + b.squares + step**2 * (a.number * b.number / count)
    return _Moments(
        count,
        a.mean + step * b.number / count,
        squares,
        min(a.minimum, b.minimum),
        max(a.maximum, b.maximum),
    )


# Percentiles by radix selection: floats are mapped to integers of the same order, and the wanted one is found 16 bits at a time.
#
#   pass 1   how many values begin with each 16 bits                    -> the first 16 bits of the one of rank r, its rank among those
#   pass 2   of the values that begin so: how many go on with each 16   -> its next 16 bits; float32 is done, float64 goes on

_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS


class _Wanted(NamedTuple):
    """A value that is looked for."""

    prefix: int  # its key's digits so far
    rank: int  # its place among the values that have this prefix, from 0


def _quantiles(
    blocks: Blocks, levels: tuple[float, ...], count: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """float64[levels, dims]; `count` int64[dims] says how many values there are."""
    # float64[levels, dims]: a rank, or between two
    positions = np.array(levels)[:, None] * (count - 1)
    # [2, levels, dims]
    neighbours = np.stack([np.floor(positions), np.ceil(positions)]).astype(np.int64)
    wanted = [
        [_Wanted(0, rank) for rank in ranks]
        for ranks in neighbours.reshape(-1, len(count)).T.tolist()
    ]
    for shift in range(8 * dtype.itemsize - _DIGIT_BITS, -1, -_DIGIT_BITS):
        wanted = _descend(blocks, wanted, shift)
    found = np.stack(
        [_values_of_keys([one.prefix for one in row], dtype) for row in wanted], axis=1
    )
    low, high = found.reshape(neighbours.shape)
    return low + (high - low) * (positions - neighbours[0])


def _descend(blocks: Blocks, wanted: list[list[_Wanted]], shift: int) -> list[list[_Wanted]]:
    """The wanted values of each dimension with one more digit: the one that ends at bit `shift`."""
    tables = [{one.prefix: np.zeros(_DIGITS, np.int64) for one in row} for row in wanted]
    for dimension, values, counts in _columns(blocks):
        keys = _ordered_keys(values) >> shift
        for prefix, table in tables[dimension].items():
            chosen = keys >> _DIGIT_BITS == prefix
            _tally(table, keys[chosen] & (_DIGITS - 1), None if counts is None else counts[chosen])
    return [
        [_next_digit(one, table[one.prefix]) for one in row]
        for row, table in zip(wanted, tables, strict=True)
    ]


def _next_digit(wanted: _Wanted, histogram: np.ndarray) -> _Wanted:
    """`histogram`: int64[65536], how often each digit follows the prefix."""
    below = np.cumsum(histogram)
    digit = int(np.searchsorted(below, wanted.rank, side="right"))
    return _Wanted(
        (wanted.prefix << _DIGIT_BITS) + digit, wanted.rank - int(below[digit] - histogram[digit])
    )


def _tally(histogram: np.ndarray, digits: np.ndarray, counts: np.ndarray | None) -> None:
    if len(digits):
        # Weighted counts are float64 in NumPy, exact below 2^53.
        histogram += np.bincount(digits.astype(np.intp), weights=counts, minlength=_DIGITS).astype(
            np.int64, copy=False
        )


def _ordered_keys(values: np.ndarray) -> np.ndarray:
    """uint32 (of float32) or uint64 (of float64), same shape: larger for larger numbers.

    Of IEEE 754 numbers read as integers, positive ones are in order, negative ones the other way round: the sign bit of the first
    and all bits of the second are turned.
    """
    assert values.dtype in (np.float32, np.float64), (
        f"expected float32 or float64 blocks, got {values.dtype}"
    )
    bits = 8 * values.dtype.itemsize
    unsigned, signed = (np.dtype(f"{kind}{bits}") for kind in ("uint", "int"))
    negative = (values.view(signed) >> (bits - 1)).view(unsigned)  # all ones, or zero
    return values.view(unsigned) ^ (negative | unsigned.type(1 << (bits - 1)))


def _values_of_keys(keys: list[int], dtype: np.dtype) -> np.ndarray:
    """Inverts `_ordered_keys`; float64."""
    unsigned = np.dtype(np.uint32 if dtype == np.float32 else np.uint64)
    sign = 1 << (8 * dtype.itemsize - 1)
    restored = [key ^ sign if key & sign else ~key & (2 * sign - 1) for key in keys]
    return np.array(restored, unsigned).view(dtype).astype(np.float64)


# ---- apply, invert


def constant(statistics: VectorStatistics, mode: Mode) -> np.ndarray:
    """bool[n]: dimensions that hardly vary, so that the mode cannot scale them.

    The standard deviation, in quantile mode also q99 - q01, is below 1e-6 or below what float32 resolves at the size of the mean; or,
    in quantile mode, q99 - q01 is below a tenth of the standard deviation.
    """
    least = np.maximum(CONSTANT, RESOLUTION * np.abs(statistics.mean))
    still = statistics.std < least
    if mode == "zscore":
        return still
    q01, q99 = _percentiles(statistics)
    # A gripper that is open in 99.5% of the frames varies, and yet both quantiles are "open", or nearly.
    return still | (q99 - q01 < np.maximum(least, OUTLYING * statistics.std))


def reach(vector: VectorStatistics) -> np.ndarray:
    """float64[n]: how many standard deviations the farthest value lies from the mean."""
    return np.maximum(vector.maximum - vector.mean, vector.mean - vector.minimum) / (
        vector.std + EPSILON
    )


def _percentiles(statistics: VectorStatistics) -> tuple[np.ndarray, np.ndarray]:
    if statistics.q01 is None or statistics.q99 is None:
        raise InputError("quantile normalisation: expected statistics with q01 and q99, found none")
    return statistics.q01, statistics.q99


def _offset_and_scale(statistics: VectorStatistics, mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    if mode == "zscore":
        offset, scale = statistics.mean, statistics.std + EPSILON
    elif mode == "quantile":
        q01, q99 = _percentiles(statistics)
        scale = (q99 - q01 + EPSILON) / 2
        offset = q01 + scale
    else:
        raise InputError(f"normalisation {mode!r} is unknown; expected zscore or quantile")
    return offset, np.where(constant(statistics, mode), 1.0, scale)


def normalize(x: A, statistics: VectorStatistics, mode: Mode) -> A:
    """Robot units float[..., n] -> model units float32[..., n]."""
    offset, scale = _offset_and_scale(statistics, mode)
    return ((x - offset) / scale).astype(np.float32)


def clipped(x: A, clip: float) -> A:
    """Model units within ±clip; clip 0 sets no bound."""
    return x.clip(-clip, clip) if clip else x


def denormalize(x: A, statistics: VectorStatistics, mode: Mode) -> A:
    """Model units float[..., n] -> robot units float32[..., n]."""
    offset, scale = _offset_and_scale(statistics, mode)
    return (x * scale + offset).astype(np.float32)


# ---- save, load

FIELDS = {
    "mean": "mean",
    "std": "std",
    "q01": "q01",
    "q99": "q99",
    "min": "minimum",
    "max": "maximum",
}
_REQUIRED = ("mean", "std")


def to_json(statistics: Statistics) -> dict[str, Any]:
    """Plain data that keeps every bit; a field that there is not is None."""
    return {part: _vector_to_json(vector) for part, vector in statistics._asdict().items()}


def from_json(record: Mapping[str, Any], source: str) -> Statistics:
    """`source` names the file in errors."""

    def vector(part: str) -> VectorStatistics:
        found = record[part] if part in record and isinstance(record[part], Mapping) else {}
        missing = [
            f"{part}.{key}"
            for key in FIELDS
            if key not in found or (key in _REQUIRED and found[key] is None)
        ]
        if missing:
            raise InputError(f"{source}: statistics lack {', '.join(missing)}")
        mean, std, *ranges = (_numbers(found[key], f"{source}: {part}.{key}") for key in FIELDS)
        assert mean is not None and std is not None  # they are required
        return check(VectorStatistics(mean, std, *ranges), source, part)

    return Statistics(vector("state"), vector("actions"))


def check(vector: VectorStatistics, source: str, part: str) -> VectorStatistics:
    """`vector`. `source` names the file in errors, `part` is "state" or "actions".

    Raises InputError for what no data give: lengths that differ, a number that is not finite, std < 0, q99 < q01, max < min.
    """
    given = {key: values for key, values in zip(FIELDS, vector, strict=True) if values is not None}
    for key, values in given.items():
        if len(values) != len(vector.mean):
            raise InputError(
                f"{source}: {part}.{key}: expected {len(vector.mean)} numbers as in {part}.mean, found {len(values)}"
            )
        if not np.isfinite(values).all():
            i = int(np.isfinite(values).argmin())
            raise InputError(
                f"{source}: {part}.{key}[{i}]: expected a finite number, found {values[i]}"
            )
    if ("q01" in given) != ("q99" in given):
        raise InputError(f"{source}: {part}: expected q01 and q99, or neither; found one of them")
    given["zero"] = np.zeros(len(vector.mean))
    for low, high in (("zero", "std"), ("q01", "q99"), ("min", "max")):
        if (
            low in given
            and high in given
            and (below := given[high] < given[low] - RESOLUTION * np.abs(given[low])).any()
        ):
            i = int(below.argmax())
            raise InputError(
                f"{source}: {part}.{high}[{i}]: expected at least {low} ({given[low][i]:g}), found {given[high][i]:g}"
            )
    return vector


def _vector_to_json(vector: VectorStatistics) -> dict[str, Any]:
    return {
        key: None if values is None else values.tolist()
        for key, values in zip(FIELDS, vector, strict=True)
    }


def _numbers(value: Any, where: str) -> np.ndarray | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in value
    ):
        raise InputError(f"{where}: expected a list of numbers, found {json.dumps(value)[:60]}")
    try:
        return np.array(value, np.float64)
    except OverflowError as error:
        raise InputError(
            f"{where}: expected numbers that float64 holds, found {json.dumps(value)[:60]}"
        ) from error


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """The file appears under its name only when it is whole; its folder must exist."""
    with replacing(file) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        json.dump(record, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
