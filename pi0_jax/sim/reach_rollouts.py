"""Runs the reach world in rollouts: it renders when a policy looks, and draws episodes later.

Pictures of an episode are drawn again from its joint angles. What loads OpenGL (scene.py) is
imported inside functions that run in worker processes.
"""

import contextlib
from collections.abc import Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.observation import RawObservation
from pi0_jax.sim.arms import ARMS
from pi0_jax.sim.worlds import Recording, Setting

if TYPE_CHECKING:
    from pi0_jax.sim.scene import ReachScene

_INSET = 0.27  # share of the side: the wrist camera's view, in the lower right corner
_PATH = (255, 120, 0)


class Posture(NamedTuple):
    """Holds what a tick's picture needs: joints float64[n], rad, and blocks float64[3, 3], m."""

    joints: np.ndarray
    blocks: np.ndarray


class ReachWorld:
    """Is a worlds.World of the reach world; an episode's group is the block that counts."""

    def __init__(self, scene: "ReachScene") -> None:
        from pi0_jax.sim.reach import ReachEnv

        self._env = ReachEnv(scene.arm.name, side=scene.side, scene=scene)
        self.robot = scene.arm.name
        self.action_names = tuple(f"joint_{i}" for i in range(len(scene.arm.joints)))

    @property
    def prompt(self) -> str:
        return self._env.prompt

    @property
    def group(self) -> str:
        return self._env.prompt_color

    def begin(self, seed: int) -> None:
        self._env.begin(seed=seed)

    def observe(self) -> RawObservation:
        return self._env.observe()

    def advance(self, action: np.ndarray) -> tuple[bool, bool]:
        _, terminated, truncated, _ = self._env.advance(action)
        return terminated, terminated or truncated

    def snapshot(self) -> Posture:
        return Posture(self._env.joints, self._env.blocks)


def in_reach_world(robots: Collection[str]) -> list[str]:
    """Returns those of the robots that the reach world has.

    Raises:
        InputError: it has none of them.
    """
    if not (found := [robot for robot in ARMS if robot in robots]):
        other = "with --env=my_module:MyEnv-v0 a Gymnasium environment of your robot"
        expected = f"expected {', '.join(ARMS)}, or {other}"
        raise InputError(f"the reach world has no {', '.join(robots)}; {expected}")
    return found


@contextlib.contextmanager
def reach_setting(embodiment: Embodiment) -> Iterator[Setting]:
    """Opens worlds of the record's robot, which share one scene.

    Raises:
        InputError: the reach world has no robot of that name.
    """
    from pi0_jax.sim.scene import ReachScene

    in_reach_world([embodiment.name])
    with ReachScene(embodiment.name) as scene:
        yield Setting(partial(ReachWorld, scene), pictures)


def pictures(recording: Recording, side: int = 288) -> Iterator[Image.Image]:
    """Yields a picture of side x side pixels for each snapshot of a recording.

    It shows the base camera's view with the wrist camera's view in a corner. A line is the path of
    the fingertip along the rest of the chunk that is being executed.
    """
    from pi0_jax.sim.scene import ReachScene

    with ReachScene(recording.result.robot, side=side) as scene:
        data = scene.new_data()
        for tick, posture in enumerate(recording.snapshots):
            scene.place(data, posture.joints, posture.blocks)
            picture = Image.fromarray(scene.render(data, "base"))
            inset = round(side * _INSET)
            wrist = Image.fromarray(scene.render(data, "wrist"))
            wrist = wrist.resize((inset, inset), Image.Resampling.BOX)
            picture.paste(wrist, (side - inset, side - inset))
            # The present chunk is the last one that was predicted at this tick or before.
            replan = np.searchsorted(recording.chunk_ticks, tick, side="right") - 1
            rest = recording.chunks[replan][tick - recording.chunk_ticks[replan] :]
            way = [scene.fingertip_at(joints)[0] for joints in (posture.joints, *rest)]
            path = [(float(x), float(y)) for x, y in scene.project(np.array(way))]
            pen = ImageDraw.Draw(picture)
            pen.line(path, fill=_PATH, width=2)
            for x, y in path[1:]:
                pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_PATH)
            yield picture
