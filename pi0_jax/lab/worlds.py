"""A planar world in NumPy: a point goes to a goal, and an obstacle lies between them.

      1  +-----------------------------+
         |         . - - - .           |
         |      .     ___     .        |
      0  | start     (   )       goal  |
         |      .     ---     .        |
         |         ' - - - '           |
     -1  +-----------------------------+
        -1             0              1

A demonstration goes round by one of the sides. Where both sides are demonstrated, nothing in the
first observations says which one is meant. Functions take any number of episodes, one a row.
Lengths have no unit; the workspace is 2 long.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np

from pi0_jax.embodiments.record import ActionDim, Embodiment, StateDim
from pi0_jax.observation import RawObservation
from pi0_jax.sim.gym_rollouts import GymWorld
from pi0_jax.sim.worlds import Recording, Setting

RADIUS = 0.25  # of the obstacle, whose middle is (0, 0)
SPEED = 0.08  # along x in a tick
REACHED = 0.1  # 5% of the workspace: from here the goal is reached
EPISODE_TICKS, DEMONSTRATION_TICKS = 40, 24
PROMPT = "reach"
_START, _GOAL = -0.8, 0.8  # x
_START_SPREAD, _GOAL_SPREAD = 0.1, 0.4  # of y, either way
_AWAY = 0.5  # y of a demonstration beside the obstacle
_LONGEST = 0.15  # a point moves at most so far in a tick
JOLT = 0.015  # standard deviation of what disturbs a demonstration in a tick

RECORD = Embodiment(
    name="planar_point",
    robot="a point in a planar world",
    cameras={},
    state=tuple(StateDim(name, "1") for name in ("x", "y", "goal_x", "goal_y")),
    actions=tuple(ActionDim(name, "1", "absolute", delta=True) for name in ("x", "y")),
    control_hz=10.0,
    execute_steps=8,
)


def observed(states: np.ndarray) -> list[RawObservation]:
    """Returns what a policy sees of each of these states, [n, 4]."""
    return [
        RawObservation(images={}, state=state, prompt=PROMPT) for state in states.astype(np.float32)
    ]


def begin(seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where episodes begin and where they shall end, float64[n, 2] each."""
    drawn = np.array([np.random.default_rng(int(seed)).uniform(-1, 1, 2) for seed in seeds])
    y = drawn * (_START_SPREAD, _GOAL_SPREAD)
    x = np.broadcast_to((_START, _GOAL), y.shape)
    return np.stack([x[:, 0], y[:, 0]], axis=1), np.stack([x[:, 1], y[:, 1]], axis=1)


def path(x: np.ndarray, goal: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Returns the y, float64[n], of the demonstrated path at these x; side is 1 or -1."""
    bump = np.where(np.abs(x) < -_START, np.cos(np.pi * x / (2 * -_START)) ** 2, 0.0)
    ramp = np.clip(x / _GOAL, 0.0, 1.0)
    return side * _AWAY * bump + goal[:, 1] * ramp**2 * (3 - 2 * ramp)


def expert(position: np.ndarray, goal: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Returns the next position that a demonstration aims at: along its path, and back to it."""
    x = np.minimum(position[:, 0] + SPEED, goal[:, 0])
    off = position[:, 1] - path(position[:, 0], goal, side)
    return np.stack([x, path(x, goal, side) + 0.5 * off], axis=1)


def move(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Moves points towards their targets, as far as they get in a tick."""
    way = target - position
    length = np.linalg.norm(way, axis=1, keepdims=True)
    return position + way * np.minimum(1.0, _LONGEST / np.maximum(length, 1e-9))


def clearance(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Returns how far straight ways stay from the obstacle, float64[n]; negative where inside."""
    way = end - start
    length = np.maximum(np.sum(way**2, axis=1), 1e-12)
    nearest = np.clip(-np.sum(start * way, axis=1) / length, 0.0, 1.0)
    return np.linalg.norm(start + nearest[:, None] * way, axis=1) - RADIUS


def demonstrations(
    count: int, seed: int, sides: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs demonstrations, each by one of the sides, drawn with equal chances.

    Each tick's motion is disturbed, and the recorded action is what was aimed at, so that the way
    back to the path is demonstrated too.

    Returns:
        States float32[n, T, 4], actions float32[n, T, 2], and the sides, int[n].
    """
    rng = np.random.default_rng([seed, 0xDE70])
    position, goal = begin(rng.integers(2**32, size=count))
    side = rng.choice(sides, count)
    states, actions = [], []
    for _ in range(DEMONSTRATION_TICKS):
        target = expert(position, goal, side)
        states.append(np.concatenate([position, goal], axis=1))
        actions.append(target)
        position = move(position, target + rng.normal(0.0, JOLT, target.shape))
    return np.stack(states, 1).astype(np.float32), np.stack(actions, 1).astype(np.float32), side


class Detour(gymnasium.Env):
    """Is one episode of the world, as a Gymnasium environment."""

    def __init__(self) -> None:
        """Says what observations and actions are."""
        self.observation_space = gymnasium.spaces.Dict(
            {"state": gymnasium.spaces.Box(-np.inf, np.inf, (len(RECORD.state),), np.float32)}
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(RECORD.actions),), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begins an episode; the seed decides start and goal."""
        super().reset(seed=seed)
        drawn = self.np_random.integers(2**32) if seed is None else seed
        self.position, self._goal = begin(np.array([drawn]))
        self._ticks, self._clearance = 0, np.inf
        return self._observation(), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Moves the point; the goal counts only if the obstacle was not touched on the way."""
        before = self.position
        self.position = move(before, np.asarray(action, np.float64)[None])
        self._clearance = min(self._clearance, float(clearance(before, self.position)[0]))
        self._ticks += 1
        reached = bool(np.linalg.norm(self.position - self._goal) < REACHED)
        success = reached and self._clearance > 0
        info = {"success": success, "clearance": self._clearance}
        return self._observation(), float(success), reached, self._ticks >= EPISODE_TICKS, info

    def _observation(self) -> dict[str, np.ndarray]:
        state = np.concatenate([self.position[0], self._goal[0]])
        return {"state": state.astype(np.float32)}


gymnasium.register("Detour-v0", entry_point="pi0_jax.lab.worlds:Detour")


class TracedWorld(GymWorld):
    """Is the world of a rollout that keeps where the point was at every tick."""

    def __init__(self) -> None:
        """Makes the world."""
        self._detour = Detour()
        super().__init__(self._detour, "Detour-v0", RECORD, success="success", prompt=PROMPT)

    def snapshot(self) -> tuple[np.ndarray, ...]:
        """Returns the state alone: position and goal."""
        return (self._seen["state"].copy(),)


@contextlib.contextmanager
def setting() -> Iterator[Setting]:
    """Opens worlds of rollouts; nothing of them is drawn."""
    yield Setting(TracedWorld, lambda recording: ())


# ---- what an episode shows


def outcomes(recordings: Sequence[Recording]) -> dict[str, list[float]]:
    """Returns what each recorded episode shows, by quantity: see QUANTITIES."""
    found: dict[str, list[float]] = {name: [] for name in QUANTITIES}
    for recording in recordings:
        states = np.array(recording.snapshots, np.float64)[:, 0]  # [T + 1, 4]
        way, goal = states[:, :2], states[-1, 2:]
        near = float(clearance(way[:-1], way[1:]).min())
        third = np.diff(way, 3, axis=0)
        past = np.flatnonzero(way[:, 0] > 0)
        if len(past):
            found["upper side"].append(float(way[past[0], 1] > 0))
        found["margin"].append(min(near, 0.0) if len(past) else -RADIUS)
        found["success"].append(float(recording.result.success))
        found["clearance"].append(near)
        found["collision"].append(float(near < 0))
        found["distance"].append(float(np.linalg.norm(way[-1] - goal)))
        found["jerk"].append(float(np.sqrt(np.mean(np.sum(third**2, axis=1)))))
        found["ticks"].append(float(recording.result.ticks))
    return found


QUANTITIES = {
    "margin": "how deep an episode goes into the obstacle, as a negative number: 0 where it goes round,"
    f" {-RADIUS} where it goes through the middle or never gets past (workspace: 2)",
    "clearance": "least distance from the obstacle in an episode, negative inside (workspace: 2)",
    "success": "share of episodes that reach the goal without touching the obstacle",
    "collision": "share of episodes that touch the obstacle",
    "upper side": "share of the episodes that get past the obstacle which pass it above",
    "distance": "from the goal at the episode's end",
    "jerk": "root mean square of third differences of the position, per tick^3",
    "ticks": "length of an episode",
}
