"""Holds the reach world's MuJoCo model, its two cameras and its geometry; no task, no episode.

Axes in metres: x forward from the arm's base, y to its left, z up from the table.

             y
             |      blocks lie here,           base camera: fixed, high in front, looks back at the
        [arm]+--x   0.2 m to 0.4 m away,                    arm
             |      within ±1 rad of x         wrist camera: on the last link, looks along it past
                                                            the fingertip

One scene per robot and image size serves any number of environments. The positions are in each
environment's MjData; the model and the renderer are shared. Only the thread that renders first may
render.

Importing this module loads an OpenGL library, so only processes without TensorFlow import it
(gl.py). Elsewhere in the package it is imported only inside functions that run in worker processes.
"""

import weakref
from typing import Self

import numpy as np

from pi0_jax.sim import gl
from pi0_jax.sim.arms import Arm, find_arm

with gl.importing_mujoco():
    import mujoco

COLORS = ("red", "green", "blue")
CAMERAS = ("base", "wrist")
BLOCK_SIDE = 0.05  # m
PHYSICS_SECONDS = 0.005  # one step of the integrator

_RGB = {"red": (0.9, 0.05, 0.05), "green": (0.05, 0.8, 0.1), "blue": (0.05, 0.15, 0.95)}
_AXES = {"yaw": "0 0 1", "pitch": "0 1 0", "swing": "0 0 1"}
# These effects are costly and no help to a policy.
_RENDERING_OFF = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_SKYBOX,
    mujoco.mjtRndFlag.mjRND_HAZE,
)


def mjcf(arm: Arm, side: int) -> str:
    """Returns the MJCF model of one arm, three blocks and two cameras.

    Args:
        arm: the arm.
        side: height and width in pixels of the rendered images.
    """
    blocks = "".join(
        f"""
    <body name="{color}" mocap="true" pos="0.3 0 {BLOCK_SIDE / 2}">
      <geom type="box" size="{BLOCK_SIDE / 2} {BLOCK_SIDE / 2} {BLOCK_SIDE / 2}" rgba="{_numbers(_RGB[color])} 1"/>
    </body>"""
        for color in COLORS
    )
    motors = "".join(
        f"""
    <position name="joint_{i}" joint="joint_{i}" kp="60" dampratio="1" ctrlrange="{_numbers(joint.limits)}"/>"""
        for i, joint in enumerate(arm.joints)
    )
    return f"""
<mujoco model="{arm.name}">
  <compiler angle="radian"/>
  <option timestep="{PHYSICS_SECONDS}" integrator="implicitfast">
    <flag contact="disable"/>
  </option>
  <visual>
    <global offwidth="{side}" offheight="{side}"/>
    <quality offsamples="4" numslices="16" numstacks="8"/>
    <headlight ambient="0.55 0.55 0.55" diffuse="0.5 0.5 0.5" specular="0 0 0"/>
    <map znear="0.01"/>
  </visual>
  <worldbody>
    <geom name="table" type="plane" size="10 10 0.1" rgba="0.50 0.50 0.48 1"/>
    <camera name="base" pos="0.538 0 1.141" xyaxes="0 1 0 -0.966 0 0.259" fovy="36.5"/>
    <geom type="cylinder" fromto="0 0 0 0 0 {arm.base_height}" size="0.035" rgba="{_numbers(arm.joint_rgb)} 1"/>
{_links(arm)}{blocks}
  </worldbody>
  <actuator>{motors}
  </actuator>
</mujoco>
"""


def _links(arm: Arm) -> str:
    """Returns the chain of bodies, one per joint, each inside the one before.

    Gravity is compensated in all of them.
    """
    text, position = "", f"0 0 {arm.base_height}"
    for i, joint in enumerate(arm.joints):
        text += f"""
    <body name="link_{i}" pos="{position}" gravcomp="1">
      <joint name="joint_{i}" axis="{_AXES[joint.motion]}" range="{_numbers(joint.limits)}" armature="0.02"/>
      <geom type="sphere" size="{arm.radius * 1.35}" rgba="{_numbers(arm.joint_rgb)} 1" mass="0.05"/>"""
        if joint.length:
            text += f"""
      <geom type="capsule" fromto="0 0 0 {joint.length} 0 0" size="{arm.radius}" mass="0.15"
            rgba="{_numbers(arm.link_rgb)} 1"/>"""
        position = f"{joint.length} 0 0"
    return (
        text
        + f"""
      <camera name="wrist" pos="{arm.joints[-1].length - 0.12} 0 0.09" xyaxes="0 -1 0 0.5 0 0.866" fovy="75"/>
      <site name="fingertip" pos="{arm.joints[-1].length} 0 0" size="{arm.radius * 1.05}" rgba="1 0.85 0.1 1"/>
"""
        + "    </body>" * len(arm.joints)
    )


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(str(value) for value in values)


class ReachScene:
    """Holds one arm's model, its renderer and its kinematics; the first image makes the renderer.

    Args:
        robot: a name of the table in arms.py.
        side: image height and width in pixels.
    """

    def __init__(self, robot: str, *, side: int = 64) -> None:
        self.arm = find_arm(robot)
        self.side = side
        self.model = mujoco.MjModel.from_xml_string(mjcf(self.arm, side))
        self._fingertip = self.model.site("fingertip").id
        self._renderer: mujoco.Renderer | None = None
        self._scratch = mujoco.MjData(self.model)

    @property
    def joint_limits(self) -> np.ndarray:
        """Returns each joint's lowest and highest angle, float64[n, 2], rad."""
        return self.model.jnt_range.copy()

    @property
    def home(self) -> np.ndarray:
        """Returns the joint angles of the home posture, float64[n], rad."""
        return np.array([joint.home for joint in self.arm.joints])

    def new_data(self) -> mujoco.MjData:
        """Returns the state of a new world, whose arm and blocks `place` must place before use."""
        return mujoco.MjData(self.model)

    def place(self, data: mujoco.MjData, joints: np.ndarray, blocks: np.ndarray) -> None:
        """Puts the arm at rest and the blocks on the table.

        Args:
            data: the world's state, which changes.
            joints: the joint angles, float[n], rad.
            blocks: the blocks' centres, float[3, 3], m, in the order of COLORS.
        """
        mujoco.mj_resetData(self.model, data)
        data.qpos[:] = data.ctrl[:] = joints
        data.mocap_pos[:] = blocks
        mujoco.mj_forward(self.model, data)

    def advance(self, data: mujoco.MjData, targets: np.ndarray, seconds: float) -> None:
        """Runs the physics with the position actuators at their targets.

        Args:
            data: the world's state, which changes.
            targets: float[n], rad; they are clipped to the joints' limits.
            seconds: how long, rounded to whole steps of the integrator.
        """
        data.ctrl[:] = targets
        mujoco.mj_step(self.model, data, nstep=round(seconds / PHYSICS_SECONDS))
        # The step leaves positions in space one integrator step behind the joints. These two calls
        # compute the positions of bodies and cameras for the joints of now.
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_camlight(self.model, data)

    def fingertip(self, data: mujoco.MjData) -> np.ndarray:
        """Returns where the fingertip is, float64[3], m."""
        return data.site_xpos[self._fingertip].copy()

    def fingertip_at(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Computes the forward kinematics of joint angles (float[n], rad).

        Returns:
            The fingertip, float64[3], m, and its Jacobian, float64[3, n], m/rad.
        """
        jacobian = np.zeros((3, self.model.nv))
        self._scratch.qpos[:] = joints
        mujoco.mj_kinematics(self.model, self._scratch)
        mujoco.mj_comPos(self.model, self._scratch)
        mujoco.mj_jacSite(self.model, self._scratch, jacobian, None, self._fingertip)
        return self._scratch.site_xpos[self._fingertip].copy(), jacobian

    def project(self, points: np.ndarray) -> np.ndarray:
        """Returns where points appear in the base camera (a pinhole camera).

        Args:
            points: float[..., 3], m.

        Returns:
            float64[..., 2], pixels: column, row.
        """
        camera = self.model.camera("base")
        mujoco.mj_kinematics(self.model, self._scratch)
        mujoco.mj_camlight(self.model, self._scratch)
        rotation = self._scratch.cam_xmat[camera.id].reshape(3, 3)
        x, y, z = np.moveaxis((points - self._scratch.cam_xpos[camera.id]) @ rotation, -1, 0)
        focal = self.side / 2 / np.tan(np.deg2rad(self.model.cam_fovy[camera.id]) / 2)  # pixels
        # MuJoCo's camera looks along its -z, with y up, so z is negative for what it sees.
        return np.stack([self.side / 2 - focal * x / z, self.side / 2 + focal * y / z], -1)

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """Returns what the camera "base" or "wrist" sees, uint8[side, side, 3], RGB.

        Raises:
            InputError: OpenGL does not open.
        """
        if self._renderer is None:
            self._renderer = self._open_renderer()
            # A scene that nobody closed is closed at exit, while OpenGL's modules are still there.
            weakref.finalize(self, self._renderer.close)
        self._renderer.update_scene(data, camera)
        for flag in _RENDERING_OFF:
            self._renderer.scene.flags[flag] = False
        return self._renderer.render()

    def _open_renderer(self) -> mujoco.Renderer:
        gl.require()
        try:
            return mujoco.Renderer(self.model, self.side, self.side)
        except (ImportError, RuntimeError, mujoco.FatalError) as error:
            raise gl.not_opened(error) from error

    def close(self) -> None:
        """Frees the renderer now.

        A renderer that is collected late can spoil another, whose OpenGL context is then current.
        """
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
