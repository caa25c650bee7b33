"""Rotations against hand-written values and against SciPy."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pi0_jax.data.oxe.rotations import axis_angle_to_quaternion, quaternion_to_euler

HALF = 0.5**0.5
RANDOM = Rotation.random(500, rng=0)


@pytest.mark.parametrize(
    ("quaternion", "euler"),
    [
        ([0, 0, 0, 1], [0, 0, 0]),
        ([HALF, 0, 0, HALF], [np.pi / 2, 0, 0]),
        ([0, HALF, 0, HALF], [0, np.pi / 2, 0]),
        ([0, 0, HALF, HALF], [0, 0, np.pi / 2]),
        # its negative and its length do not matter
        (
            [0, 0, -3 * HALF, -3 * HALF],
            [0, 0, np.pi / 2],
        ),
        # first about x, then about z: x goes to y, y to z, z to x
        (
            [0.5, 0.5, 0.5, 0.5],
            [np.pi / 2, 0, np.pi / 2],
        ),
    ],
)
def test_euler_angles_are_about_fixed_x_then_y_then_z(quaternion, euler):
    np.testing.assert_allclose(quaternion_to_euler(np.array(quaternion)), euler, atol=1e-9)
    w_first = np.roll(quaternion, 1)
    np.testing.assert_allclose(quaternion_to_euler(w_first, "wxyz"), euler, atol=1e-9)


def test_both_functions_agree_with_scipy():
    quaternions, euler, vectors = RANDOM.as_quat(), RANDOM.as_euler("xyz"), RANDOM.as_rotvec()
    np.testing.assert_allclose(quaternion_to_euler(quaternions), euler, atol=1e-12)
    # but for the sign
    same = np.abs(np.sum(axis_angle_to_quaternion(vectors) * quaternions, axis=-1))
    np.testing.assert_allclose(same, 1, atol=1e-12)


@pytest.mark.parametrize("below_vertical", [0, 1e-9, 1e-5])
@pytest.mark.parametrize("sign", [1, -1])
def test_looking_straight_up_or_down_is_the_same_rotation(sign, below_vertical):
    """Near a pitch of 90 degrees, roll and yaw of a float32 quaternion alone say little."""
    there = Rotation.from_euler("xyz", [0.3, sign * (np.pi / 2 - below_vertical), 0.5])
    back = Rotation.from_euler("xyz", quaternion_to_euler(there.as_quat().astype(np.float32)))
    assert (there * back.inv()).magnitude() < 1e-3


def test_any_leading_shape():
    quaternions, vectors = (
        RANDOM.as_quat().reshape(5, 4, 25, 4),
        RANDOM.as_rotvec().reshape(5, 4, 25, 3),
    )
    np.testing.assert_array_equal(
        quaternion_to_euler(quaternions)[2, 3, 7], quaternion_to_euler(quaternions[2, 3, 7])
    )
    np.testing.assert_array_equal(
        axis_angle_to_quaternion(vectors)[2, 3, 7], axis_angle_to_quaternion(vectors[2, 3, 7])
    )
    # no turn has no axis
    np.testing.assert_array_equal(axis_angle_to_quaternion(np.zeros(3)), [0, 0, 0, 1])
