"""The rules that datasets share give the numbers that were written by hand."""

import zlib

import numpy as np
import pytest

from pi0_jax.data.oxe.primitives import (
    all_steps,
    axis_angle_change,
    binarize_gripper,
    decode_zlib,
    opening_after_commands,
    pose_changes,
    wrap_angle,
)


@pytest.mark.parametrize(
    ("opening", "command"),
    [
        ([1.0, 0.7, 0.3, 0.0, 0.4, 1.0], [1, 0, 0, 0, 1, 1]),  # in between: what is reached next
        # never reached: the last value
        (
            [1.0, 0.0, 0.4, 0.6],
            [1, 0, np.float32(0.6), np.float32(0.6)],
        ),
        # the thresholds themselves are in between
        (
            [0.95, 0.05],
            [np.float32(0.05), np.float32(0.05)],
        ),
        ([0.2], [np.float32(0.2)]),
    ],
)
def test_openings_become_commands(opening, command):
    np.testing.assert_array_equal(
        binarize_gripper(np.array(opening, np.float32)), np.array(command, np.float32)
    )


@pytest.mark.parametrize(
    ("commands", "opening"),
    [
        ([0, 0, 1, 0, 0, 0, -1, 0], [1, 1, 0, 0, 0, 0, 1, 1]),  # closes at step 2, opens at step 6
        ([0, -0.5, 0], [0, 1, 1]),  # what is told to open was closed
        ([0.1, -0.1, 0.11], [1, 1, 0]),  # a tenth is no command yet
        ([0, 0], [1, 1]),  # never told anything
        ([1], [0]),
    ],
)
def test_commands_last_until_the_next(commands, opening):
    np.testing.assert_array_equal(opening_after_commands(np.array(commands, np.float32)), opening)


def test_angles_take_the_short_way_round():
    angles = np.array([0, 3, 3.5, -3.5, np.pi, -np.pi, 2 * np.pi - 0.1])
    np.testing.assert_allclose(
        wrap_angle(angles), [0, 3, 3.5 - 2 * np.pi, 2 * np.pi - 3.5, np.pi, np.pi, -0.1], atol=1e-12
    )


def test_changes_of_pose_lead_from_each_step_to_the_next():
    poses = np.array(
        [[0, 0, 0, 0, 0, 3.1], [0.1, -0.2, 0, 0.5, 0, -3.1], [0.1, -0.2, 4.0, 0.5, 0, -3.0]]
    )
    # metres are not wrapped
    expected = [
        [0.1, -0.2, 0, 0.5, 0, 2 * np.pi - 6.2],
        [0, 0, 4.0, 0, 0, 0.1],
    ]
    np.testing.assert_allclose(pose_changes(poses), expected, atol=1e-12)
    assert pose_changes(poses[:1]).shape == (0, 6)


def test_axis_angle_vectors_that_are_added_are_no_rotations_that_follow_each_other():
    half_turn, tilted = np.array([np.pi, 0, 0]), np.pi * np.array([np.cos(0.1), np.sin(0.1), 0])
    starts = np.array([[0, 0, 0], [0, 0, 0.5], half_turn, half_turn])
    ends = np.array([[0, 0.2, 0], [0, 0, 0.7], tilted, -half_turn])
    expected = [
        [0, 0.2, 0],  # from rest: the vector itself
        [0, 0, 0.2],  # about one axis: the difference
        [0, 0, 0.2],  # two half turns, of axes 0.1 rad apart
        [0, 0, 0],  # the same half turn from the other side: no jump of a full turn
    ]
    np.testing.assert_allclose(axis_angle_change(starts, ends - starts), expected, atol=1e-12)


def test_axis_angle_changes_agree_with_scipy():
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    start, added = np.random.default_rng(0).normal(size=(2, 100, 3))
    change = rotation.from_rotvec(start + added) * rotation.from_rotvec(start).inv()
    np.testing.assert_allclose(axis_angle_change(start, added), change.as_euler("xyz"), atol=1e-9)


def test_compressed_numbers_are_read():
    steps = np.array([[1.5, -2.0], [0.0, 3.25]], "<f4")
    encoded = np.array([zlib.compress(step.tobytes()) for step in steps], object)
    np.testing.assert_array_equal(decode_zlib(encoded, (2,)), steps)


def test_all_steps_are_drawn_and_have_an_action():
    result = all_steps(np.zeros((3, 2)), np.zeros((3, 1)), success=False)
    assert result.keep.tolist() == [True] * 3 and result.stop == 3 and result.success is False
