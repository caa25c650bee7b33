"""Worlds for tests of rollouts, which worker processes import."""

import contextlib
from collections.abc import Iterator
from functools import partial

import numpy as np

from pi0_jax.sim.expert import command, demonstrate, goal_joints
from pi0_jax.sim.reach import ReachEnv
from pi0_jax.sim.reach_rollouts import ReachWorld, pictures
from pi0_jax.sim.scene import COLORS, ReachScene
from pi0_jax.sim.worlds import Setting

HORIZON = 8


class OpenWorld(ReachWorld):
    """Is a reach world that also shows what the expert would do for each colour."""

    def __init__(self, scene: ReachScene) -> None:
        super().__init__(scene)
        self._scene = scene

    def observe(self):
        return {**super().observe(), "expert": {color: self._chunk(color) for color in COLORS}}

    def _chunk(self, color: str) -> np.ndarray:
        goal = goal_joints(self._scene, self._env.goal(color))
        joints, chunk = self._env.joints, []
        for _ in range(HORIZON):
            joints = command(joints, goal)
            chunk.append(joints)
        return np.array(chunk, np.float32)


@contextlib.contextmanager
def open_setting(robot: str) -> Iterator[Setting]:
    with ReachScene(robot, side=16) as scene:
        yield Setting(partial(OpenWorld, scene), partial(pictures, side=96))


def demonstration(robot: str, seed: int) -> list[dict]:
    """Returns the steps of a demonstration as plain arrays."""
    env = ReachEnv(robot)
    steps = demonstrate(env, seed).steps
    env.close()
    return [
        {
            "action": step.action,
            "state": step.observation["state"],
            "images": step.observation["images"],
        }
        for step in steps
    ]
