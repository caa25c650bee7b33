"""Computes, applies, inverts, saves and loads statistics of states and actions.

All statistics are float64 on the host; there is no device code. Each pair of dataset and
embodiment has one set. A config chooses one of two ways to normalise:

    zscore:   (x - mean) / (std + 1e-6)                          as published for π0
    quantile: 2 (x - q01) / (q99 - q01 + 1e-6) - 1

If the config sets a clip, values beyond ±clip in model units are cut off. The way back never
clips. A dimension without spread (see `constant`) is centred only, and never divided.
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
# The resolution of float32, in which states and actions travel, relative to a number's size.
RESOLUTION = float(np.finfo(np.float32).eps)
# A share of the standard deviation. If 98% of the values lie closer together than this, a few
# other values make the spread.
OUTLYING = 0.1
_DIGIT_BITS = 16  # of the radix selection of percentiles
FAR = 20.0  # a value so many standard deviations from the mean is worth a look


class VectorStatistics(NamedTuple):
    """Holds the statistics of each dimension, float64[n].

    The fields are mean, population standard deviation, 1st and 99th percentile, smallest and
    largest value. Statistics that we computed have all of them. Those read from norm_stats.json may
    lack some.
    """

    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray | None
    q99: np.ndarray | None
    minimum: np.ndarray | None
    maximum: np.ndarray | None

    @property
    def ranges(self) -> "Ranges":
        """Returns percentiles and extremes. Only statistics that we computed have all of them."""
        _, _, q01, q99, minimum, maximum = self
        assert q01 is not None and q99 is not None and minimum is not None and maximum is not None
        return Ranges(q01, q99, minimum, maximum)


class Ranges(NamedTuple):
    """Holds percentiles and extremes of each dimension, float64[n]."""

    q01: np.ndarray
    q99: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray


class Statistics(NamedTuple):
    """Holds the statistics of one dataset on one embodiment, in robot units.

    Those of actions are taken after the conversion to deltas, over whole chunks.
    """

    state: VectorStatistics
    actions: VectorStatistics


# ---- accumulate


class Counted(NamedTuple):
    """Holds rows of which some occur many times, and others in some dimensions only."""

    values: np.ndarray  # float32 or float64[n, dims]
    counts: np.ndarray  # int64[n, dims]: how often each occurs; in each dimension some do


Blocks = Iterable[np.ndarray | Counted]  # float32 or float64[n, dims], all of one dtype


class _Moments(NamedTuple):
    """Holds the moments of one dimension."""

    number: int
    mean: float
    squares: float  # sum of squared distances from the mean
    minimum: float
    maximum: float


def accumulate(blocks: Blocks) -> VectorStatistics:
    """Computes exact statistics of the rows of all blocks.

    One block is held at a time, so there may be any number of them. They are iterated several
    times (three times for float32, five times for float64). So `blocks` is a list, or an object
    whose iterator begins anew, and not a generator. Percentiles are those of np.quantile (method
    "linear").

    Raises:
        InputError: there are no rows, or a value is not finite.
    """
    assert iter(blocks) is not blocks, "expected a list, or an object whose iterator begins anew"
    moments: dict[int, _Moments] = {}
    dtypes = set()
    for dimension, values, counts in _columns(blocks):
        dtypes.add(values.dtype)
        found = _moments(values, counts)
        moments[dimension] = _merge(moments[dimension], found) if dimension in moments else found
    if not moments and any(
        len(block.values if isinstance(block, Counted) else block) for block in blocks
    ):
        # A robot that records no state has rows without a dimension.
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
    """Yields the number of a dimension, its values float[n], and their counts int64[n] or None."""
    for block in blocks:
        values, counts = block if isinstance(block, Counted) else (np.asarray(block), None)
        if len(values):
            # Values that do not occur in this dimension are left out, so each count is above 0.
            for dimension in range(values.shape[1]):
                occurs = slice(None) if counts is None else counts[:, dimension] > 0
                column = np.ascontiguousarray(values[occurs, dimension])
                yield dimension, column, None if counts is None else counts[occurs, dimension]


def _moments(values: np.ndarray, counts: np.ndarray | None) -> _Moments:
    """Computes the moments of float[n], where each value counts `counts` times."""
    x = values.astype(np.float64)
    count = len(x) if counts is None else int(counts.sum())
    mean = np.average(x, weights=counts)
    # Squares are taken about the mean, so that one much larger than the spread costs no digits.
    squares = count * np.average((x - mean) ** 2, weights=counts)
    return _Moments(count, mean, squares, x.min(), x.max())


def _merge(a: _Moments, b: _Moments) -> _Moments:
    """Merges the moments of two sets of values.

    Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances (1979).
    """
    count, step = a.number + b.number, b.mean - a.mean
    squares = a.squares + b.squares + step**2 * (a.number * b.number / count)
    return _Moments(
        count,
        a.mean + step * b.number / count,
        squares,
        min(a.minimum, b.minimum),
        max(a.maximum, b.maximum),
    )


def _quantiles(
    blocks: Blocks, levels: tuple[float, ...], count: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """Returns the quantiles float64[levels, dims] of `count` (int64[dims]) values.

    They are found by radix selection: as integers of the same order, 16 bits at a time.

        pass 1   counts the values that begin with each 16 bits
                 -> the first 16 bits of the value of rank r, and its rank among those
        pass 2   counts, of those, the values that go on with each 16 bits
                 -> the next 16 bits; float32 is done, float64 goes on
    """
    # float64[levels, dims]: a quantile's rank from 0. It may lie between two whole ranks.
    positions = np.array(levels)[:, None] * (count - 1)
    # int64[2 levels, dims]: the whole ranks below and above. Both values are looked for.
    ranks = np.concatenate([np.floor(positions), np.ceil(positions)]).astype(np.int64)
    keys = np.zeros(ranks.shape, f"uint{8 * dtype.itemsize}")  # the digits of each so far
    for shift in range(8 * dtype.itemsize - _DIGIT_BITS, -1, -_DIGIT_BITS):
        tables = [
            {prefix: np.zeros(1 << _DIGIT_BITS, np.int64) for prefix in column}
            for column in keys.T.tolist()
        ]
        for dimension, values, counts in _columns(blocks):
            digits = _ordered_keys(values) >> shift
            for prefix, table in tables[dimension].items():
                chosen = digits >> _DIGIT_BITS == prefix
                last = (digits[chosen] & (len(table) - 1)).astype(np.intp)
                weights = None if counts is None else counts[chosen]
                # NumPy's weighted counts are float64, which is exact below 2^53.
                table += np.bincount(last, weights, len(table)).astype(np.int64, copy=False)
        for i, dimension in np.ndindex(ranks.shape):
            table = tables[dimension][int(keys[i, dimension])]
            below = np.cumsum(table)
            digit = np.searchsorted(below, ranks[i, dimension], side="right")
            ranks[i, dimension] -= below[digit] - table[digit]
            keys[i, dimension] = (int(keys[i, dimension]) << _DIGIT_BITS) + int(digit)
    low, high = np.split(_values_of_keys(keys, dtype), 2)
    return low + (high - low) * (positions - np.floor(positions))


def _ordered_keys(values: np.ndarray) -> np.ndarray:
    """Maps floats to unsigned integers of the same shape, size and order."""
    # The bits of positive numbers (IEEE 754), read as integers, are in order, and those of negative
    # numbers in the opposite order. So the sign bit of the positive ones and all bits of the
    # negative ones are inverted.
    assert values.dtype in (np.float32, np.float64), values.dtype
    bits = 8 * values.dtype.itemsize
    unsigned, signed = (np.dtype(f"{kind}{bits}") for kind in ("uint", "int"))
    negative = (values.view(signed) >> (bits - 1)).view(unsigned)  # all ones, or zero
    return values.view(unsigned) ^ (negative | unsigned.type(1 << (bits - 1)))


def _values_of_keys(keys: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Inverts `_ordered_keys` and returns float64."""
    sign = keys.dtype.type(1 << (8 * dtype.itemsize - 1))
    return np.where(keys & sign, keys ^ sign, ~keys).view(dtype).astype(np.float64)


# ---- apply, invert


def constant(statistics: VectorStatistics, mode: Mode) -> np.ndarray:
    """Returns bool[n]: True for dimensions that vary so little that the mode cannot scale them.

    In both modes the standard deviation is below 1e-6, or below what float32 resolves at the size
    of the mean. In quantile mode it is also enough if q99 - q01 is that small, or below a tenth of
    the standard deviation.
    """
    least = np.maximum(CONSTANT, RESOLUTION * np.abs(statistics.mean))
    still = statistics.std < least
    if mode == "zscore":
        return still
    q01, q99 = _percentiles(statistics)
    # A gripper that is open in 99.5% of the frames varies, but both its percentiles are "open",
    # or nearly so.
    return still | (q99 - q01 < np.maximum(least, OUTLYING * statistics.std))


def farthest_deviation(vector: VectorStatistics) -> np.ndarray:
    """Returns float64[n]: how many standard deviations the farthest value lies from the mean."""
    return np.maximum(vector.maximum - vector.mean, vector.mean - vector.minimum) / (
        vector.std + EPSILON
    )


def _percentiles(statistics: VectorStatistics) -> tuple[np.ndarray, np.ndarray]:
    if statistics.q01 is None or statistics.q99 is None:
        raise InputError("quantile normalisation: expected statistics with q01 and q99, found none")
    return statistics.q01, statistics.q99


def offset_and_scale(statistics: VectorStatistics, mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    """Returns what normalising subtracts and divides by, float64[n] each, or raises InputError."""
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
    """Converts float[..., n] in robot units to float32[..., n] in model units."""
    offset, scale = offset_and_scale(statistics, mode)
    return ((x - offset) / scale).astype(np.float32)


def clipped(x: A, clip: float) -> A:
    """Cuts values in model units off at ±clip. A clip of 0 sets no bound."""
    return x.clip(-clip, clip) if clip else x


def denormalize(x: A, statistics: VectorStatistics, mode: Mode) -> A:
    """Converts float[..., n] in model units to float32[..., n] in robot units."""
    offset, scale = offset_and_scale(statistics, mode)
    return (x * scale + offset).astype(np.float32)


# ---- save, load

FIELDS = ("mean", "std", "q01", "q99", "min", "max")  # of VectorStatistics, in its order
_REQUIRED = ("mean", "std")


def to_json(statistics: Statistics) -> dict[str, Any]:
    """Returns the statistics as plain data that keep every bit. A missing field is None."""
    return {
        part: {
            key: None if values is None else values.tolist()
            for key, values in zip(FIELDS, vector, strict=True)
        }
        for part, vector in statistics._asdict().items()
    }


def from_json(record: Mapping[str, Any], source: str) -> Statistics:
    """Reads what `to_json` returned, and checks it. `source` names the file in messages."""

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
    """Checks the statistics of one vector and returns them.

    Messages name the file, which is `source`, and the part, "state" or "actions".

    Raises:
        InputError: a number is not finite, lengths differ, std < 0, q99 < q01, or max < min.
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
    # With a row of zeros, std >= 0 is checked as the other pairs are.
    given["zero"] = np.zeros(len(vector.mean))
    for low, high in (("zero", "std"), ("q01", "q99"), ("min", "max")):
        if low not in given or high not in given:
            continue
        if (below := given[high] < given[low] - RESOLUTION * np.abs(given[low])).any():
            i = int(below.argmax())
            raise InputError(
                f"{source}: {part}.{high}[{i}]: expected at least {low} ({given[low][i]:g}), found {given[high][i]:g}"
            )
    return vector


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
    """Writes a JSON file, which appears under its name only when it is whole."""
    with replacing(file) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        json.dump(record, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
