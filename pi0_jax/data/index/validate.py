"""Checks what an episode holds. These checks decide whether an index is built.

Each error names dataset, episode, step and field. If a dataset's own embodiment does not declare a
range, values are held to what no robot exceeds. A value beyond it means degrees for radians,
millimetres for metres, or a pose where a change was meant. What is odd and may be right is counted,
and told when the index is opened.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pi0_jax.data.index.oddities import Oddities
from pi0_jax.data.records.episodes import IS_FIRST, RawEpisode
from pi0_jax.data.records.images import (
    BadImageError,
    ImageHeader,
    SizeRange,
    bad_image,
    decode_image,
    read_sizes,
    without_end,
)
from pi0_jax.data.rows import STEPS, Dataset, Standardised
from pi0_jax.embodiments import ActionDim, StateDim
from pi0_jax.errors import InputError

# (unit, kind) -> the largest plausible magnitude of an action, or of a state, which is absolute.
PLAUSIBLE = {
    ("m", "relative"): 1.0,
    ("m", "absolute"): 10.0,
    ("rad", "relative"): np.pi,
    ("rad", "absolute"): 4 * np.pi,
    ("m/s", "relative"): 5.0,
    ("m/s", "absolute"): 5.0,
    ("rad/s", "relative"): 10.0,
    ("rad/s", "absolute"): 10.0,
}
# A gripper in metres is not larger than this. So 8 cm given as 8, or 80 mm as 80, are found.
PLAUSIBLE_GRIPPER_M = 0.5
# No quantity of any other unit is as large. The dimension's own low and high hold beside it.
ABSURD = 1e12
# How far a value may lie outside its range, as a share of the range or, if that is less, of
# max(|bound|, 1).
ROUNDING = 1e-4
# How far a quaternion's length may be from 1. Quaternions that were rounded to four decimals pass,
# and those that were never normalised do not.
QUATERNION_TOLERANCE = 1e-3
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Limits(NamedTuple):
    """Holds the range of each of D dimensions, with an allowance for rounding."""

    low: np.ndarray  # float32[D]
    high: np.ndarray  # float32[D]


class Validator:
    """Checks the episodes of one dataset, each by itself, though it remembers headers of images."""

    def __init__(self, row: Dataset) -> None:
        self._row = row
        self._state = _limits(row.embodiment.state)
        self._action = _limits(row.embodiment.actions)
        self._order = {
            view: camera.order for camera in row.cameras.values() for view in camera.views
        }
        self._headers: dict[str, ImageHeader | None] = dict.fromkeys(row.views)
        self._quaternions = _quaternions(row.embodiment.state)
        self.oddities = Oddities(row)

    def check_raw(self, raw: RawEpisode) -> None:
        """Checks the raw fields of an episode.

        Raises:
            InputError: a number is NaN or infinite, or a quaternion is not of unit length.
        """
        for path, column in raw.columns.items():
            _check_finite(column, raw, f"field {path}", per_step=path.startswith(STEPS))
            for start in self._row.fields[path].quaternions:
                step = "{step}" if path.startswith(STEPS) else ""
                _check_quaternion(column, start, f"{raw.where}: {step}field {path}")

    def check_standardised(self, raw: RawEpisode, result: Standardised) -> None:
        """Checks what the rule gave for an episode.

        Ranges hold for episodes of which a step may be drawn. A rule may have dropped an episode
        just for its values.

        Raises:
            InputError: the result does not fit the embodiment, a number is NaN or infinite, a value
                is outside its range, or the record holds two episodes.
        """
        robot, steps = self._row.embodiment, raw.steps
        rule = f"{raw.where}: the rule of row {self._row.name}"
        for name, values, dims in (
            ("state", result.state, robot.state),
            ("action", result.action, robot.actions),
        ):
            if values.shape != (steps, len(dims)):
                raise InputError(
                    f"{raw.where}: {name}: expected {steps} steps of {len(dims)} dimensions"
                    f" as embodiment {robot.name} declares, found {list(values.shape)}"
                )
        if result.keep.dtype != bool or result.keep.shape != (steps,):
            raise InputError(
                f"{rule}: expected keep as bool[{steps}], found {result.keep.dtype}{list(result.keep.shape)}"
            )
        if not 0 <= result.stop <= steps or result.keep[result.stop :].any():
            raise InputError(
                f"{rule}: expected kept steps below {result.stop} of {steps}, found {np.flatnonzero(result.keep).tolist()}"
            )
        _check_values(result.state, "state", raw, robot.state, self._state, result.keep, steps)
        _check_values(
            result.action, "action", raw, robot.actions, self._action, result.keep, result.stop
        )
        if result.keep.any():
            _check_one_episode(raw)
            for start in self._quaternions:
                _check_quaternion(result.state, start, f"{raw.where}: {{step}}state")

    def check_images(self, raw: RawEpisode, decode: Iterable[int]) -> tuple[SizeRange, ...]:
        """Checks the images of an episode and returns, for each view, the range of their sizes.

        Every header and end is read, and the images of some steps are decoded. So is every image
        that does not end as its kind does, since some of these decode all the same.

        Args:
            raw: the episode as it was recorded.
            decode: the steps whose images are decoded.

        Raises:
            InputError: an image is not an 8-bit RGB JPEG or PNG, or does not decode.
        """
        return tuple(self._check_view(raw, view, decode) for view in raw.images)

    def _check_view(self, raw: RawEpisode, view: str, decode: Iterable[int]) -> SizeRange:
        ranges, step = raw.images[view], 0
        try:
            sizes, self._headers[view] = read_sizes(raw.payload, ranges, self._headers[view])
            unended = without_end(raw.payload, ranges)
            for step in (*decode, *unended):
                offset = int(ranges.offsets[step])
                decode_image(
                    raw.payload[offset : offset + int(ranges.lengths[step])], self._order[view]
                )
        except BadImageError as error:
            where = f"{raw.where}: step {step + error.number}: field {view}"
            raise InputError(bad_image(where, error)) from error
        if unended.size:
            self.oddities.tell(raw, f"images of {view} do not end as their kind does, and decode")
        return sizes


def _limits(dims: Sequence[StateDim | ActionDim]) -> Limits:
    """Returns the ranges of the dimensions, widened for rounding."""
    low, high = np.array([_range(dim) for dim in dims], np.float64).reshape(-1, 2).T
    widened = (
        low - ROUNDING * np.fmin(high - low, np.fmax(abs(low), 1)),
        high + ROUNDING * np.fmin(high - low, np.fmax(abs(high), 1)),
    )
    return Limits(*np.clip(widened, -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32))


def _range(dim: StateDim | ActionDim) -> tuple[float, float]:
    """Returns where values lie: as declared, or otherwise as is plausible."""
    least, most = -_plausible(dim), _plausible(dim)
    if isinstance(dim, ActionDim) and dim.ends is not None:
        least, most = 0.0, 1.0  # a gripper's opening
    return least if dim.low is None else dim.low, most if dim.high is None else dim.high


def _plausible(dim: StateDim | ActionDim) -> float:
    kind = dim.kind if isinstance(dim, ActionDim) else "absolute"
    if (dim.unit, kind) == ("m", "absolute") and is_gripper(dim):
        return PLAUSIBLE_GRIPPER_M
    return PLAUSIBLE[dim.unit, kind] if (dim.unit, kind) in PLAUSIBLE else ABSURD


def is_gripper(dim: StateDim | ActionDim) -> bool:
    """Returns whether a dimension declares which way it counts, or has a gripper's name."""
    return bool(dim.larger_is) or "gripper" in dim.name or "finger" in dim.name


def _quaternions(dims: Sequence[StateDim]) -> list[int]:
    """Returns where quaternions of unit length begin, by the names of their four dimensions."""
    names = [dim.name for dim in dims]
    return [i for i in range(len(names) - 3) if names[i : i + 4] == ["qx", "qy", "qz", "qw"]]


def _check_one_episode(raw: RawEpisode) -> None:
    """Checks that a record's marks, if it has any, do not say that it holds several episodes."""
    for path, marks in raw.marks.items():
        begins = np.flatnonzero(marks[1:] if path == IS_FIRST else marks[:-1] & ~marks[1:]) + 1
        # Marks that are at every step mean nothing. That is told elsewhere.
        if begins.size and not marks.all():
            step = int(begins[0])
            marked = step if path == IS_FIRST else step - 1
            raise InputError(
                f"{raw.where}: step {marked}: field {path}: expected one episode in a record, found the"
                f" {'first' if path == IS_FIRST else 'last'} step of one; another begins at step {step}"
            )


def _check_finite(values: np.ndarray, raw: RawEpisode, name: str, *, per_step: bool) -> None:
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
    step, dimension = (f"step {place[0]}: ", place[1:]) if per_step else ("", place)
    where = f"{name} dimension {', '.join(map(str, dimension))}" if dimension else name
    raise InputError(f"{raw.where}: {step}{where}: expected a finite number, found {values[place]}")


def _check_quaternion(column: np.ndarray, start: int, where: str) -> None:
    """Checks the length of the quaternion at a column. "{step}" in `where` is for the step."""
    # [T, 4], or [1, 4] for a field of the episode
    quaternions = np.atleast_2d(column)[:, start : start + 4].astype(np.float64)
    lengths = np.sqrt(np.einsum("td,td->t", quaternions, quaternions))
    wrong = np.abs(lengths - 1) > QUATERNION_TOLERANCE
    if wrong.any():
        step = int(wrong.argmax())
        raise InputError(
            f"{where.replace('{step}', f'step {step}: ')} dimensions {start} to {start + 3}: expected a quaternion of unit length,"
            f" found length {lengths[step]:.6g}"
        )


def _check_values(
    values: np.ndarray,
    name: str,
    raw: RawEpisode,
    dims: Sequence[StateDim | ActionDim],
    limits: Limits,
    keep: np.ndarray,
    end: int,
) -> None:
    """Checks that state or action is finite and, in the steps that are read, in range."""
    # NaN is in no range, so this one test passes only what is right.
    if ((values >= limits.low) & (values <= limits.high)).all():
        return
    _check_finite(values, raw, name, per_step=True)
    read = values[:end] if keep.any() else values[:0]
    outside = (read < limits.low) | (read > limits.high)
    if outside.any():
        step, number = (int(i) for i in np.argwhere(outside)[0])
        dim = dims[number]
        where = f"{raw.where}: step {step}: {name} dimension {number} ({dim.name})"
        raise InputError(
            f"{where}: expected {_expected(dim, read[step, number])}, found {read[step, number]:.6g}"
        )


def _expected(dim: StateDim | ActionDim, found: float) -> str:
    low, high = _range(dim)
    unit = "" if dim.unit == "1" else f" {dim.unit}"
    if (dim.low is None and dim.high is None and not dim.larger_is) or abs(found) > ABSURD:
        return f"a plausible magnitude of at most {min(high, ABSURD):.6g}{unit}, or low and high in the robot's record"
    bounds = [f"at least {low:.6g}"] * (low > -ABSURD) + [f"at most {high:.6g}"] * (high < ABSURD)
    return f"{' and '.join(bounds)}{unit}"
