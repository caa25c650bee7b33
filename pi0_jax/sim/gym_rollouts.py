"""Runs any Gymnasium environment in rollouts, by the record of its robot.

    observation   a map of the record's client keys (embodiments/record.py; nested maps count as
                  keys joined by "/"): a uint8 image for each camera, the parts of the state, and
                  `prompt` where the environment gives one; other keys are not read
    action        a Box of the record's action dimensions, in their units; what a policy says is cut
                  to its bounds, and rounded where it holds whole numbers
    success       info[...] at any tick, which ends the episode; or termination itself

Images come as the record says that clients send them (`image_rotation`). If an environment gives
others, its owner wraps it.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np

from pi0_jax.embodiments import Embodiment
from pi0_jax.embodiments.keys import PROMPT, UnreadKeys, to_observation
from pi0_jax.errors import InputError
from pi0_jax.observation import RawObservation
from pi0_jax.sim.video import camera_pictures
from pi0_jax.sim.worlds import Setting

logger = logging.getLogger(__name__)

TERMINATED = "terminated"


class GymWorld:
    """Is a worlds.World around a Gymnasium environment; an episode's group is its prompt."""

    def __init__(
        self,
        env: gymnasium.Env,
        name: str,
        embodiment: Embodiment,
        *,
        success: str,
        prompt: str | None,
    ) -> None:
        """Checks that the environment takes the record's actions.

        Args:
            env: the environment.
            name: the environment's name in messages.
            embodiment: the record of its robot.
            success: the key of info that says whether the episode has succeeded, or TERMINATED.
            prompt: the prompt of observations that carry none.

        Raises:
            InputError: the action space is not that of the record.
        """
        self._env, self._name, self._embodiment = env, name, embodiment
        self._success, self._default_prompt = success, prompt
        self.robot = embodiment.name
        self.action_names = tuple(dim.name for dim in embodiment.actions)
        self._unread = UnreadKeys(f"{name}: {self.robot}")
        if turned := embodiment.image_rotation:
            already = "its images are taken as turned by %d degrees already, as %s expects them"
            logger.warning(f"%s: {already}", name, turned, self.robot)
        space, dims = env.action_space, len(self.action_names)
        if not isinstance(space, gymnasium.spaces.Box) or space.shape != (dims,):
            expected = f"expected a Box of {dims} dimensions ({self.robot})"
            raise InputError(f"{name}: action space: {expected}, found {space}")
        self._space = space

    @property
    def prompt(self) -> str:
        return self._seen["prompt"]

    @property
    def group(self) -> str:
        return self.prompt

    def begin(self, seed: int) -> None:
        observation, _ = self._env.reset(seed=seed)
        self._see(observation)

    def observe(self) -> RawObservation:
        return self._seen

    def advance(self, action: np.ndarray) -> tuple[bool, bool]:
        space = self._space
        bounded = np.clip(action, space.low, space.high)
        nearest = np.rint(bounded) if np.issubdtype(space.dtype, np.integer) else bounded
        observation, _, terminated, truncated, info = self._env.step(nearest.astype(space.dtype))
        self._see(observation)
        if self._success == TERMINATED:
            return bool(terminated), bool(terminated or truncated)
        success = self._success in info and bool(info[self._success])
        if (terminated or truncated) and self._success not in info:
            expected = f"expected {self._success!r}, which says success"
            found = ", ".join(map(str, info)) or "nothing"
            raise InputError(f"{self._name}: info at an episode's end: {expected}, found {found}")
        return success, bool(success or terminated or truncated)

    def snapshot(self) -> tuple[np.ndarray, ...]:
        # The images are copied: an environment may render into the same array at every tick.
        images, cameras = self._seen["images"], self._embodiment.cameras.values()
        return tuple(images[camera].copy() for camera in cameras)

    def _see(self, observation: Any) -> None:
        record, prompt = self._embodiment, self._default_prompt
        try:
            if prompt is None and isinstance(observation, Mapping) and PROMPT not in observation:
                found = ", ".join(map(str, observation))
                raise InputError(f"expected {PROMPT!r}, found {found}; --prompt gives one")
            self._seen = to_observation(observation, record, prompt, unread=self._unread)
        except InputError as error:
            raise InputError(f"{self._name}: observation: {error}") from error


@contextlib.contextmanager
def gym_setting(
    embodiment: Embodiment, *, env: str, arguments: str, success: str, prompt: str | None
) -> Iterator[Setting]:
    """Opens worlds of an environment that Gymnasium knows.

    Args:
        embodiment: the record of the robot.
        env: the environment's name, or "module:Env-v0", which imports a module first.
        arguments: a map as JSON, for gymnasium.make.
        success: see GymWorld.
        prompt: see GymWorld.

    Raises:
        InputError: `arguments` is not such a map.
    """
    try:
        given = json.loads(arguments)
    except ValueError as error:
        given, fault = None, f": {error}"
    else:
        fault = ""
    if not isinstance(given, dict):
        expected = "expected a map as JSON"
        raise InputError(f"environment's arguments: {expected}, found {arguments!r}{fault}")
    with contextlib.ExitStack() as made:

        def make_world() -> GymWorld:
            try:
                one = gymnasium.make(env, **given)
            except (gymnasium.error.Error, ImportError, TypeError) as error:
                raise InputError(f"environment {env!r}: {' '.join(str(error).split())}") from error
            made.callback(one.close)
            return GymWorld(one, env, embodiment, success=success, prompt=prompt)

        yield Setting(make_world, camera_pictures)
