"""Rules that several public datasets share, and how their grippers were recorded. T steps; an episode may have only one."""

import zlib
from typing import Any

import numpy as np

from pi0_jax.data.grippers import RecordedGripper
from pi0_jax.data.oxe.rotations import axis_angle_to_quaternion, quaternion_to_euler
from pi0_jax.data.rows import Standardised

# public pipelines cut what lies beyond the ends, so something may
CLOSING_COMMANDS = RecordedGripper(open=-1.0, closed=1.0, overshoot=0.25)
OPENING_COMMANDS = RecordedGripper(open=1.0, closed=-1.0, overshoot=0.25)

GRIPPER_OPEN = 0.95
GRIPPER_CLOSED = 0.05
GRIPPER_COMMAND = 0.1  # what is nearer to 0 is no command


def all_steps(state: np.ndarray, action: np.ndarray, success: bool | None = None) -> Standardised:
    """Every step has an action and may be drawn: float[T, S] states and float[T, A] actions."""
    return Standardised(state, action, np.ones(len(state), bool), stop=len(state), success=success)


def wrap_angle(angle: np.ndarray) -> np.ndarray:
    """The same angles in (-pi, pi], rad: the short way round, so that a step from 179° to -179° is 2° and not -358°."""
    return angle - 2 * np.pi * np.ceil((angle - np.pi) / (2 * np.pi))


def pose_changes(pose: np.ndarray) -> np.ndarray:
    """Poses (x y z m, roll pitch yaw rad), float[T, 6] -> float64[T - 1, 6]: from each to the next, angles wrapped.

    yaw      3.0   3.1  -3.1  -3.0
    change      0.1   0.08   0.1        -3.1 is 3.18 once round
    """
    change = np.diff(pose.astype(np.float64), axis=0)
    return np.concatenate([change[:, 0:3], wrap_angle(change[:, 3:6])], axis=1)


def axis_angle_change(start: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw, float64[T, 3], of the rotation that leads from axis-angle `start` to `start + added`, float[T, 3].

    Axis-angle vectors do not add as rotations do: the change is R(start + added) R(start)^-1, about the base frame's axes.
    It is `added` itself only where the two have one axis.

    start   half a turn about x, (pi, 0, 0)
    end     half a turn about an axis 0.1 rad from x towards y
    change  0.2 rad about z, yaw, though `added` has no z at all
    """
    x, y, z, w = np.moveaxis(axis_angle_to_quaternion(start + added), -1, 0)
    # the inverse
    a, b, c, d = np.moveaxis(axis_angle_to_quaternion(start) * [-1, -1, -1, 1], -1, 0)
    product = (
        w * a + x * d + y * c - z * b,
        w * b - x * c + y * d + z * a,
        w * c + x * b - y * a + z * d,
        w * d - x * a - y * b - z * c,
    )
    return quaternion_to_euler(np.stack(product, axis=-1))


def binarize_gripper(opening: np.ndarray) -> np.ndarray:
    """float[T] openings as commands: above 0.95 open (1), below 0.05 closed (0), between the two what is reached next.

    opening   1.0  0.7  0.3  0.0  0.4  0.6
    command    1    0    0    0   0.6  0.6      an unfinished movement at the end keeps the last value
    """
    steps = np.arange(len(opening))
    settled = (opening > GRIPPER_OPEN) | (opening < GRIPPER_CLOSED)
    settled[-1:] = True
    # the next settled step
    reached = np.minimum.accumulate(np.where(settled, steps, len(steps))[::-1])[::-1]
    value = np.where(opening > GRIPPER_OPEN, 1.0, np.where(opening < GRIPPER_CLOSED, 0.0, opening))
    return value[reached].astype(opening.dtype)


def opening_after_commands(closing: np.ndarray) -> np.ndarray:
    """float[T] commands (above 0.1 close, below -0.1 open, else hold) -> float32[T]: what the gripper was last told, 1 = open.

    command    0   0   1   0   0  -1   0
    opening    1   1   0   0   0   1   1      before the first command: its opposite; without any: open
    """
    # 1 open, -1 close, 0 hold
    told = np.where(closing > GRIPPER_COMMAND, -1, np.where(closing < -GRIPPER_COMMAND, 1, 0))
    commands = np.flatnonzero(told)
    if not len(commands):
        return np.ones(len(closing), np.float32)
    # the latest command's number, -1 before the first
    last = np.searchsorted(commands, np.arange(len(closing)), side="right") - 1
    opening = np.where(last < 0, -told[commands[0]], told[commands[np.maximum(last, 0)]])
    return (opening > 0).astype(np.float32)


def decode_zlib(encoded: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """bytes[T], each a compressed float32[*shape], little-endian -> float32[T, *shape]."""
    values: list[Any] = [
        np.frombuffer(zlib.decompress(data), "<f4").reshape(shape) for data in encoded
    ]
    return np.stack(values)
