"""A planar world in NumPy where the present state is not enough: what counts was seen earlier.

A point goes to the right, straight on for WAIT ticks and then also up or down, to be where its goal
is at the last tick. A state is the point's place and what is shown of the goal:

    "cue"     its side, 1 or -1, in the first tick; 0 later
    "motion"  its y; it moves up or down, and how fast is not shown
    "still"   its y; it does not move, so that the past says nothing more

Functions take any number of episodes, one a row. Lengths have no unit; the workspace is 2 long.
"""

import dataclasses
from pathlib import Path

import numpy as np

from pi0_jax.data.rows import Dataset
from pi0_jax.embodiments.record import Embodiment, StateDim
from pi0_jax.lab import data, worlds
from pi0_jax.observation import RawObservation

KINDS = "cue", "motion", "still"
WAIT, TICKS = 2, 20
_START, _SPEED, _RISE = -0.8, 0.08, 0.08  # x; along x and along y in a tick
_SIDE, _FIRST, _MOTION, _STILL = 0.5, 0.3, 0.025, 0.8  # of the goal: y, or the largest; in a tick
_EPISODES = 200


def record(frames: int) -> Embodiment:
    """Returns the robot's record whose state holds so many frames, the newest first."""
    names = [name + (f"_{ago}" if ago else "") for ago in range(frames) for name in "xys"]
    state = tuple(StateDim(name, "1") for name in names)
    return dataclasses.replace(worlds.RECORD, name=f"planar_point_{frames}", state=state)


def begin(kind: str, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns places, float64[n, 2], and the goal's y at every tick and at the end, [n, TICKS + 1]."""
    drawn = np.array([np.random.default_rng(int(seed)).uniform(-1, 1, 3) for seed in seeds])
    start, first, speed = drawn.T
    first = {"cue": _SIDE * np.sign(first), "motion": _FIRST * first, "still": _STILL * first}[kind]
    moved = _MOTION * speed[:, None] * np.arange(TICKS + 1) * (kind == "motion")
    return np.stack([np.full(len(seeds), _START), 0.1 * start], axis=1), first[:, None] + moved


def state(kind: str, position: np.ndarray, goal: np.ndarray, tick: int) -> np.ndarray:
    """Returns what is seen at a tick, float64[n, 3]."""
    shown = np.sign(goal[:, 0]) * (tick == 0) if kind == "cue" else goal[:, tick]
    return np.column_stack([position, shown])


def stacked(states: np.ndarray, frames: int) -> np.ndarray:
    """Returns states with those before them, [n, T, S] -> [n, T, frames S]; the first was always."""
    ticks = np.arange(states.shape[1])
    return np.concatenate([states[:, np.maximum(ticks - i, 0)] for i in range(frames)], axis=2)


def expert(position: np.ndarray, goal: np.ndarray, tick: int) -> np.ndarray:
    """Returns the next place of a demonstration, which knows where the goal will be."""
    rise = np.clip(goal[:, -1] - position[:, 1], -_RISE, _RISE) * (tick >= WAIT)
    return np.column_stack(
        [np.full(len(position), _START + _SPEED * (tick + 1)), position[:, 1] + rise]
    )


def write(kind: str, frames: int, data_dir: Path, seed: int) -> list[Dataset]:
    """Writes demonstrations; with more frames they are the same ones."""
    rng = np.random.default_rng([seed, 0x41DD])
    position, goal = begin(kind, rng.integers(2**32, size=_EPISODES))
    states, actions = [], []
    for tick in range(TICKS):
        states.append(state(kind, position, goal, tick))
        actions.append(expert(position, goal, tick))
        position = worlds.move(position, actions[-1] + rng.normal(0.0, worlds.JOLT, position.shape))
    seen, done = np.stack(states, axis=1).astype(np.float32), np.stack(actions, axis=1)
    settings = {"seed": seed, "kind": kind, "frames": frames, "episodes": _EPISODES}
    name, seen = f"{kind}_{frames}", stacked(seen, frames)
    robot, actions_ = record(frames), done.astype(np.float32)
    return [data.write(data_dir, name, robot, seen, actions_, worlds.PROMPT, settings)]


class HiddenWorld:
    """Is a sim.worlds.World of one kind, whose observations hold some frames."""

    action_names = tuple(dim.name for dim in worlds.RECORD.actions)
    prompt = group = worlds.PROMPT

    def __init__(self, kind: str, frames: int) -> None:
        self._kind, self._frames, self.robot = kind, frames, record(frames).name

    def begin(self, seed: int) -> None:
        self._position, self._goal = begin(self._kind, np.array([seed]))
        self._states: list[np.ndarray] = []
        self._see()

    def observe(self) -> RawObservation:
        seen = stacked(np.stack(self._states, axis=1), self._frames)[0, -1]
        return RawObservation(images={}, state=seen.astype(np.float32), prompt=self.prompt)

    def advance(self, action: np.ndarray) -> tuple[bool, bool]:
        self._position = worlds.move(self._position, np.asarray(action, np.float64)[None])
        self._see()
        ended = len(self._states) > TICKS
        return bool(ended and self.snapshot() < worlds.REACHED), ended

    def snapshot(self) -> float:
        """Returns the distance from where the goal is at the end."""
        end = np.array([_START + _SPEED * TICKS, self._goal[0, -1]])
        return float(np.linalg.norm(self._position - end))

    def _see(self) -> None:
        self._states.append(state(self._kind, self._position, self._goal, len(self._states)))
