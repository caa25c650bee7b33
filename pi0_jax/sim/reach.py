"""Defines the reach world's task and its episodes.

The task: bring the fingertip over the block that the prompt names, and stay there for half a
second.

    reset  = begin   + observe          begin and advance: physics alone, well under 1 ms
    step   = advance + observe          observe: renders both cameras, about 1 ms

`reset` and `step` are the Gymnasium API. A rollout asks its policy for a chunk only now and then.
So it calls the halves, and renders only when a policy is going to look.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from pi0_jax.errors import InputError
from pi0_jax.observation import RawObservation
from pi0_jax.sim.scene import BLOCK_SIDE, CAMERAS, COLORS, ReachScene

PHRASINGS = (
    "reach the {color} block",
    "go to the {color} block",
    "move to the {color} cube",
    "touch the {color} cube",
    "point at the {color} block",
    "point to the {color} cube",
)

# One tick.
CONTROL_SECONDS = 0.1
EPISODE_TICKS = 60
# Success is half a second without a break within SUCCESS_RADIUS of the goal.
HOLD_TICKS = 5
SUCCESS_RADIUS = 0.03  # m
GOAL_HEIGHT = 0.03  # m, above the block's centre

_BLOCK_DISTANCE = (0.20, 0.40)  # m from the arm's base
_BLOCK_BEARING = 1.0  # rad to either side
_BLOCK_GAP = 0.10  # m, the least distance between the centres of two blocks
_START_HEIGHT = 0.08  # m, the least height of the fingertip above the table
_OPTIONS = ("prompt_color", "prompt")
_METADATA: dict[str, Any] = {
    "render_modes": ["rgb_array"],
    "render_fps": round(1 / CONTROL_SECONDS),
}


class ReachEnv(gymnasium.Env[Any, np.ndarray]):
    """Is one arm with three blocks and one prompt, as a Gymnasium environment.

    Observation (RawObservation): images "base" and "wrist", uint8[side, side, 3]; state,
    float32[n], joint angles in rad; prompt.
    Action: float32[n], absolute joint targets in rad for the next 0.1 s. They are clipped to the
    joints' limits.
    Reward: 1 on every tick that ends in success, else 0. An episode terminates with success and is
    truncated after 6 s; the physics can go on after either.
    Info: "success" (bool), "prompt_color" (the block that counts), "distance" (m, from fingertip to
    goal).

    Args:
        robot: "reach_arm3", "reach_arm4" or "reach_arm5".
        side: image height and width in pixels.
        scene: a scene whose model and renderer several environments share. Its owner closes it. It
            must be of this robot and side.
    """

    metadata = _METADATA

    def __init__(self, robot: str, *, side: int = 64, scene: ReachScene | None = None) -> None:
        self.scene = ReachScene(robot, side=side) if scene is None else scene
        if (self.scene.arm.name, self.scene.side) != (robot, side):
            found = f"{self.scene.arm.name}, side {self.scene.side}"
            raise ValueError(f"scene is of {found}; expected {robot}, side {side}")
        self._owns_scene = scene is None
        self._data = self.scene.new_data()
        self.robot = robot
        self.render_mode = "rgb_array"
        self.prompt = self.prompt_color = ""
        self._ticks = self._ticks_at_goal = 0

        low, high = self.scene.joint_limits.astype(np.float32).T
        image = gymnasium.spaces.Box(0, 255, (side, side, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        characters = "".join(map(chr, range(32, 127)))
        self.observation_space = gymnasium.spaces.Dict(
            {
                "images": gymnasium.spaces.Dict({camera: image for camera in CAMERAS}),
                # A joint's limit is held by a soft constraint, so an angle can pass it a little.
                "state": gymnasium.spaces.Box(low - 0.1, high + 0.1, dtype=np.float32),
                "prompt": gymnasium.spaces.Text(max_length=256, charset=characters),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[RawObservation, dict[str, Any]]:
        """Begins a new episode and observes it; see `begin`."""
        info = self.begin(seed=seed, options=options)
        return self.observe(), info

    def step(self, action: np.ndarray) -> tuple[RawObservation, float, bool, bool, dict[str, Any]]:
        """Runs one tick and observes it; see `advance`."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def begin(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Begins a new episode without rendering it.

        The seed decides the blocks' positions, the start posture and the prompt. The options change
        the instruction and nothing else.

            given options   the block that counts       the prompt
            none            is drawn                    names it, in words that are drawn
            prompt_color    has this colour             names it, in words that are drawn
            prompt          is the one that it names    is the given one
            both            has this colour             is the given one; may name another block

        Args:
            seed: seeds the random numbers. None goes on with those of the episode before, or in the
                first episode takes a seed from the system.
            options: any of "prompt_color", which is "red", "green" or "blue", and "prompt", the
                text that observations carry.

        Returns:
            Info, as in the class.

        Raises:
            InputError: an option has another name; "prompt_color" is none of the three; "prompt" is
                not a str, or without "prompt_color" does not name exactly one of the three.
        """
        super().reset(seed=seed)
        blocks = _draw_blocks(self.np_random)
        joints = self._draw_start()
        color = COLORS[self.np_random.integers(len(COLORS))]
        phrasing = PHRASINGS[self.np_random.integers(len(PHRASINGS))]
        self.prompt_color, self.prompt = _instruction(color, phrasing, options or {})
        self.scene.place(self._data, joints, blocks)
        self._ticks = self._ticks_at_goal = 0
        return self._info()

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Runs one tick (0.1 s) without rendering it.

        Returns:
            Reward, terminated, truncated and info, as in the class.

        Raises:
            InputError: the action has another shape, or is not finite.
        """
        self.scene.advance(self._data, self._checked(action), CONTROL_SECONDS)
        self._ticks += 1
        self._ticks_at_goal = self._ticks_at_goal + 1 if self._distance() <= SUCCESS_RADIUS else 0
        info = self._info()
        return float(info["success"]), info["success"], self._ticks >= EPISODE_TICKS, info

    def observe(self) -> RawObservation:
        """Renders both cameras and returns the observation."""
        images = {camera: self.scene.render(self._data, camera) for camera in CAMERAS}
        return {"images": images, "state": self.joints.astype(np.float32), "prompt": self.prompt}

    def render(self) -> np.ndarray:
        """Returns the base camera's view, uint8[side, side, 3]."""
        return self.scene.render(self._data, "base")

    def close(self) -> None:
        """Frees the renderer, unless the scene is shared."""
        if self._owns_scene:
            self.scene.close()

    @property
    def joints(self) -> np.ndarray:
        """Returns the joint angles, float64[n], rad."""
        return self._data.qpos.copy()

    @property
    def fingertip(self) -> np.ndarray:
        """Returns where the fingertip is, float64[3], m."""
        return self.scene.fingertip(self._data)

    @property
    def blocks(self) -> np.ndarray:
        """Returns the blocks' centres, float64[3, 3], m, in the order of COLORS."""
        return self._data.mocap_pos.copy()

    def goal(self, color: str) -> np.ndarray:
        """Returns where the fingertip should be for the block of a colour, float64[3], m."""
        return self.blocks[COLORS.index(color)] + (0.0, 0.0, GOAL_HEIGHT)

    def _distance(self) -> float:
        return float(np.linalg.norm(self.fingertip - self.goal(self.prompt_color)))

    def _info(self) -> dict[str, Any]:
        return {
            "success": self._ticks_at_goal >= HOLD_TICKS,
            "prompt_color": self.prompt_color,
            "distance": self._distance(),
        }

    def _draw_start(self) -> np.ndarray:
        """Draws joint angles about the home posture, float64[n], rad.

        The fingertip is well above the table: other draws are rejected.
        """
        spread = np.array([joint.spread for joint in self.scene.arm.joints])
        while True:
            joints = self.scene.home + spread * self.np_random.uniform(-1, 1, len(spread))
            if self.scene.fingertip_at(joints)[0][2] >= _START_HEIGHT:
                return joints

    def _checked(self, action: np.ndarray) -> np.ndarray:
        """Returns the action as float64[n], rad, after a check of its shape and its numbers."""
        action, joints = np.asarray(action), len(self.scene.arm.joints)
        if action.shape != (joints,) or not np.issubdtype(action.dtype, np.number):
            found = f"{action.dtype}{list(action.shape)}"
            raise InputError(f"{self.robot}: action: expected float[{joints}], found {found}")
        bad = np.flatnonzero(~np.isfinite(action))
        if bad.size:
            fault = f"joint_{bad[0]}: expected a finite target in rad, found {action[bad[0]]}"
            raise InputError(f"{self.robot}: action: {fault}")
        return action.astype(np.float64)


# The environment is made with gymnasium.make("pi0_jax.sim.reach:pi0_jax/Reach-v0",
# robot="reach_arm3").
gymnasium.register("pi0_jax/Reach-v0", "pi0_jax.sim.reach:ReachEnv")


def _draw_blocks(rng: np.random.Generator) -> np.ndarray:
    """Draws the centres of three blocks that keep their distance, float64[3, 3], m."""
    while True:
        distance = rng.uniform(*_BLOCK_DISTANCE, len(COLORS))
        bearing = rng.uniform(-_BLOCK_BEARING, _BLOCK_BEARING, len(COLORS))
        x, y = distance * np.cos(bearing), distance * np.sin(bearing)
        centres = np.stack([x, y, np.full(len(COLORS), BLOCK_SIDE / 2)], axis=1)
        if all(math.dist(*pair) >= _BLOCK_GAP for pair in itertools.combinations(centres, 2)):
            return centres


def _instruction(color: str, phrasing: str, options: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the colour that counts and the prompt: as drawn, unless the options say otherwise."""
    for name in options:
        if name not in _OPTIONS:
            raise InputError(f"reset option {name!r} is unknown; expected {' or '.join(_OPTIONS)}")
    if "prompt" in options and not isinstance(options["prompt"], str):
        raise InputError(f"reset option prompt: expected text, found {options['prompt']!r}")
    known = ", ".join(COLORS)
    if "prompt_color" in options:
        color = options["prompt_color"]
    elif "prompt" in options:
        named = [name for name in COLORS if name in options["prompt"].lower().split()]
        if len(named) != 1:
            expected = f"expected text that names one of {known}, found {options['prompt']!r}"
            raise InputError(f"reset option prompt: {expected}")
        color = named[0]
    if color not in COLORS:
        raise InputError(f"reset option prompt_color: expected one of {known}, found {color!r}")
    return color, options["prompt"] if "prompt" in options else phrasing.format(color=color)
