"""The arms of the reach world: a typed table. Geometry is drawn from it in scene.py.

At zero every link points along x. A yaw turns about the vertical, a pitch tips the link (positive: down), a swing turns
the link sideways about its own z axis.
"""

import dataclasses
from typing import Literal

from pi0_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Joint:
    motion: Literal["yaw", "pitch", "swing"]
    length: float  # m, of the link that this joint moves
    home: float  # rad: the posture from which starts are drawn and to which a redundant arm leans
    spread: float  # rad: starts lie within home ± spread
    limits: tuple[float, float]  # rad


@dataclasses.dataclass(frozen=True)
class Arm:
    name: str
    base_height: float  # m above the table: where the first pitch joint sits
    joints: tuple[Joint, ...]
    radius: float  # m, of the links
    link_rgb: tuple[float, float, float]
    joint_rgb: tuple[float, float, float]


ROBOTS = ("reach_arm3", "reach_arm4")  # to train on
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
    """The arm of that name; InputError where there is none."""
    if robot not in ARMS:
        raise InputError(
            f"robot {robot!r} is unknown in the reach world; expected one of {', '.join(ARMS)}"
        )
    return ARMS[robot]
