"""Rotations as the public datasets write them: quaternions, Euler angles, axis-angle vectors.

Euler angles are roll, pitch, yaw in rad: about the fixed axes x, then y, then z (extrinsic xyz), R = Rz(yaw) Ry(pitch) Rx(roll).
Quaternions of either order are accepted; their length does not matter. Every function takes any leading shape.
"""

from typing import Literal

import numpy as np

QuaternionOrder = Literal["xyzw", "wxyz"]


def quaternion_to_euler(quaternion: np.ndarray, order: QuaternionOrder = "xyzw") -> np.ndarray:
    """float[..., 4] -> float64[..., 3]: roll and yaw in [-pi, pi], pitch in [-pi/2, pi/2].

    Looking straight up or down (pitch +-pi/2) only roll - yaw or roll + yaw is defined; then yaw is 0.
    """
    x, y, z, w = _xyzw(quaternion, order)
    sine = 2 * (w * y - z * x)  # of the pitch
    # Of the two legs, not arcsin(sine): that is inexact near +-pi/2.
    cosine = np.hypot(1 - 2 * (y * y + z * z), 2 * (x * y + w * z))
    pitch = np.arctan2(sine, cosine)
    locked = cosine < 1e-7
    roll = np.where(locked, 2 * np.arctan2(x, w), np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)))
    yaw = np.where(locked, 0.0, np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
    return np.stack([np.arctan2(np.sin(roll), np.cos(roll)), pitch, yaw], axis=-1)


def euler_to_quaternion(euler: np.ndarray, order: QuaternionOrder = "xyzw") -> np.ndarray:
    """Roll, pitch, yaw float[..., 3] -> float64[..., 4] of unit length."""
    half = np.asarray(euler, np.float64) / 2
    (cr, cp, cy), (sr, sp, sy) = np.moveaxis(np.cos(half), -1, 0), np.moveaxis(np.sin(half), -1, 0)
    x = sr * cp * cy - cr * sp * sy
    y = cr * sp * cy + sr * cp * sy
    z = cr * cp * sy - sr * sp * cy
    w = cr * cp * cy + sr * sp * sy
    return np.stack([x, y, z, w] if order == "xyzw" else [w, x, y, z], axis=-1)


def axis_angle_to_quaternion(vector: np.ndarray, order: QuaternionOrder = "xyzw") -> np.ndarray:
    """Axis times angle in rad, float[..., 3] -> float64[..., 4] of unit length."""
    vector = np.asarray(vector, np.float64)
    half = np.linalg.norm(vector, axis=-1, keepdims=True) / 2
    xyz = vector / 2 * np.sinc(half / np.pi)  # sin(half) / half, which is 1 at 0
    return np.concatenate([xyz, np.cos(half)] if order == "xyzw" else [np.cos(half), xyz], axis=-1)


def quaternion_to_axis_angle(quaternion: np.ndarray, order: QuaternionOrder = "xyzw") -> np.ndarray:
    """float[..., 4] -> axis times angle, float64[..., 3], the angle in [0, pi] rad."""
    x, y, z, w = _xyzw(quaternion, order)
    xyz = np.stack([x, y, z], axis=-1) * np.where(w < 0, -1.0, 1.0)[..., None]  # q and -q are one rotation: the shorter way
    sine = np.linalg.norm(xyz, axis=-1, keepdims=True)  # of half the angle
    half = np.arctan2(sine, np.abs(w)[..., None])
    return 2 * xyz / np.sinc(half / np.pi)


def axis_angle_to_euler(vector: np.ndarray) -> np.ndarray:
    """Axis times angle in rad, float[..., 3] -> roll, pitch, yaw, float64[..., 3]."""
    return quaternion_to_euler(axis_angle_to_quaternion(vector))


def _xyzw(quaternion: np.ndarray, order: QuaternionOrder) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The four numbers, each of the leading shape, of unit length together."""
    quaternion = np.asarray(quaternion, np.float64)
    unit = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    x, y, z, w = unit if order == "xyzw" else (*unit[1:], unit[0])
    return x, y, z, w
