"""Checks for values that a policy does not know: beyond its data, or beyond a robot's hard limits.

    states     beyond the data's range by more than MARGIN of it are told; absurd ones are
               always refused
    actions    the same, as the model learnt them (deltas as deltas); hard limits are the
               robot's numbers

    choice     beyond the data's range    beyond a hard limit
    tell       told                       cut off and told
    clamp      actions cut off, told      cut off and told
    refuse     refused                    refused

"Told" means that it is counted, that the reply says it, and that the log says it the first time
and each time that the count has grown tenfold. An angle that turns has no range.

Where the prompt tells the state, numbers beyond its bins are counted in the log alone: of the data
itself two in a hundred are.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from pi0_jax.checkpoints.finite import check_finite_actions
from pi0_jax.embodiments import ActionDim, StateDim
from pi0_jax.errors import InputError
from pi0_jax.preprocess import Robot, deltas, state_to_model
from pi0_jax.preprocess.normalize import VectorStatistics

logger = logging.getLogger(__name__)

Choice = Literal["tell", "clamp", "refuse"]
CHOICES: Mapping[str, Choice] = {choice: choice for choice in get_args(Choice)}
MARGIN = 0.25  # of a dimension's range in the data
ABSURD = 20.0  # ranges (or natural sizes, where those are larger) beyond the data
# A range of the data may be narrow because a joint hardly moved. Then the bounds are taken from
# what is large for any robot.
_NATURAL = {"rad": np.pi, "deg": 180.0, "m": 1.0, "mm": 1000.0, "rad/s": 2 * np.pi, "m/s": 1.0}
_LEAST_MARGIN = 0.01  # of the natural size, where the data's range is narrow


class Outside(NamedTuple):
    """Holds what was found outside in one dimension.

    Attributes:
        part: "state" or "action".
        name: the dimension's name.
        times: how many of the chunk's steps are outside; 1 for a state.
        worst: the farthest value, in the robot's units. That of a delta is a delta.
        low: the lower bound.
        high: the upper bound.
        hard: whether the bounds are a hard limit of the robot. Otherwise they are the range of the
            data, with its margin.
    """

    part: Literal["state", "action"]
    name: str
    times: int
    worst: float
    low: float
    high: float
    hard: bool

    def __str__(self) -> str:
        times = f" {self.times} times" if self.times > 1 else ""
        whose = "hard limits" if self.hard else "data"
        return (
            f"{self.part} {self.name!r}: {self.worst:g} is outside of its {whose}{times}:"
            f" expected {self.low:g} to {self.high:g}"
        )


class Limits:
    """Holds the limits of one robot under one policy. It is not for several threads at once.

    Attributes:
        counts: (part, dimension) -> how many numbers have been told so far; "bins" is the part of
            those beyond the prompt's bins.
    """

    def __init__(self, robot: Robot, choice: Choice = "tell", binned: bool = False) -> None:
        """Takes the limits from the robot's record and statistics.

        Args:
            robot: the record and the statistics.
            choice: what happens to values outside: "tell", "clamp" or "refuse".
            binned: whether the prompt tells the state, in bins that end at its percentiles.

        Raises:
            InputError: the choice is none of these.
        """
        if choice not in CHOICES:
            raise InputError(f"limits: expected {', '.join(CHOICES)}, found {choice!r}")
        self._robot, self._choice, self._binned = robot, choice, binned
        record, statistics = robot.embodiment, robot.statistics
        self._state = _range(statistics.state, record.state)
        self._actions = _range(statistics.actions, record.actions)
        self._absurd = _absurd(statistics.state, record.state)
        limits = [dim.limits or (-np.inf, np.inf) for dim in record.actions]
        self._hard = np.array(limits, np.float32).reshape(-1, 2).T  # float32[2, A]
        self.counts: dict[tuple[str, str], int] = {}

    def check_states(self, states: np.ndarray) -> list[list[Outside]]:
        """Finds what is outside in each observation's state.

        Args:
            states: float32[B, n], in the robot's units.

        Returns:
            For each observation what is outside.

        Raises:
            InputError: a state is absurd; or it is outside, and the choice is "refuse".
        """
        dims, name = self._robot.embodiment.state, self._robot.embodiment.name
        low, high = self._absurd
        if (absurd := (states < low) | (states > high)).any():
            row, i = (int(k) for k in np.argwhere(absurd)[0])
            raise InputError(
                f"observation {row} ({name}): state {dims[i].name!r} is {states[row, i]:g}"
                f" {dims[i].unit}: expected {self._state[0, i]:g} to {self._state[1, i]:g}, as in"
                " its data: another unit?"
            )
        if self._binned:
            outside = np.abs(state_to_model(states, self._robot, "quantile")) > 1
            for dim, times in zip(dims, outside.sum(axis=0).tolist(), strict=True):
                if times:
                    about = f"state {dim.name!r} is beyond the bins of the prompt, and cut off"
                    self._count("bins", dim.name, times, about)
        return self._told("state", states[:, None], self._state, dims, hard=False)

    def check_actions(
        self, actions: np.ndarray, states: np.ndarray
    ) -> tuple[np.ndarray, list[list[Outside]]]:
        """Finds what is outside in each chunk, and cuts it off if the choice says so.

        Args:
            actions: float32[B, H, A], in the robot's units.
            states: float32[B, n], the states before the chunks, in the robot's units.

        Returns:
            The actions float32[B, H, A], and for each chunk what was outside.

        Raises:
            InputError: an action is outside, and the choice is "refuse".
            NotFiniteError: an action is not finite.
        """
        record = self._robot.embodiment
        check_finite_actions(actions, record.actions)
        learnt = deltas.to_delta(actions, states, record)
        outside = self._told("action", learnt, self._actions, record.actions, hard=False)
        if self._choice == "clamp":
            inside = np.clip(learnt, *self._actions[:, None, None])
            # Only what is cut off moves: the others stay as they are, to the bit.
            moved = deltas.in_robot_turn(actions + (inside - learnt), record)
            actions = np.where(inside == learnt, actions, moved)
        low, high = self._hard
        beyond = self._told("action", actions, self._hard, record.actions, hard=True)
        actions = np.clip(actions, low, high).astype(np.float32)
        return actions, [a + b for a, b in zip(outside, beyond, strict=True)]

    def _told(
        self,
        part: Literal["state", "action"],
        values: np.ndarray,
        limits: np.ndarray,
        dims: Sequence[StateDim | ActionDim],
        *,
        hard: bool,
    ) -> list[list[Outside]]:
        """Counts and logs the values of float[B, steps, n] that are outside, or refuses them."""
        low, high = limits
        beyond = np.maximum(low - values, values - high)  # [B, steps, n], positive outside
        found: list[list[Outside]] = [[] for _ in values]
        for row, i in np.argwhere((beyond > 0).any(axis=1)):
            step = beyond[row, :, i].argmax()
            count = int((beyond[row, :, i] > 0).sum())
            worst = float(values[row, step, i])
            one = Outside(part, dims[i].name, count, worst, float(low[i]), float(high[i]), hard)
            found[row].append(one)
            if self._choice == "refuse":
                raise InputError(f"observation {row} ({self._robot.embodiment.name}): {one}")
            self._count(one.part, one.name, one.times, str(one))
        return found

    def _count(self, part: str, name: str, times: int, about: str) -> None:
        """Counts a finding, and logs it if it is the first or if the count has grown tenfold."""
        before = self.counts.get(key := (part, name), 0)
        self.counts[key] = before + times
        # The count has grown tenfold when it has one more digit.
        if before == 0 or len(str(before)) < len(str(self.counts[key])):
            total = f" ({self.counts[key]} so far)" if before else ""
            logger.warning("%s: %s%s", self._robot.embodiment.name, about, total)


def _data_range(vector: VectorStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Returns the smallest and the largest value of the data, float64[n] each.

    Where these are not known, they are estimated from the percentiles, or from mean and deviation.
    """
    if vector.minimum is not None and vector.maximum is not None:
        return vector.minimum, vector.maximum
    if vector.q01 is not None and vector.q99 is not None:
        spread = vector.q99 - vector.q01
        return vector.q01 - spread, vector.q99 + spread
    return vector.mean - 10 * vector.std, vector.mean + 10 * vector.std


def _sizes(dims: Sequence[StateDim | ActionDim]) -> np.ndarray:
    """Returns float64[n]: what is large for any robot, in each dimension's unit."""
    return np.array([_NATURAL.get(dim.unit, 1.0) for dim in dims])


def _range(vector: VectorStatistics, dims: Sequence[StateDim | ActionDim]) -> np.ndarray:
    """Returns the data's range with its margin, float32[2, n]; infinite for angles that turn."""
    low, high = _data_range(vector)
    margin = np.maximum(MARGIN * (high - low), _LEAST_MARGIN * _sizes(dims))
    turns = [dim.periodic and not (isinstance(dim, ActionDim) and dim.delta) for dim in dims]
    margin = np.where(turns, np.inf, margin)
    return np.stack([low - margin, high + margin]).astype(np.float32)


def _absurd(vector: VectorStatistics, dims: Sequence[StateDim | ActionDim]) -> np.ndarray:
    """Returns the range, float32[2, n], beyond which a state is absurd."""
    low, high = _data_range(vector)
    far = ABSURD * np.maximum(high - low, _sizes(dims))
    return np.stack([low - far, high + far]).astype(np.float32)
