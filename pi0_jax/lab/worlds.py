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
first observations says which one is meant; or the prompt names a route, and the task is to take it.
The point may be pushed on its way. Functions take any number of episodes, one a row. Lengths have no
unit; the workspace is 2 long.
"""

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from pi0_jax.embodiments.record import ActionDim, Embodiment, StateDim
from pi0_jax.observation import RawObservation
from pi0_jax.sim.gym_rollouts import GymWorld
from pi0_jax.sim.worlds import Recording, Setting, World

RADIUS = 0.25  # of the obstacle, whose middle is (0, 0)
SPEED = 0.08  # along x in a tick
REACHED = 0.1  # 5% of the workspace: from here the goal is reached
EPISODE_TICKS, DEMONSTRATION_TICKS = 40, 24
PROMPT = "reach"
_START, _GOAL = -0.8, 0.8  # x
_SPREAD = (
    0.1,
    0.4,
    0.0,
)  # of the start's y and the goal's y, either way, and of the goal's x, nearer
_VARIED = 0.4, 0.5, 0.2  # the same, of a task that takes more demonstrations
_AWAY = 0.5  # y of a demonstration beside the obstacle
# Prompts that name a route -> its side, times how far it goes round.
ROUTES = {"above": 1.0, "below": -1.0, "far above": 1.5, "far below": -1.5}
_NEAR = 0.12  # a named route is taken by a point that passes the obstacle so close to it
PUSH_TICK, _PUSH = 4, (0.3, 0.5)  # when a point is pushed, and how far along y, up or down
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


def begin(seeds: np.ndarray, varied: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns where episodes begin and where they shall end, float64[n, 2] each."""
    drawn = np.array([np.random.default_rng(int(seed)).uniform(-1, 1, 3) for seed in seeds])
    start_y, goal_y, nearer = (drawn * (_VARIED if varied else _SPREAD)).T
    start_x, goal_x = np.full(len(seeds), _START), _GOAL - np.abs(nearer)
    return np.stack([start_x, start_y], axis=1), np.stack([goal_x, goal_y], axis=1)


def path(x: np.ndarray, goal: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Returns the y, float64[n], of the demonstrated path at these x; side is 1 or -1 (ROUTES)."""
    end = np.where(x < 0, -_START, goal[:, 0])
    bump = np.where(np.abs(x) < end, np.cos(np.pi * x / (2 * end)) ** 2, 0.0)
    ramp = np.clip(x / goal[:, 0], 0.0, 1.0)
    return side * _AWAY * bump + goal[:, 1] * ramp**2 * (3 - 2 * ramp)


def expert(position: np.ndarray, goal: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Returns the next position that a demonstration aims at: along its path, and back to it."""
    x = np.minimum(position[:, 0] + SPEED, goal[:, 0])
    off = position[:, 1] - path(position[:, 0], goal, side)
    return np.stack([x, path(x, goal, side) + 0.5 * off], axis=1)


def move(position: np.ndarray, target: np.ndarray, longest: float = _LONGEST) -> np.ndarray:
    """Moves points towards their targets, as far as they get in a tick."""
    way = target - position
    length = np.linalg.norm(way, axis=1, keepdims=True)
    return position + way * np.minimum(1.0, longest / np.maximum(length, 1e-9))


def clearance(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Returns how far straight ways stay from the obstacle, float64[n]; negative where inside."""
    way = end - start
    length = np.maximum(np.sum(way**2, axis=1), 1e-12)
    nearest = np.clip(-np.sum(start * way, axis=1) / length, 0.0, 1.0)
    return np.linalg.norm(start + nearest[:, None] * way, axis=1) - RADIUS


def missed(way: np.ndarray, side: float) -> float:
    """Returns how far from a route a straight way, [2, 2], passes the obstacle, which is at x = 0."""
    (x, y), (next_x, next_y) = way
    return float(abs(y - x * (next_y - y) / (next_x - x) - side * _AWAY))


class Manner(NamedTuple):
    """Says how demonstrations are driven.

    Attributes:
        jolt: standard deviation of what disturbs each tick's motion.
        mistakes: the chance that a tick ends with a large mistake along y, of deviation 0.25.
        dawdling: the slowest go at one less this, of the usual speed.
        ticks: length of a demonstration.
        varied: whether starts and goals lie further apart.
    """

    jolt: float = JOLT
    mistakes: float = 0.0
    dawdling: float = 0.0
    ticks: int = DEMONSTRATION_TICKS
    varied: bool = False


USUAL = Manner()


def demonstrations(
    count: int, seed: int, sides: tuple[float, ...], manner: Manner = USUAL
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs demonstrations, each by one of the sides, drawn with equal chances.

    Each tick's motion is disturbed, and the recorded action is what was aimed at, so that the way
    back to the path is demonstrated too.

    Returns:
        States float32[n, T, 4], actions float32[n, T, 2], and the sides, [n].
    """
    rng = np.random.default_rng([seed, 0xDE70])
    position, goal = begin(rng.integers(2**32, size=count), manner.varied)
    side = rng.choice(sides, count)
    pace = 1 - manner.dawdling * rng.random((count, 1)) if manner.dawdling else None
    states, actions = [], []
    for _ in range(manner.ticks):
        target = expert(position, goal, side)
        if pace is not None:
            target = position + pace * (target - position)
        states.append(np.concatenate([position, goal], axis=1))
        actions.append(target)
        position = move(position, target + rng.normal(0.0, manner.jolt, target.shape))
        if manner.mistakes:
            position[:, 1] += rng.normal(0.0, 0.25, count) * (rng.random(count) < manner.mistakes)
    return np.stack(states, 1).astype(np.float32), np.stack(actions, 1).astype(np.float32), side


class Planar(gymnasium.Env, abc.ABC):
    """Is a planar world as a Gymnasium environment, of which a recording keeps a trace."""

    def __init__(self, record: Embodiment, largest: float) -> None:
        """Takes the robot's record, and the largest number of an action."""
        state, actions = (len(record.state),), (len(record.actions),)
        self.observation_space = gymnasium.spaces.Dict(
            {"state": gymnasium.spaces.Box(-np.inf, np.inf, state, np.float32)}
        )
        self.action_space = gymnasium.spaces.Box(-largest, largest, actions, np.float32)

    @abc.abstractmethod
    def trace(self) -> np.ndarray:
        """Returns what is kept of a tick."""


class Detour(Planar):
    """Is one episode of the world, as a Gymnasium environment."""

    def __init__(self, prompt: str = PROMPT, varied: bool = False, pushed: bool = False) -> None:
        """Says what observations and actions are.

        Args:
            prompt: a route of ROUTES, or any other text where the way round is free.
            varied: whether starts and goals lie further apart.
            pushed: whether the point is pushed on its way.
        """
        super().__init__(RECORD, 1.0)
        self._side, self._varied, self._pushed = ROUTES.get(prompt), varied, pushed

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begins an episode; the seed decides start, goal and push."""
        super().reset(seed=seed)
        drawn = self.np_random.integers(2**32) if seed is None else seed
        self.position, self._goal = begin(np.array([drawn]), self._varied)
        self.guide = self.position  # where the expert would be who takes the named route
        self._ticks, self._clearance, self._on_route = 0, np.inf, True
        rng = np.random.default_rng([int(drawn), 0x9053])
        self._push = np.array([0.0, rng.choice((-1, 1)) * rng.uniform(*_PUSH)]) * self._pushed
        return self._observation(), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Moves the point; the goal counts only after the named route and without a touch."""
        before = self.position
        self.position = move(before, np.asarray(action, np.float64)[None])
        self._clearance = min(self._clearance, float(clearance(before, self.position)[0]))
        if self._side is not None:
            if before[0, 0] <= 0 < self.position[0, 0]:
                self._on_route &= (
                    missed(np.concatenate([before, self.position]), self._side) < _NEAR
                )
            self.guide = move(self.guide, expert(self.guide, self._goal, np.array([self._side])))
        self._ticks += 1
        if self._ticks == PUSH_TICK:
            self.position, self.guide = self.position + self._push, self.guide + self._push
        reached = bool(np.linalg.norm(self.position - self._goal) < REACHED)
        success = reached and self._clearance > 0 and self._on_route
        info = {"success": success, "clearance": self._clearance}
        return self._observation(), float(success), reached, self._ticks >= EPISODE_TICKS, info

    def _observation(self) -> dict[str, np.ndarray]:
        state = np.concatenate([self.position[0], self._goal[0]])
        return {"state": state.astype(np.float32)}

    def trace(self) -> np.ndarray:
        """Returns position, goal, and where the expert would be, float64[6]."""
        return np.concatenate([self._observation()["state"], self.guide[0]])


gymnasium.register("Detour-v0", entry_point="pi0_jax.lab.worlds:Detour")


class TracedWorld(GymWorld):
    """Is the world of a rollout that keeps its environment's trace of every tick."""

    def __init__(self, env: Planar, record: Embodiment, prompt: str) -> None:
        """Makes the world."""
        self._traced = env
        super().__init__(env, type(env).__name__, record, success="success", prompt=prompt)

    def snapshot(self) -> tuple[np.ndarray, ...]:
        """Returns the trace."""
        return (self._traced.trace(),)


@contextlib.contextmanager
def opened(world: Callable[..., World], *arguments: Any) -> Iterator[Setting]:
    """Opens worlds of rollouts, made with these arguments; nothing of them is drawn."""
    yield Setting(partial(world, *arguments), lambda recording: ())


def setting(
    prompt: str = PROMPT, varied: bool = False, pushed: bool = False
) -> AbstractContextManager[Setting]:
    """Opens worlds with an obstacle; see Detour."""
    return traced(partial(Detour, prompt, varied, pushed), RECORD, prompt)


def traced(
    env: Callable[[], Planar], record: Embodiment, prompt: str
) -> AbstractContextManager[Setting]:
    """Opens worlds of rollouts that keep their environments' traces."""
    return opened(lambda: TracedWorld(env(), record, prompt))


# ---- what an episode shows


def arrivals(recordings: Sequence[Recording]) -> dict[str, list[float]]:
    """Returns success and the last distance of each episode whose snapshots are distances."""
    return {
        "success": [float(one.result.success) for one in recordings],
        "distance": [float(np.squeeze(one.snapshots[-1])) for one in recordings],
    }


def outcomes(recordings: Sequence[Recording]) -> dict[str, list[float]]:
    """Returns what each recorded episode shows, by quantity: see QUANTITIES."""
    found: dict[str, list[float]] = {name: [] for name in QUANTITIES}
    for recording in recordings:
        states = np.array(recording.snapshots, np.float64)[:, 0]  # [T + 1, 6]
        way, goal, guide = states[:, :2], states[-1, 2:4], states[:, 4:]
        near = float(clearance(way[:-1], way[1:]).min())
        third = np.diff(way, 3, axis=0)
        past = np.flatnonzero(way[:, 0] > 0)
        if len(past):
            found["upper side"].append(float(way[past[0], 1] > 0))
        if (side := ROUTES.get(recording.result.prompt)) is not None:
            passing = way[past[0] - 1 : past[0] + 1] if len(past) else np.array([[-1, 0], [1, 0]])
            found["miss"].append(missed(passing, side))
            found["gap"].append(float(np.linalg.norm(way - guide, axis=1).mean()))
        found["margin"].append(min(near, 0.0) if len(past) else -RADIUS)
        found["success"].append(float(recording.result.success))
        found["clearance"].append(near)
        found["collision"].append(float(near < 0))
        found["distance"].append(float(np.linalg.norm(way[-1] - goal)))
        found["jerk"].append(float(np.sqrt(np.mean(np.sum(third**2, axis=1)))))
        found["ticks"].append(float(recording.result.ticks))
    return {name: values for name, values in found.items() if values}


QUANTITIES = {
    "gap": "mean distance from where an expert of the named route would be at the same tick"
    " (workspace: 2)",
    "miss": "distance from the named route where the obstacle is passed; where it never is, that of"
    " its middle (workspace: 2)",
    "margin": "how deep an episode goes into the obstacle, as a negative number: 0 where it goes round,"
    f" {-RADIUS} where it goes through the middle or never gets past (workspace: 2)",
    "clearance": "least distance from the obstacle in an episode, negative inside (workspace: 2)",
    "success": "share of episodes that reach the goal without touching the obstacle, on the route"
    " that is named, if any",
    "collision": "share of episodes that touch the obstacle",
    "upper side": "share of the episodes that get past the obstacle which pass it above",
    "distance": "from the goal at the episode's end",
    "jerk": "root mean square of third differences of the position, per tick^3",
    "ticks": "length of an episode",
}
