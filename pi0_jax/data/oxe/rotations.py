"""Rotations as the public datasets write them, quaternions and axis-angle vectors, and as rows want them, Euler angles.

Euler angles are roll, pitch, yaw in rad: about the fixed axes x, then y, then z (extrinsic xyz), R = Rz(yaw) Ry(pitch) Rx(roll).
Every function takes any leading shape.
"""

from typing import Literal

import numpy as np

QuaternionOrder = Literal["xyzw", "wxyz"]


def quaternion_to_euler(quaternion: np.ndarray, order: QuaternionOrder = "xyzw") -> np.ndarray:
    """float[..., 4] -> float64[..., 3]: roll and yaw in [-pi, pi], pitch in [-pi/2, pi/2]. The quaternion's length does not matter.

    Looking straight up or down (pitch +-pi/2) only roll - yaw or roll + yaw is defined; then yaw is 0.
    """
    x, y, z, w = _xyzw(quaternion, order)
    sine = 2 * (w * y - z * x)  # of the pitch
    # Of the two legs, not arcsin(sine): that is inexact near +-pi/2.
    cosine = np.hypot(1 - 2 * (y * y + z * z), 2 * (x * y + w * z))
    pitch = np.arctan2(sine, cosine)
    locked = cosine < 1e-7
    roll = np.where(
        locked, 2 * np.arctan2(x, w), np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    )
    yaw = np.where(locked, 0.0, np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
    return np.stack([np.arctan2(np.sin(roll), np.cos(roll)), pitch, yaw], axis=-1)


def axis_angle_to_quaternion(vector: np.ndarray) -> np.ndarray:
    """Axis times angle in rad, float[..., 3] -> x y z w, float64[..., 4], of unit length."""
    vector = np.asarray(vector, np.float64)
    half = np.linalg.norm(vector, axis=-1, keepdims=True) / 2
    xyz = vector / 2 * np.sinc(half / np.pi)  # sin(half) / half, which is 1 at 0
    return np.concatenate([xyz, np.cos(half)], axis=-1)


def _xyzw(
    quaternion: np.ndarray, order: QuaternionOrder
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The four numbers, each of the leading shape, of unit length together."""
    quaternion = np.asarray(quaternion, np.float64)
    unit = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    x, y, z, w = unit if order == "xyzw" else (*unit[1:], unit[0])
    return x, y, z, w
