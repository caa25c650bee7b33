"""Defines what a rollout asks of an environment, and what it keeps of an episode."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from pi0_jax.observation import RawObservation


class World(Protocol):
    """Is one environment, as a rollout drives it."""

    robot: str
    action_names: tuple[str, ...]  # of the A action dimensions

    @property
    def prompt(self) -> str:
        """Returns the instruction, which may change during an episode, step by step."""

    @property
    def group(self) -> str:
        """Returns the group of episodes in which this one is counted."""

    def begin(self, seed: int) -> None:
        """Begins a new episode; the seed decides everything about it."""

    def observe(self) -> RawObservation:
        """Returns what the policy sees. It is called only if it looks: rendering costs most."""

    def advance(self, action: np.ndarray) -> tuple[bool, bool]:
        """Runs one tick with float32[A], and returns whether the episode succeeded and ended."""

    def snapshot(self) -> Any:
        """Returns what is needed to make a picture of this tick later."""


class Episode(NamedTuple):
    """Describes an episode that is to be run, and to be kept for drawing if `record`.

    The seed decides it. The policy reads `prompt`, or the world's own, as it is at the tick, if that
    is None.
    """

    number: int
    seed: int
    prompt: str | None = None
    record: bool = False


@dataclasses.dataclass(frozen=True)
class EpisodeResult:
    """Holds the outcome of an episode, by its place in the rollout, after `ticks` control ticks.

    The policy read `prompt`, at least at first. Success is measured for the group of the episode itself, whatever the
    policy read.
    """

    episode: int
    robot: str
    seed: int
    prompt: str
    group: str
    success: bool
    ticks: int


@dataclasses.dataclass(frozen=True)
class Recording:
    """Holds what is needed to make pictures of an episode that has run."""

    result: EpisodeResult
    snapshots: tuple[Any, ...]  # World.snapshot() before every tick, and at the end
    chunks: np.ndarray  # as the policy predicted them, float32[replans, H, A]
    chunk_ticks: tuple[int, ...]  # when each was predicted


class Setting(NamedTuple):
    """Makes worlds of a kind, and one picture for each snapshot of them, all of one size."""

    make_world: Callable[[], World]
    pictures: Callable[[Recording], Iterable[Image.Image]]
