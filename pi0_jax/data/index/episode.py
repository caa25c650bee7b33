"""Makes the index entries of one episode: it is standardised and validated."""

import functools
import statistics
import zlib
from typing import Any

import numpy as np

from pi0_jax.data.grippers import to_openings
from pi0_jax.data.index.validate import Validator
from pi0_jax.data.records.episodes import RawEpisode
from pi0_jax.data.records.images import SizeRange
from pi0_jax.data.rows import Dataset, Standardised
from pi0_jax.errors import InputError

# The errors that a mistake in a rule raises.
_MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError,
             ValueError, zlib.error)  # fmt: skip
_DECODE_EVERY = 64  # One step of each such episode has its images decoded.


def index_episode(
    row: Dataset, raw: RawEpisode, validator: Validator, *, decode_all: bool
) -> tuple[Standardised, tuple[SizeRange, ...]]:
    """Standardises and validates an episode.

    Returns:
        The episode, of which no array lies in the record's memory, and for each view the range of
        its images' sizes.

    Raises:
        InputError: the episode is not as validate.py wants it, or a rule of the package cannot read
            it. An error of another rule is raised as it is, with a note that names the episode.
    """
    validator.check_raw(raw)
    try:
        result = row.standardise(raw.columns)
    except _MISTAKES as error:
        damage = _damaged_bytes(raw)
        ours = row.standardise.__module__.startswith("pi0_jax.")
        if damage or ours or isinstance(error, zlib.error):
            raise InputError(
                f"{damage or raw.where}: the rule of row {row.name} cannot read it: {type(error).__name__}: {error}"
            ) from error
        # For a user's own rule the traceback is worth more than a message of ours.
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
    return result, sizes


def _as_arrays(result: Any, where: str) -> Standardised:
    """Checks what a rule gave, and returns it with its numbers as copies in float32."""
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
    """Returns the result with grippers that count 1 as open."""
    dims = row.embodiment.actions
    if result.action.ndim != 2 or result.action.shape[1] != len(dims):
        return result  # the validator refuses it
    action = to_openings(
        result.action,
        row.recorded_grippers,
        read=result.stop if result.keep.any() else 0,
        where=raw.where,
        names={place: dim.name for place, dim in enumerate(dims)},
    )
    return result._replace(action=action)


def _float32(values: np.ndarray, where: str) -> np.ndarray:
    """Returns a copy in float32. Real numbers are rounded.

    Raises:
        InputError: float32 does not hold one of the whole numbers.
    """
    # Numbers that become infinite are refused later, as infinite.
    with np.errstate(over="ignore"):
        cast = values.astype(np.float32)
    if values.dtype.kind in "iu" and (changed := cast.astype(np.float64) != values).any():
        found = values[changed][0]
        raise InputError(f"{where}: expected numbers that float32 holds, found {found}")
    return cast


def _damaged_bytes(raw: RawEpisode) -> str:
    """Returns where a value of a field of compressed numbers does not unpack as the others do."""
    for path, column in raw.columns.items():
        if column.dtype != object:
            continue
        lengths = [_unpacked_length(value) for value in column.ravel()]
        usual = statistics.mode(lengths)
        if usual is None:
            # The field is a text, or all of it is damaged.
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
    """Returns the steps of which images are decoded."""
    if decode_all:
        return range(raw.steps)
    step = raw.number // _DECODE_EVERY % raw.steps
    return range(step, step + 1) if raw.number % _DECODE_EVERY == 0 else range(0)


def _has_prompt(raw: RawEpisode) -> np.ndarray:
    """Returns whether any language field holds an instruction: bool[T], or bool[1] for all steps."""
    said = [np.array([bool(text) for text in texts]) for texts in raw.prompts]
    return functools.reduce(np.logical_or, said)
