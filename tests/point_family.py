"""Is a family of one's own in one file: a point goes to a goal that only its image shows."""

import numpy as np

from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.sim.benchmark.families import Family

RECORD = Embodiment(
    name="point",
    robot="a point on a line",
    cameras={"base_0_rgb": "front"},
    state=(StateDim("x", "m"),),
    actions=(ActionDim("dx", "m", "relative"),),
    control_hz=5.0,
    execute_steps=2,
)


class Point:
    def __init__(self, task):
        self._side = 1 if task == "right" else -1

    def reset(self, number):
        self._x, self._goal = 0.0, self._side * np.random.default_rng(number).uniform(0.3, 1.0)

    def observe(self):
        image = np.full((8, 8, 3), round(100 * abs(self._goal)), np.uint8)
        return {"images": {"front": image}, "state": np.array([self._x])}

    def step(self, action):
        self._x += float(np.clip(action[0], -0.1, 0.1))
        return abs(self._x - self._goal) < 0.06

    def close(self):
        pass


FAMILY = Family(
    name="point",
    record=RECORD,
    tasks={"left": "go to the left", "right": "go to the right"},
    groups={"both": ("left", "right")},
    open=Point,
    most_actions=15,
    protocol="a point on a line, 15 actions",
    image_size=(8, 8),
    packages=("numpy",),
)
