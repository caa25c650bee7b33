"""A planar world in NumPy: the hand of an arm goes to a goal.

          o----o
         /      \\         o joints, between links of equal length, which are 1 long together
        /        hand
       o base, at (0, 0)       x goal

An action says by how much each joint turns in a tick. It turns the joints of another arm, of equal
look, the other way: what is seen does not tell which of them it is. Functions take any number of
episodes, one a row. The unit of length is the arm's.
"""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from pi0_jax.data.rows import Dataset
from pi0_jax.embodiments.record import ActionDim, Embodiment, StateDim
from pi0_jax.lab import data, worlds
from pi0_jax.sim.worlds import Setting

REACHED = 0.05  # so close to the goal an episode must end
EPISODE_TICKS, DEMONSTRATION_TICKS = 32, 24
DEMONSTRATIONS = 200
_SPEED = 0.08  # of the demonstrated hand, in a tick
_DAMPING = 0.1  # of its pseudo-inverse: near a stretched arm the joints turn slower
_LONGEST, _STOP = 0.3, 3.05  # rad: a joint's largest turn in a tick, and its stops
_JOLT = 0.02  # rad; standard deviation of what disturbs a demonstration in a tick
_SECTOR = 1.2  # rad, either way: where hand and goal are, seen from the base
_BEND, _GOAL = (0.6, 2.2), (0.4, 0.9)  # rad in all joints but the first; a goal's distance


class Arm(NamedTuple):
    """Describes an arm.

    Attributes:
        name: of its record and of its dataset.
        links: how many it has.
        turn: 1, or -1 where the same action turns its joints the other way.
        motors: whether the state tells the motors' angles too, which turn as actions say.
    """

    name: str
    links: int = 2
    turn: int = 1
    motors: bool = False

    @property
    def record(self) -> Embodiment:
        """Returns the robot's record."""
        joints, motors = ([f"{it}_{i}" for i in range(self.links)] for it in ("joint", "motor"))
        angles = [StateDim(name, "rad") for name in joints + motors * self.motors]
        return Embodiment(
            self.name, robot="an arm in a planar world", cameras={},
            state=(StateDim("goal_x", "1"), StateDim("goal_y", "1"), *angles),
            actions=tuple(ActionDim(name, "rad", "relative") for name in joints),
            control_hz=10.0, execute_steps=8,
        )  # fmt: skip

    def state(self, angles: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Returns what is seen, float32[n, S]: the goal, the joints, and perhaps the motors."""
        motors = [self.turn * angles] * self.motors
        return np.concatenate([goal, angles, *motors], axis=1).astype(np.float32)

    def begin(self, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns joint angles, [n, links], and goals, [n, 2], with which episodes begin."""
        drawn = np.array([np.random.default_rng(int(seed)).uniform(-1, 1, 5) for seed in seeds])
        hand, bend, side, distance, toward = drawn.T
        bend = np.where(side < 0, -1, 1) * np.interp(bend, (-1, 1), _BEND)
        angles = np.repeat(bend[:, None] / (self.links - 1), self.links, axis=1)
        angles[:, 0] = 0
        x, y = places(angles)[:, -1].T
        angles[:, 0] = _SECTOR * hand - np.arctan2(y, x)
        ray = np.stack([np.cos(_SECTOR * toward), np.sin(_SECTOR * toward)], axis=1)
        return angles, np.interp(distance, (-1, 1), _GOAL)[:, None] * ray

    def expert(self, angles: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Returns the action, [n, links], that moves the hand straight towards the goal.

        It is the damped least-squares solution J' (J J' + d^2 I)^-1 w for the hand's way w.
        """
        at = places(angles)
        way = goal - at[:, -1]
        way *= np.minimum(1, _SPEED / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-9))
        lever = at[:, -1:] - at[:, :-1]  # from each joint to the hand
        jacobian = np.stack([-lever[..., 1], lever[..., 0]], axis=1)  # [n, 2, links]
        transposed = jacobian.swapaxes(1, 2)
        square = jacobian @ transposed + _DAMPING**2 * np.eye(2)
        return self.turn * (transposed @ np.linalg.solve(square, way[..., None]))[..., 0]

    def move(self, angles: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Turns the joints, as far as they get in a tick."""
        return np.clip(angles + self.turn * np.clip(action, -_LONGEST, _LONGEST), -_STOP, _STOP)

    def demonstrations(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns states and actions, float32[count, T, ...]; the joints of any arm move the same.

        Each tick is disturbed, and the recorded action is the expert's.
        """
        rng = np.random.default_rng([seed, 0xA2E5])
        angles, goal = self.begin(rng.integers(2**32, size=count))
        states, actions = [], []
        for _ in range(DEMONSTRATION_TICKS):
            states.append(self.state(angles, goal))
            actions.append(self.expert(angles, goal).astype(np.float32))
            jolts = self.turn * rng.normal(0.0, _JOLT, angles.shape)
            angles = self.move(angles, actions[-1] + jolts)
        return np.stack(states, 1), np.stack(actions, 1)

    def write(self, data_dir: Path, seed: int, count: int, prompt: str = worlds.PROMPT) -> Dataset:
        """Writes the first of a seed's DEMONSTRATIONS; returns the dataset's row."""
        settings = {"seed": seed, "count": count, **self._asdict()}
        states, actions = (part[:count] for part in self.demonstrations(DEMONSTRATIONS, seed))
        return data.write(data_dir, self.name, self.record, states, actions, prompt, settings)

    def setting(self, prompt: str = worlds.PROMPT) -> AbstractContextManager[Setting]:
        """Opens worlds of this arm."""
        return worlds.traced(partial(Reach, *self[1:]), self.record, prompt)


def places(angles: np.ndarray) -> np.ndarray:
    """Returns where the joints are, [n, links + 1, 2]: the base first, the hand last."""
    directions = np.cumsum(angles, axis=1)
    links = np.stack([np.cos(directions), np.sin(directions)], axis=2) / angles.shape[1]
    return np.pad(np.cumsum(links, axis=1), ((0, 0), (1, 0), (0, 0)))


class Reach(worlds.Planar):
    """Is one episode, which always takes EPISODE_TICKS."""

    def __init__(self, links: int = 2, turn: int = 1, motors: bool = False) -> None:
        """Makes the arm; see Arm."""
        self.arm = Arm("arm", links, turn, motors)
        super().__init__(self.arm.record, _LONGEST)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begins an episode; the seed decides posture and goal."""
        super().reset(seed=seed)
        drawn = self.np_random.integers(2**32) if seed is None else seed
        self.angles, self.goal = self.arm.begin(np.array([drawn]))
        self._ticks = 0
        return self._observation(), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, bool]]:
        """Turns the joints; where the hand is at the end decides."""
        self.angles = self.arm.move(self.angles, np.asarray(action, np.float64)[None])
        self._ticks += 1
        over = self._ticks >= EPISODE_TICKS
        success = over and bool(self.trace()[0] < REACHED)
        return self._observation(), float(success), False, over, {"success": success}

    def _observation(self) -> dict[str, np.ndarray]:
        return {"state": self.arm.state(self.angles, self.goal)[0]}

    def trace(self) -> np.ndarray:
        """Returns how far the hand is from the goal."""
        return np.linalg.norm(places(self.angles)[:, -1] - self.goal, axis=1)


gymnasium.register("Reach-v0", entry_point="pi0_jax.lab.arms:Reach")

QUANTITIES = {
    "distance": "of the hand from the goal at the episode's end, in lengths of the arm",
    "success": f"share of episodes at whose end the hand is closer than {REACHED} to the goal",
}
