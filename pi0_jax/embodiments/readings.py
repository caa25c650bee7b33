"""How a record's numbers are read, as arrays: made once for a record, since every sample asks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pi0_jax.embodiments.record import ActionDim, StateDim


class Readings(NamedTuple):
    """Of S state and A action dimensions: which are deltas, and how long a turn of each is, 0 where it does not turn.

    None stands for an array of which every entry would be 0.
    """

    delta_places: (
        np.ndarray | None
    )  # int64[A]: the state that a delta is taken from, 0 for the others
    delta_taken: np.ndarray | None  # float32[A]: 1 for a delta
    state: np.ndarray | None  # float32[S]
    deltas: np.ndarray | None  # float32[A], of deltas alone
    targets: np.ndarray | None  # float32[A], of the other actions alone
    actions: np.ndarray | None  # float32[A]
    middle: np.ndarray  # float32[A]: the middle of the turn in which the robot counts


def readings(
    state: Sequence["StateDim"], actions: Sequence["ActionDim"], places: Sequence[int | None]
) -> Readings:
    """Makes them of a record's dimensions and its `delta_states`."""
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
    """float32[n]: how long the turn of each dimension is, 0 for None and for what does not turn; None where nothing turns."""
    found = np.array([dim.turn[1] if dim and dim.turn else 0.0 for dim in dims], np.float32)
    return found if found.any() else None
