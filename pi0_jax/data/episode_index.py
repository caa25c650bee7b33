"""One episode of an index: standardised, validated, its images located."""

import functools
import operator
from typing import Any, NamedTuple

import numpy as np

from pi0_jax.data.encoded_images import SizeRange
from pi0_jax.data.episodes import RawEpisode
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

    Raises InputError: see validate.py. What the row's rule raises says of which episode.
    """
    validator.check_raw(raw)
    try:
        result = row.standardise(raw.columns)
    except _MISTAKES as error:  # of a user's own code the traceback is worth more than our words
        error.add_note(f"{raw.where}: raised by the rule of row {row.name}")
        raise
    result = _as_arrays(result, f"{raw.where}: the rule of row {row.name}")
    validator.check_standardised(raw, result)
    sizes = validator.check_images(raw, _steps_to_decode(raw, decode_all=decode_all))
    return IndexedEpisode(
        result.state,
        result.action,
        result.keep if row.keep_empty_language else result.keep & _has_prompt(raw),
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
    for name, value, kind, expected in (
        ("keep", result.keep, np.ndarray, "an array of bool"),
        ("stop", result.stop, int | np.integer, "a whole number"),
        ("success", result.success, bool | np.bool_ | None, "True, False or None"),
    ):
        if not isinstance(value, kind):
            raise InputError(f"{where}: {name}: expected {expected}, found {value!r}")
    return result._replace(
        state=result.state.astype(np.float32), action=result.action.astype(np.float32)
    )


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
