"""Actions become deltas from the state, and angles that turn take the short way.

    state 3.0 rad, action -3.1 rad          action - state = -6.1
    the short way                           -6.1 + 2 pi    = +0.18

Axes: H action horizon, A action dimensions, n dimensions of a state or of an action.
"""

from collections.abc import Sequence

import numpy as np

from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.embodiments.readings import periods
from pi0_jax.preprocess.normalize import A


def to_delta(actions: np.ndarray, states: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """Subtracts the state before a chunk from its actions, in the dimensions declared as deltas.

    The delta of an angle that turns is the short way: from 3.1 to -3.1 rad it is 0.08, not -6.2.

    Args:
        actions: float[..., H, A], in robot units. The result has the same shape.
        states: float[..., n], in robot units, the state before each chunk.
        embodiment: the robot's record.
    """
    deltas = actions - delta_offset(states, embodiment)[..., None, :]
    return turned(deltas, embodiment.readings.deltas, 0.0)


def delta_offset(states: A, embodiment: Embodiment) -> A | np.ndarray:
    """Returns float[..., A]: the state that each delta is taken from; 0 for other actions."""
    places, taken = embodiment.readings.delta_places, embodiment.readings.delta_taken
    if places is None or taken is None:
        return np.zeros((*states.shape[:-1], len(embodiment.actions)), np.float32)
    # Actions that are no deltas read state 0 and multiply it by 0.
    return states[..., places] * taken


def in_turn(x: A, dims: Sequence[StateDim | ActionDim | None], middle: np.ndarray | float) -> A:
    """Puts the angles that turn into the turn about `middle`.

    An angle that is there already stays as it is, to the bit.

    Args:
        x: float[..., n], of NumPy or JAX. The result has the same shape.
        dims: n dimensions; None for one that is to be left alone.
        middle: float[n], or one number for all. An angle comes to lie within half a turn of it.
    """
    return turned(x, periods(dims), middle)


def turned(x: A, periods: np.ndarray | None, middle: np.ndarray | float) -> A:
    """Does what `in_turn` does, with the dimensions' periods, float32[n], or None if none turns."""
    if periods is None:
        return x
    turns = (x - (middle - periods / 2)) // np.where(periods, periods, np.float32(1))
    return x - periods * turns


def in_robot_turn(actions: A, embodiment: Embodiment) -> A:
    """Puts the angles that turn, in float[..., A], into the turn in which the robot counts."""
    return turned(actions, embodiment.readings.actions, embodiment.readings.middle)


def action_error(predicted: np.ndarray, true: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """Returns how far two actions float[..., A] lie apart, in robot units.

    Angles that turn are compared by the short way.
    """
    return np.abs(turned(predicted - true, embodiment.readings.actions, 0.0))
