"""What a rollout asks of an environment, and what it keeps of an episode."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from pi0_jax.observation import RawObservation


class World(Protocol):
    """One environment as a rollout drives it."""

    robot: str
    action_names: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """Of the episode."""

    @property
    def group(self) -> str:
        """In which the episode is counted."""

    def begin(self, seed: int) -> None:
        """Begins a new episode, which the seed decides."""

    def observe(self) -> RawObservation:
        """Returns what the policy sees now.

        It is called only when the policy is going to look: rendering costs more than physics.
        """

    def advance(self, action: np.ndarray) -> tuple[bool, bool]:
        """Runs one tick with float32[A].

        Returns:
            Whether the episode has succeeded, and whether it has ended.
        """

    def snapshot(self) -> Any:
        """Returns what is needed to draw this tick later."""


class Episode(NamedTuple):
    """An episode that is to be run."""

    number: int
    seed: int
    prompt: str | None = None  # what the policy reads; None: the episode's own prompt
    record: bool = False


@dataclasses.dataclass(frozen=True)
class EpisodeResult:
    """The outcome of an episode."""

    episode: int
    robot: str
    seed: int
    prompt: str  # what the policy read
    group: str  # of the episode itself, for which success is measured
    success: bool
    ticks: int


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is needed to draw an episode."""

    result: EpisodeResult
    snapshots: tuple[Any, ...]  # World.snapshot() before every tick, and at the end
    chunks: np.ndarray  # float32[replans, H, A]: as predicted
    chunk_ticks: tuple[int, ...]  # when each chunk was predicted


class Setting(NamedTuple):
    """A kind of World, and how its recordings are drawn."""

    make_world: Callable[[], World]
    # One picture for each snapshot, all of one size.
    pictures: Callable[[Recording], Iterable[Image.Image]]
