"""Holds dimensions that many robots share, in the order in which vectors hold them.

Actions of public single-arm datasets:  0-2 translation, 3-5 rotation, 6 gripper (absolute).
"""

from typing import Literal

from pi0_jax.embodiments.record import ActionDim, StateDim

# The position of the end effector, in the robot's base frame.
POSITION = tuple(StateDim(axis, "m") for axis in "xyz")
# Rotations about fixed axes x, then y, then z. If a gripper points down, its roll jumps from pi to
# -pi.
EULER = tuple(StateDim(angle, "rad", periodic=True) for angle in ("roll", "pitch", "yaw"))
# A unit axis times the angle about it.
AXIS_ANGLE = tuple(StateDim(f"rotation_{axis}", "rad") for axis in "xyz")
WIDTH = StateDim("gripper_width", "m", one_means="open")  # between the fingers
QUATERNION = tuple(StateDim(f"q{part}", "1") for part in "xyzw")  # unit length

POSE_CHANGE = (
    *(ActionDim(f"d{axis}", "m", "relative") for axis in "xyz"),
    *(ActionDim(f"d{angle}", "rad", "relative") for angle in ("roll", "pitch", "yaw")),
)
# The same changes as a controller is told them: in [-1, 1] of the largest change that it makes, so
# in neither metres nor radians.
COMMAND = (
    *(ActionDim(f"d{axis}", "1", "relative") for axis in "xyz"),
    *(ActionDim(f"d{angle}", "1", "relative") for angle in ("roll", "pitch", "yaw")),
)
VELOCITY = (
    *(ActionDim(f"v{axis}", "m/s", "relative") for axis in "xyz"),
    *(ActionDim(f"v{angle}", "rad/s", "relative") for angle in ("roll", "pitch", "yaw")),
)
POSE_TARGET = (
    *(ActionDim(axis, "m", "absolute") for axis in "xyz"),
    *(ActionDim(angle, "rad", "absolute", periodic=True) for angle in ("roll", "pitch", "yaw")),
)


def joints(count: int) -> tuple[StateDim, ...]:
    """Returns the positions of `count` joints, in rad."""
    return tuple(StateDim(f"joint_{i}", "rad") for i in range(count))


def gripper(one_means: Literal["open", "closed"]) -> ActionDim:
    """Returns a gripper command in [0, 1].

    Args:
        one_means: what the robot takes 1 for.
    """
    return ActionDim("gripper", "1", "absolute", low=0.0, high=1.0, one_means=one_means)


# Commands of -1 and +1. The controller decides what numbers between them mean.
CLOSING = ActionDim("gripper", "1", "absolute", open=-1.0, closed=1.0)
OPENING = ActionDim("gripper", "1", "absolute", open=1.0, closed=-1.0)
