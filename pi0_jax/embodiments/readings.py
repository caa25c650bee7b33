"""A record says how its numbers are read; here that is in arrays.

They are made once for each record, because every sample needs them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pi0_jax.embodiments.record import ActionDim, StateDim


class Readings(NamedTuple):
    """Says which of A actions are deltas, and how long a turn of each dimension is.

    The length of a turn is 0 for what does not turn. None stands for an array of zeros.

    Attributes:
        delta_places: int64[A], the state that a delta is taken from; 0 for other actions.
        delta_taken: float32[A], 1 for a delta.
        state: float32[S], the turns of the state.
        deltas: float32[A], the turns of actions that are deltas.
        targets: float32[A], the turns of the other actions.
        actions: float32[A], the turns of all actions.
        middle: float32[A], the middle of the turn in which the robot counts.
    """

    delta_places: np.ndarray | None
    delta_taken: np.ndarray | None
    state: np.ndarray | None
    deltas: np.ndarray | None
    targets: np.ndarray | None
    actions: np.ndarray | None
    middle: np.ndarray


def readings(
    state: Sequence["StateDim"], actions: Sequence["ActionDim"], places: Sequence[int | None]
) -> Readings:
    """Makes the arrays from a record's dimensions and its `delta_states`."""
    deltas = any(place is not None for place in places)
    middle = [sum(dim.turn) - dim.turn[1] / 2 if dim.turn else 0.0 for dim in actions]
    return Readings(
        np.array([place or 0 for place in places]) if deltas else None,
        np.array([place is not None for place in places], np.float32) if deltas else None,
        periods(state),
        periods([dim if dim.delta else None for dim in actions]),
        periods([None if dim.delta else dim for dim in actions]),
        periods(actions),
        np.array(middle, np.float32),
    )


def periods(dims: Sequence["StateDim | ActionDim | None"]) -> np.ndarray | None:
    """Returns how long the turn of each dimension is, float32[n], or None if none turns.

    It is 0 for None and for what does not turn.
    """
    found = np.array([dim.turn[1] if dim and dim.turn else 0.0 for dim in dims], np.float32)
    return found if found.any() else None
