"""Checks whether statistics and observations can be those of a robot's record.

A checkpoint may bring statistics from elsewhere. They are compared with the record that it is
given.
"""

import functools
import logging
import math
from collections.abc import Sequence

import numpy as np

from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.errors import InputError
from pi0_jax.observation import RawObservation, prompt_text
from pi0_jax.preprocess import normalize
from pi0_jax.preprocess.normalize import Statistics, VectorStatistics

logger = logging.getLogger(__name__)

_OUTSIDE = 0.05  # how far percentiles may lie outside of a declared range, as a share of it
# Where a gripper opens and closes, 98% of its commands cover at least this share of its range.
_REACHED = 0.6


def check_ranges(embodiment: Embodiment, statistics: Statistics) -> None:
    """Checks that 98% of the values lie where the record says.

    Where there are no percentiles, the mean must lie there.

    Args:
        embodiment: the robot's record.
        statistics: in the same dimensions.

    Raises:
        InputError: the values of a dimension lie elsewhere.
    """
    parts: tuple[tuple[str, Sequence[StateDim | ActionDim], VectorStatistics], ...] = (
        ("state", embodiment.state, statistics.state),
        ("action", embodiment.actions, statistics.actions),
    )
    for what, dims, vector in parts:
        for i, dim in enumerate(dims):
            least, most = _declared_range(dim)
            low, high = _middle_98(vector, i)
            span = most - least
            margin = _OUTSIDE * (span if math.isfinite(span) else max(abs(low), abs(high), 1.0))
            if low < least - margin or high > most + margin:
                expected = f"values from {least:g} to {most:g} as its record declares"
                raise InputError(
                    f"{embodiment.name}: statistics of {what} {dim.name}: expected {expected}, found 98% of them from {low:g} to {high:g}:"
                    " they are of another robot, or of another gripper's convention"
                )


def doubtful_dimensions(embodiment: Embodiment, statistics: Statistics) -> list[str]:
    """Returns one line for each action whose statistics are hardly those of its record.

    Such an action never moves, or it covers no more than about half of a gripper's range.
    """
    lines, vector = [], statistics.actions
    for i, dim in enumerate(embodiment.actions):
        about = f"{embodiment.name}: action {dim.name}"
        low, high = _middle_98(vector, i)
        if vector.std[i] < normalize.CONSTANT:
            lines.append(
                f"{about}: by its statistics it never moves: it is always {vector.mean[i]:g}"
            )
        elif dim.ends and 0 < high - low < _REACHED * abs(dim.ends[0] - dim.ends[1]):
            lines.append(
                f"{about}: its record says {dim.ends[0]:g} for open and {dim.ends[1]:g} for closed, by its statistics 98% of the values"
                f" lie from {low:g} to {high:g}: another gripper's convention?"
            )
    return lines


def _declared_range(dim: StateDim | ActionDim) -> tuple[float, float]:
    """Returns the range in which the values lie by the record.

    It is infinite where the record does not say, and where the statistics are not of these values
    (deltas).
    """
    if dim.periodic or (isinstance(dim, ActionDim) and dim.delta):
        return -math.inf, math.inf
    ends = dim.ends if isinstance(dim, ActionDim) else None
    least, most = (-math.inf, math.inf) if ends is None else (min(ends), max(ends))
    return least if dim.low is None else dim.low, most if dim.high is None else dim.high


def _middle_98(vector: VectorStatistics, i: int) -> tuple[float, float]:
    """Returns both percentiles of dimension i, or its mean twice where they are not known."""
    if vector.q01 is None or vector.q99 is None:
        return float(vector.mean[i]), float(vector.mean[i])
    return float(vector.q01[i]), float(vector.q99[i])


def checked_prompt(observation: RawObservation, embodiment: Embodiment, name: str) -> str:
    """Checks all fields of an observation and returns its prompt.

    Raises:
        InputError: a field is wrong. The message begins with `name`.
    """
    for field in ("images", "state", "prompt"):
        if field not in observation:
            raise InputError(
                f"{name}: field {field!r} is missing; expected images, state and prompt"
            )
    expected = set(embodiment.cameras.values())
    for camera in sorted(expected - set(observation["images"])):
        raise InputError(
            f"{name}: camera {camera!r} is missing; got {sorted(observation['images'])}"
        )
    for camera in sorted(set(observation["images"]) - expected):
        _name_unread(embodiment.name, camera)
    for camera in sorted(expected):
        image = observation["images"][camera]
        if (
            not isinstance(image, np.ndarray)
            or image.dtype != np.uint8
            or image.ndim != 3
            or image.shape[2] != 3
            or not image.size
        ):
            found = (
                f"{image.dtype}{list(image.shape)}"
                if isinstance(image, np.ndarray)
                else type(image).__name__
            )
            raise InputError(
                f"{name}: image {camera!r} must be uint8[height, width, 3] RGB, got {found}"
            )
    state = np.asarray(observation["state"])
    if state.shape != (len(embodiment.state),):
        names = ", ".join(dim.name for dim in embodiment.state)
        raise InputError(
            f"{name}: state must have {len(embodiment.state)} dimensions ({names}), got shape {list(state.shape)}"
        )
    if state.dtype.kind not in "fiu":
        raise InputError(f"{name}: state must hold numbers, got {state.dtype}")
    for dim, value in zip(embodiment.state, state, strict=True):
        if not abs(value) <= np.finfo(np.float32).max:
            raise InputError(f"{name}: state {dim.name!r} is {value}; expected a finite float32")
    prompt = prompt_text(observation["prompt"])
    if prompt is None:
        raise InputError(
            f"{name}: prompt must be a string, got {type(observation['prompt']).__name__}"
        )
    return prompt


@functools.lru_cache(maxsize=1024)
def _name_unread(robot: str, camera: str) -> None:
    """Says in the log, once for each robot and camera, that the camera is not read."""
    logger.warning("%s: camera %r is not read: the robot's record does not name it", robot, camera)
