"""One episode of an index: standardised, validated, its images located."""

import functools
import operator
import statistics
import zlib
from typing import Any, NamedTuple

import numpy as np

from pi0_jax.data.encoded_images import SizeRange
from pi0_jax.data.episodes import RawEpisode
from pi0_jax.data.grippers import to_openings
from pi0_jax.data.rows import Dataset, Standardised
from pi0_jax.data.validate import Validator
from pi0_jax.errors import InputError

# in a rule
_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    TypeError,
    ValueError,
)
_DECODE_EVERY = 64  # episodes; one step of each of these is decoded whole


class IndexedEpisode(NamedTuple):
    """What the index keeps of an episode of T steps. V views; S state and A action dimensions."""

    state: np.ndarray  # float32[T, S]
    action: np.ndarray  # float32[T, A]
    keep: np.ndarray  # bool[T]
    stop: int
    success: int  # 1 or 0, -1 where the dataset does not say
    image_offsets: list[np.ndarray]  # V times int64[T], within the shard file
    image_lengths: list[np.ndarray]  # V times int64[T]
    image_sizes: tuple[SizeRange, ...]  # V


def index_episode(
    row: Dataset, raw: RawEpisode, validator: Validator, *, decode_all: bool
) -> IndexedEpisode:
    """Standardises and validates. Nothing of the result lies in the record's memory.

    Raises InputError: see validate.py; what a rule of the package cannot read. What another rule raises says of which episode.
    """
    validator.check_raw(raw)
    try:
        result = row.standardise(raw.columns)
    except (*_MISTAKES, zlib.error) as error:
        damage = _damaged_bytes(raw)
        if (
            damage
            or isinstance(error, zlib.error)
            or row.standardise.__module__.startswith("pi0_jax.")
        ):
            raise InputError(
                f"{damage or raw.where}: the rule of row {row.name} cannot read it: {type(error).__name__}: {error}"
            ) from error
        # of a user's own code the traceback is worth more than our words
        error.add_note(f"{raw.where}: raised by the rule of row {row.name}")
        raise
    result = _with_openings(
        row, raw, _as_arrays(result, f"{raw.where}: the rule of row {row.name}")
    )
    validator.check_standardised(raw, result)
    sizes = validator.check_images(raw, _steps_to_decode(raw, decode_all=decode_all))
    if not row.keep_empty_language:
        result = result._replace(keep=result.keep & _has_prompt(raw))
    largest = [height * width for height, width in (size.high for size in sizes)]
    validator.oddities.count(raw, result, dict(zip(raw.images, largest, strict=True)))
    return IndexedEpisode(
        result.state,
        result.action,
        result.keep,
        result.stop,
        -1 if result.success is None else int(result.success),
        [ranges.offsets + raw.offset for ranges in raw.images.values()],
        [ranges.lengths for ranges in raw.images.values()],
        sizes,
    )


def _as_arrays(result: Any, where: str) -> Standardised:
    """What a rule gave, its numbers as copies in float32."""
    if not isinstance(result, Standardised):
        raise InputError(f"{where}: expected a Standardised, found {type(result).__name__}")
    for name, value in (("state", result.state), ("action", result.action)):
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
            found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise InputError(f"{where}: {name}: expected an array of numbers, found {found}")
    kinds: tuple[tuple[str, object, Any, str], ...] = (
        ("keep", result.keep, np.ndarray, "an array of bool"),
        ("stop", result.stop, int | np.integer, "a whole number"),
        ("success", result.success, bool | np.bool_ | None, "True, False or None"),
    )
    for name, given, kind, expected in kinds:
        if not isinstance(given, kind):
            raise InputError(f"{where}: {name}: expected {expected}, found {given!r}")
    return result._replace(
        state=_float32(result.state, f"{where}: state"),
        action=_float32(result.action, f"{where}: action"),
    )


def _with_openings(row: Dataset, raw: RawEpisode, result: Standardised) -> Standardised:
    """The result with grippers that count 1 as open. A result of another shape is left to the validator."""
    dims = row.embodiment.actions
    if result.action.ndim != 2 or result.action.shape[1] != len(dims):
        return result
    action = to_openings(
        result.action,
        row.recorded_grippers,
        read=result.stop if result.keep.any() else 0,
        where=raw.where,
        names={place: dim.name for place, dim in enumerate(dims)},
    )
    return result._replace(action=action)


def _float32(values: np.ndarray, where: str) -> np.ndarray:
    """A copy. Real numbers are rounded; InputError for whole numbers of which float32 does not hold one."""
    with np.errstate(over="ignore"):  # what becomes infinite is refused as such
        cast = values.astype(np.float32)
    if values.dtype.kind in "iu" and (changed := cast.astype(np.float64) != values).any():
        found = values[changed][0]
        raise InputError(f"{where}: expected numbers that float32 holds, found {found}")
    return cast


def _damaged_bytes(raw: RawEpisode) -> str:
    """Where a value of a field of compressed numbers does not unpack, or not to the length that the field's others have; "" if all do."""
    for path, column in raw.columns.items():
        if column.dtype != object:
            continue
        lengths = [_unpacked_length(value) for value in column.ravel()]
        usual = statistics.mode(lengths)
        if usual is None:  # a text, or all of it is damaged
            continue
        for step, length in enumerate(lengths):
            if length != usual:
                found = "what does not unpack" if length is None else f"{length} bytes"
                return f"{raw.where}: step {step}: field {path}: expected {usual} bytes of compressed numbers, found {found}"
    return ""


def _unpacked_length(value: bytes) -> int | None:
    try:
        return len(zlib.decompress(value))
    except zlib.error:
        return None


def _steps_to_decode(raw: RawEpisode, *, decode_all: bool) -> range:
    if decode_all:
        return range(raw.steps)
    step = raw.number // _DECODE_EVERY % raw.steps
    return range(step, step + 1) if raw.number % _DECODE_EVERY == 0 else range(0)


def _has_prompt(raw: RawEpisode) -> np.ndarray | bool:
    """bool[T], or one bool where the instructions never change: whether any language field says something."""
    said = [
        bool(texts[0]) if len(texts) == 1 else np.array([bool(text) for text in texts])
        for texts in raw.prompts
    ]
    return functools.reduce(operator.or_, said, False)
