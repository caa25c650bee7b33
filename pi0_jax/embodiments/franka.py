"""Holds the records of Franka arms of the public datasets, and of LIBERO's simulated one.

Each has the state and the action space that its laboratory recorded. The number of steps executed
per chunk is about 0.8 s of it, as on the paper's slower robots (appendix D). If a gripper's width
is in metres, it is larger when the gripper is open.
"""

from pi0_jax.embodiments.client_keys import ClientKeys
from pi0_jax.embodiments.dims import (
    AXIS_ANGLE,
    CLOSING,
    COMMAND,
    EULER,
    OPENING,
    POSE_CHANGE,
    POSE_TARGET,
    POSITION,
    QUATERNION,
    WIDTH,
    gripper,
    joints,
)
from pi0_jax.embodiments.record import Embodiment, StateDim

_BASE = {"base_0_rgb": "base"}
_BASE_AND_WRIST = {"base_0_rgb": "base", "left_wrist_0_rgb": "wrist"}

FRANKA = (
    Embodiment(
        name="franka_osc",
        robot="Franka, operational-space controller commanded in [-1, 1] (University of Texas at Austin)",
        cameras=_BASE_AND_WRIST,
        state=(*joints(7), WIDTH),
        actions=(*COMMAND, CLOSING),
        control_hz=20.0,
        execute_steps=16,
    ),
    Embodiment(
        name="franka_hydra",
        robot="Franka (Stanford)",
        cameras=_BASE_AND_WRIST,
        state=(*POSITION, *EULER, WIDTH),
        actions=(*POSE_CHANGE, gripper("closed")),
        control_hz=10.0,
        execute_steps=8,
    ),
    Embodiment(
        name="franka_nyu_play",
        robot="Franka (New York University)",
        cameras=_BASE,
        state=(*POSITION, *EULER),
        actions=(*POSE_CHANGE, OPENING),
        control_hz=3.0,
        execute_steps=2,
    ),
    Embodiment(
        name="franka_furniture_bench",
        robot="Franka (KAIST)",
        cameras=_BASE_AND_WRIST,
        state=(*POSITION, *QUATERNION, WIDTH),
        actions=(*POSE_CHANGE, CLOSING),
        control_hz=10.0,
        execute_steps=8,
    ),
    Embodiment(
        name="franka_iamlab",
        robot="Franka (Carnegie Mellon University)",
        cameras=_BASE_AND_WRIST,
        state=(*joints(7), StateDim("gripper", "1", one_means="open")),
        actions=(*POSE_TARGET, gripper("open")),
        control_hz=20.0,
        execute_steps=16,
    ),
    Embodiment(
        name="franka_fmb",
        robot="Franka (University of California, Berkeley: FMB)",
        cameras=_BASE_AND_WRIST,
        state=(*POSITION, *QUATERNION, StateDim("gripper", "1")),
        actions=(*COMMAND, gripper("open")),
        control_hz=10.0,
        execute_steps=8,
    ),
    Embodiment(
        name="franka_fmb_euler",
        robot="Franka (University of California, Berkeley: FMB, pose as Euler angles)",
        cameras=_BASE_AND_WRIST,
        state=(*POSITION, *EULER, StateDim("gripper", "1")),
        actions=(*COMMAND, gripper("open")),
        control_hz=10.0,
        execute_steps=8,
    ),
)

# Commanded by operational-space control at 20 Hz.
LIBERO = (
    Embodiment(
        name="libero",
        robot="simulated Panda (LIBERO)",
        cameras={"base_0_rgb": "base", "left_wrist_0_rgb": "wrist"},
        # The places of both fingers on one axis. They part in opposite directions, so that of the
        # second one is negative.
        state=(*POSITION, *AXIS_ANGLE, StateDim("finger_0", "m"), StateDim("finger_1", "m")),
        actions=(*COMMAND, CLOSING),
        control_hz=20.0,
        execute_steps=5,
        client_keys=ClientKeys(
            cameras={"base": "observation/image", "wrist": "observation/wrist_image"},
            state=(("observation/state", 8),),
        ),
        # The simulator's images are upside down. Those of the datasets and of released checkpoints
        # were turned.
        image_rotation=180,
    ),
)
