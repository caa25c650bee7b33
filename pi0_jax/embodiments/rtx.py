"""Holds the records of other laboratories' robots in the RT-X collection.

The number of steps executed per chunk is about 0.8 s of it (appendix D).
"""

from pi0_jax.embodiments.dims import (
    CLOSING,
    COMMAND,
    EULER,
    OPENING,
    POSE_CHANGE,
    POSE_TARGET,
    POSITION,
    QUATERNION,
    VELOCITY,
    WIDTH,
    gripper,
    joints,
)
from pi0_jax.embodiments.record import Embodiment, StateDim

_BASE = {"base_0_rgb": "base"}
_WRIST = {"left_wrist_0_rgb": "wrist"}

RTX = (
    Embodiment(
        name="franka_taco",
        robot="Franka in a toy kitchen (University of Freiburg)",
        cameras=_BASE | _WRIST,
        state=(*POSITION, *EULER, WIDTH),
        actions=(*COMMAND, OPENING),
        control_hz=15.0,
        execute_steps=12,
    ),
    Embodiment(
        name="franka_cable_routing",
        robot="Franka that holds a cable (University of California, Berkeley)",
        cameras=_BASE | _WRIST | {"right_wrist_0_rgb": "wrist_2"},
        state=joints(7),
        actions=COMMAND,  # velocities; the gripper stays closed
        control_hz=10.0,
        execute_steps=8,
    ),
    Embodiment(
        name="franka_toto",
        robot="Franka that scoops and pours (TOTO)",
        cameras=_BASE,
        state=joints(7),
        actions=(*POSE_TARGET, gripper("open")),
        control_hz=30.0,
        execute_steps=24,
    ),
    Embodiment(
        name="jaco_2",
        robot="Kinova Jaco 2 (University of Southern California)",
        cameras=_BASE | _WRIST,
        # Three or four numbers are the orientation, and one is perhaps a gripper's: see the notes
        # of the dataset's row.
        state=(*POSITION, *(StateDim(f"pose_{i}", "1") for i in range(3, 7))),
        actions=(*VELOCITY, CLOSING),
        control_hz=10.0,
        execute_steps=8,
    ),
    Embodiment(
        name="sawyer_roboturk",
        robot="Sawyer (RoboTurk)",
        cameras=_BASE,
        state=(),
        actions=(*POSE_CHANGE, CLOSING),
        control_hz=10.0,
        execute_steps=8,
    ),
    Embodiment(
        name="stretch_nyu_door",
        robot="Hello Stretch that opens doors (New York University)",
        cameras=_WRIST,
        state=(),
        actions=(*VELOCITY, CLOSING),
        control_hz=3.0,
        execute_steps=2,
    ),
    Embodiment(
        name="ur5_autolab",
        robot="UR5 (University of California, Berkeley)",
        cameras=_BASE | _WRIST,
        state=(*POSITION, *QUATERNION, StateDim("gripper", "1", one_means="closed")),
        actions=(*POSE_CHANGE, CLOSING),
        control_hz=5.0,
        execute_steps=4,
    ),
)
