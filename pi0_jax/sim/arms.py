"""Describes the arms of the reach world in a typed table; scene.py draws their geometry from it.

At zero every link points along x. A yaw turns about the vertical. A pitch tips the link (positive
is down). A swing turns the link sideways about its own z axis.
"""

import dataclasses
from typing import Literal

from pi0_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Joint:
    """Describes a joint and the link that it moves."""

    motion: Literal["yaw", "pitch", "swing"]
    length: float  # of the link, m
    # The angle in the home posture, rad, to which a redundant arm leans. Starts are within ± spread.
    home: float
    spread: float
    limits: tuple[float, float]  # the lowest and the highest angle, rad


@dataclasses.dataclass(frozen=True)
class Arm:
    """Describes an arm, from the base to the fingertip.

    The first pitch joint sits `base_height` m above the table. The links' radius is in m, and each
    part of a colour in [0, 1].
    """

    name: str
    base_height: float
    joints: tuple[Joint, ...]
    radius: float
    link_rgb: tuple[float, float, float]
    joint_rgb: tuple[float, float, float]


# Training uses these robots; the other one is held out.
ROBOTS = ("reach_arm3", "reach_arm4")
HELD_OUT_ROBOT = "reach_arm5"

_YAW = Joint("yaw", 0.0, 0.0, 1.0, (-1.6, 1.6))

ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            "reach_arm3",
            base_height=0.14,
            joints=(
                _YAW,
                Joint("pitch", 0.22, -0.9, 0.3, (-2.0, 0.9)),
                Joint("pitch", 0.26, 1.6, 0.3, (0.0, 2.8)),
            ),
            radius=0.016,
            link_rgb=(0.95, 0.95, 0.95),
            joint_rgb=(0.35, 0.35, 0.38),
        ),
        Arm(
            "reach_arm4",
            base_height=0.18,
            joints=(
                _YAW,
                Joint("pitch", 0.18, -0.8, 0.3, (-2.0, 1.0)),
                Joint("pitch", 0.17, 0.9, 0.3, (-0.5, 2.4)),
                Joint("pitch", 0.15, 0.9, 0.3, (-0.8, 2.4)),
            ),
            radius=0.013,
            link_rgb=(0.12, 0.12, 0.14),
            joint_rgb=(0.55, 0.55, 0.58),
        ),
        Arm(
            "reach_arm5",
            base_height=0.11,
            joints=(
                _YAW,
                Joint("pitch", 0.16, -1.2, 0.3, (-2.2, 0.6)),
                Joint("pitch", 0.15, 1.1, 0.3, (-0.5, 2.6)),
                Joint("pitch", 0.12, 0.9, 0.3, (-0.8, 2.4)),
                Joint("swing", 0.08, 0.0, 0.3, (-1.2, 1.2)),
            ),
            radius=0.019,
            link_rgb=(0.88, 0.84, 0.20),
            joint_rgb=(0.36, 0.34, 0.12),
        ),
    )
}


def find_arm(robot: str) -> Arm:
    """Returns the arm of that name; raises InputError if there is none."""
    if robot not in ARMS:
        known = ", ".join(ARMS)
        raise InputError(f"robot {robot!r} is unknown in the reach world; expected one of {known}")
    return ARMS[robot]
