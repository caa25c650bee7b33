"""Adapts Meta-World (PyPI: metaworld 3.1.1, mujoco 3.3.0) to rollouts: two families of its tasks.

    metaworld        LeRobot's protocol: 480x480 images as shipped, an action for each tick, 500
                     ticks
    metaworld_held   ours, for CPUs: 64x64 images without shadows, multisampling and the arm's heavy
                     meshes, an action held for five ticks, 500 ticks (100 actions)

Both move the camera corner2 to (0.75, 0.075, 0.7) and turn its image by 180 degrees. An episode
succeeds when info["success"] does, at any tick, which ends it. The goal is not in the state.

What loads OpenGL is imported in functions, which run in worker processes.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from pi0_jax.embodiments.simulated import METAWORLD
from pi0_jax.sim import gl
from pi0_jax.sim.benchmark.families import Family, Usual
from pi0_jax.sim.metaworld.tasks import GROUPS, INSTRUCTIONS

CAMERA = "corner2"
_CAMERA_PLACE = (0.75, 0.075, 0.7)  # m
MOST_TICKS = 500
# Arm meshes with more vertices than this cost most of a small image's time. The hand stays.
_HEAVY_VERTICES, _ARM = 1000, ("right_l", "right_arm", "head", "pedestal", "base", "controller")
_UNSEEN = 4  # a group of geometries that MuJoCo does not draw unless it is asked to


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Says how an image is drawn and how long an action lasts.

    `side` is in pixels. A plain image has no shadows, no multisampling and no heavy arm meshes.
    """

    name: str
    ticks: int
    side: int
    plain: bool

    @property
    def most_actions(self) -> int:
        """Returns the number of actions after which an episode has failed."""
        return MOST_TICKS // self.ticks


LEROBOT = Protocol("metaworld", ticks=1, side=480, plain=False)
HELD = Protocol("metaworld_held", ticks=5, side=64, plain=True)


class Sawyer:
    """Is the simulator of one task; a families.Simulator.

    Attributes:
        seen: Meta-World's 39 numbers at the last tick, with the goal, which the experts read.
    """

    seen: np.ndarray

    def __init__(self, task: str, protocol: Protocol) -> None:
        """Opens the simulator; the environment's goal is at hand, for experts."""
        with gl.importing_mujoco():
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        self._protocol = protocol
        self._env: Any = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        self._env.seeded_rand_vec, self._env._freeze_rand_vec = True, False
        self._env._set_task_called, self._env._partially_observable = True, False
        # It was made while the goal was hidden, and would clip the goal to 0.
        vars(self._env).pop("sawyer_observation_space", None)
        self._env.model.cam(CAMERA).pos = _CAMERA_PLACE
        self._draw: Any = None

    def reset(self, number: int) -> None:
        """Begins an episode; the number decides where things are."""
        self._env.seed(number)
        self.seen, _ = self._env.reset()

    def step(self, action: np.ndarray) -> bool:
        """Holds an action for the protocol's ticks, and returns whether the task is done."""
        bounded = np.clip(action, -1.0, 1.0).astype(np.float32)
        for _ in range(self._protocol.ticks):
            self.seen, _, _, _, info = self._env.step(bounded)
            if info["success"]:
                return True
        return False

    def observe(self) -> dict[str, Any]:
        """Returns the camera's image and the state, float32[4]."""
        if self._draw is None:
            self._draw = _Drawing(self._env.model, self._protocol)
        return {
            "images": {CAMERA: self._draw(self._env.data)},
            "state": self.seen[:4].astype(np.float32),
        }

    def close(self) -> None:
        """Frees what draws."""
        self._draw = None


class _Drawing:
    """Draws one model; all drawings of a process share its OpenGL context."""

    def __init__(self, model: Any, protocol: Protocol) -> None:
        with gl.importing_mujoco():
            import mujoco
        gl.require()
        self._side, self._camera = protocol.side, mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = model.cam(CAMERA).id
        model.vis.global_.offwidth = model.vis.global_.offheight = protocol.side
        if protocol.plain:
            _hide_heavy_meshes(model)
            model.vis.quality.offsamples = 0
        _opengl(protocol.side)
        self._model, self._option = model, mujoco.MjvOption()
        self._scene = mujoco.MjvScene(model, 1000)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        if protocol.plain:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def __call__(self, data: Any) -> np.ndarray:
        """Returns uint8[side, side, 3], turned by 180 degrees as LeRobot's is."""
        import mujoco

        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )  # fmt: skip
        _opengl(self._side)
        # Another drawing may have bound its own buffer since.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        area = mujoco.MjrRect(0, 0, self._side, self._side)
        mujoco.mjr_render(area, self._scene, self._context)
        image = np.empty((self._side, self._side, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, area, self._context)
        # OpenGL's rows go upwards: the image is upside down already, and is mirrored here.
        return np.ascontiguousarray(image[:, ::-1])


@functools.cache
def _context_of(side: int) -> Any:
    import mujoco

    return mujoco.GLContext(side, side)


def _opengl(side: int) -> None:
    """Makes this process's only OpenGL context the current one."""
    _context_of(side).make_current()


def _hide_heavy_meshes(model: Any) -> None:
    mesh = 7  # mjGEOM_MESH
    for geom in range(model.ngeom):
        body = model.body(model.geom_bodyid[geom]).name
        heavy = (
            model.geom_type[geom] == mesh
            and model.mesh_vertnum[model.geom_dataid[geom]] > _HEAVY_VERTICES
        )
        if heavy and body.startswith(_ARM):
            model.geom_group[geom] = _UNSEEN


def _family(protocol: Protocol, record_number: int, episodes: int, words: str) -> Family:
    return Family(
        name=protocol.name,
        record=METAWORLD[record_number],
        tasks=INSTRUCTIONS,
        groups=GROUPS,
        open=functools.partial(Sawyer, protocol=protocol),
        most_actions=protocol.most_actions,
        protocol=words,
        image_size=(protocol.side, protocol.side),
        packages=("metaworld", "mujoco"),
        usual=Usual(episodes),
    )


FAMILIES = {
    "metaworld": _family(
        LEROBOT, 0, 10,
        "LeRobot's: corner2 at (0.75, 0.075, 0.7), 480x480 as shipped, turned by 180 degrees;"
        " the first 4 numbers as state; 500 ticks, an action each; but the instructions are"
        " pi0_jax's own sentences",
    ),
    "metaworld_held": _family(
        HELD, 1, 50,
        "pi0_jax's for CPUs, not LeRobot's: corner2 at (0.75, 0.075, 0.7), 64x64 without shadows,"
        " multisampling and heavy arm meshes, turned by 180 degrees; the first 4 numbers as state;"
        " 500 ticks, an action held for five",
    ),
}  # fmt: skip
