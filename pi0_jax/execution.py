"""Executes action chunks on a robot: one action for every control tick.

A chunk is predicted at some of the ticks:

    tick                0    1    2    3    4
    chunk of tick 0    [a0   a1   a2   a3]
    chunk of tick 2              [b0   b1   b2   b3]

    OpenLoop(2)         a0   a1   b0   b1   ...   a new chunk every 2 ticks, and the first 2
                                                  actions of each
    TemporalEnsemble    a chunk at every tick, and the weighted mean of all actions that were
                        predicted for now

A strategy is a value that never changes: `step` returns the action and the strategy for the next
tick. A strategy that was just made holds no chunks, and so it begins an episode.
"""

import dataclasses
from typing import Protocol, Self

import numpy as np

from pi0_jax.errors import InputError


class Execution(Protocol):
    """Is a strategy for executing chunks."""

    @property
    def shortest(self) -> int:
        """Returns how many actions a chunk must have at least."""

    def wants_chunk(self) -> bool:
        """Returns whether the next `step` needs a chunk, predicted from this tick's observation."""

    def step(self, chunk: np.ndarray | None) -> tuple[np.ndarray, Self]:
        """Does one control tick.

        Args:
            chunk: float[H, A], a chunk that begins now, if one was wanted; else None.

        Returns:
            The action float[A] of this tick, and the strategy for the next one.

        Raises:
            InputError: the chunk was wanted and is not given, or is too short.
        """


def until_next_chunk(execution: Execution, chunk: np.ndarray) -> tuple[np.ndarray, Execution]:
    """Executes a chunk that was wanted, up to the tick that wants the next one.

    Args:
        execution: the strategy at a tick that wants a chunk.
        chunk: float[H, A].

    Returns:
        The actions of these ticks, float[n, A], and the strategy for the tick after them.

    Raises:
        InputError: see `Execution.step`.
    """
    action, execution = execution.step(chunk)
    actions = [action]
    while not execution.wants_chunk():
        action, execution = execution.step(None)
        actions.append(action)
    return np.stack(actions), execution


@dataclasses.dataclass(frozen=True, eq=False)
class OpenLoop:
    """Executes the first `steps` actions of a chunk, then asks for the next one.

    An embodiment's `execute_steps` is its default. The paper's robots execute 16 of 50 actions at
    20 Hz, and 25 of 50 at 50 Hz (appendix D).

    Attributes:
        steps: how many actions of a chunk are executed.
        pending: the actions that are left, float[A] each, the next one first.
    """

    steps: int
    pending: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"open loop: expected at least 1 step of a chunk, found {self.steps}")

    @property
    def shortest(self) -> int:
        """Returns `steps`."""
        return self.steps

    def wants_chunk(self) -> bool:
        """Returns whether all actions of the last chunk are executed."""
        return not self.pending

    def step(self, chunk: np.ndarray | None) -> tuple[np.ndarray, "OpenLoop"]:
        """Returns the next action. See `Execution.step`."""
        pending = self.pending
        if chunk is not None:
            if len(chunk) < self.steps:
                raise InputError(
                    f"open loop: expected chunks of at least {self.steps} actions, found {len(chunk)}"
                )
            pending = tuple(chunk[: self.steps])
        if not pending:
            raise InputError(
                "open loop: expected a chunk, found none, and no action is left of the last one"
            )
        return pending[0], dataclasses.replace(self, pending=pending[1:])


@dataclasses.dataclass(frozen=True, eq=False)
class TemporalEnsemble:
    """Averages, at every tick, what all chunks so far say about this tick.

    The i-th oldest chunk has weight exp(-decay * i).

    Source: ACT (Zhao et al. 2023, arXiv 2304.13705), section IV: i = 0 is the oldest, decay (there
    m) is 0.01, and the weights are normalised.

    Attributes:
        decay: how fast the weights of newer chunks fall.
        chunks: float[remaining, A] each, cut to what they say from the next tick on, the oldest
            first.
        turns: for each action dimension where its turn begins and how long it is; None where it is
            no angle that turns. It is `turn` of the record's dimensions. The plain average of 3.1
            and -3.1 rad would be 0.
    """

    decay: float = 0.01
    chunks: tuple[np.ndarray, ...] = ()
    turns: tuple[tuple[float, float] | None, ...] = ()

    @property
    def shortest(self) -> int:
        """Returns 1."""
        return 1

    def wants_chunk(self) -> bool:
        """Returns True: every tick needs a chunk."""
        return True

    def step(self, chunk: np.ndarray | None) -> tuple[np.ndarray, "TemporalEnsemble"]:
        """Returns the averaged action. See `Execution.step`."""
        if chunk is None or len(chunk) < 1:
            raise InputError(
                f"temporal ensemble: expected a chunk at every tick, found {'none' if chunk is None else 'one without actions'}"
            )
        chunks = (*self.chunks, chunk)
        weights = np.exp(-self.decay * np.arange(len(chunks)))
        said = np.stack([c[0] for c in chunks])  # float[chunks, A]
        turning = [(i, *turn) for i, turn in enumerate(self.turns) if turn]
        # Before averaging, angles are moved to within half a turn of the newest chunk's.
        for i, _, period in turning:
            said[:, i] = said[-1, i] + (said[:, i] - said[-1, i] + period / 2) % period - period / 2
        action = np.average(said, axis=0, weights=weights).astype(chunks[-1].dtype)
        # After averaging, they are moved back into the turn in which the robot counts.
        for i, start, period in turning:
            action[i] = start + (action[i] - start) % period
        return action, dataclasses.replace(self, chunks=tuple(c[1:] for c in chunks if len(c) > 1))
