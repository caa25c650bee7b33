"""Converts gripper commands between a recording, an index, and what the robot takes.

    recorded (the row's)           index             handed out (the record's)
    -1 open .. +1 closed           1 = open          open=-1, closed=+1
    0.08 m open .. 0 closed        0 = closed        one_means="closed": 0 open, 1 closed

Each is a straight line through what is open and what is closed. So a number between the two keeps
its share of the way.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError

_ROUNDING = 1e-4  # how far a number may lie beyond an end, as a share of the range


@dataclasses.dataclass(frozen=True)
class RecordedGripper:
    """Says what a dataset holds where a gripper is told to open, and where it is told to close.

    Attributes:
        open: the number for open.
        closed: the number for closed.
        overshoot: how far beyond its ends a number may lie, as a share of the range. Such a number
            counts as the end. Arms that are led by hand overshoot.
    """

    open: float
    closed: float
    overshoot: float = 0.0


OPEN_IS_1 = RecordedGripper(open=1.0, closed=0.0)
CLOSED_IS_1 = RecordedGripper(open=0.0, closed=1.0)


def to_openings(
    action: np.ndarray,
    recorded: Mapping[int, RecordedGripper],
    *,
    read: int,
    where: str,
    names: Mapping[int, str],
) -> np.ndarray:
    """Converts recorded gripper commands to openings in [0, 1], where 1 = open.

    Args:
        action: float32[T, A].
        recorded: the place of each gripper's dimension -> how it was recorded.
        read: the number of steps of which a number must lie between its ends.
        where: dataset and episode, for errors.
        names: the names of the dimensions, for errors.

    Returns:
        float32[T, A].

    Raises:
        InputError: a number lies further beyond the ends than the recording may overshoot.
    """
    result = action.copy()
    for place, gripper in recorded.items():
        if gripper == OPEN_IS_1:
            # The index counts the same way. The range is checked with that of other dimensions.
            continue
        opening = (action[:, place].astype(np.float64) - gripper.closed) / (
            gripper.open - gripper.closed
        )
        margin = max(gripper.overshoot, _ROUNDING)
        outside = (opening[:read] < -margin) | (opening[:read] > 1 + margin)
        if outside.any():
            step = int(outside.argmax())
            ends = f"{gripper.open:g} (open) and {gripper.closed:g} (closed)"
            raise InputError(
                f"{where}: step {step}: action dimension {place} ({names[place]}):"
                f" expected a gripper recorded between {ends}, found {action[step, place]:.6g}"
            )
        # Adding 0 turns a negative zero into zero.
        result[:, place] = np.clip(opening, 0, 1) + 0.0
    return result


def from_openings(actions: np.ndarray, embodiment: Embodiment) -> None:
    """Converts openings in float32[..., A], where 1 = open, to what the robot takes, in place."""
    for place, dim in enumerate(embodiment.actions):
        ends = dim.ends
        if ends is not None and ends != (OPEN_IS_1.open, OPEN_IS_1.closed):
            opened, closed = np.array(ends, np.float32)
            actions[..., place] = closed + actions[..., place] * (opened - closed)
