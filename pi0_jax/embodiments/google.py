"""Holds the records of the robots of Google's datasets.

The number of steps executed per chunk is about 0.8 s of it, as on the paper's slower robots
(appendix D).
"""

from pi0_jax.embodiments.dims import (
    AXIS_ANGLE,
    CLOSING,
    POSE_CHANGE,
    POSITION,
    QUATERNION,
    gripper,
)
from pi0_jax.embodiments.record import Embodiment, StateDim

GOOGLE = (
    Embodiment(
        name="google_robot",
        robot="Google mobile manipulator, its base at rest",
        cameras={"base_0_rgb": "base"},  # in the robot's head
        state=(*POSITION, *QUATERNION, StateDim("gripper", "1", one_means="closed")),
        actions=(*POSE_CHANGE, CLOSING),
        control_hz=3.0,
        execute_steps=2,
    ),
    Embodiment(
        name="google_robot_bc_z",
        robot="Google mobile manipulator (BC-Z)",
        cameras={"base_0_rgb": "base"},
        state=(*POSITION, *AXIS_ANGLE, StateDim("gripper", "1", one_means="closed")),
        actions=(*POSE_CHANGE, gripper("closed")),
        control_hz=10.0,
        execute_steps=8,
    ),
    Embodiment(
        name="kuka_iiwa",
        robot="KUKA LBR iiwa above a bin",
        cameras={"base_0_rgb": "base"},  # over the shoulder
        state=(*POSITION, *QUATERNION, StateDim("gripper", "1", one_means="closed")),
        actions=(*POSE_CHANGE, CLOSING),
        control_hz=10.0,
        execute_steps=8,
    ),
    Embodiment(
        name="xarm_language_table",
        robot="xArm 6 with a cylinder that pushes blocks on a table",
        cameras={"base_0_rgb": "base"},
        state=POSITION[:2],
        actions=POSE_CHANGE[:2],
        control_hz=10.0,
        execute_steps=8,
    ),
)
