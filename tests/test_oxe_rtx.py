"""The rows of eight arms of the RT-X collection give columns that were written by hand.

The datasets are tiny and have their own feature structure.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from tests.spec_data import index_from_spec

MOVE = "steps/action/world_vector"
TURN = "steps/action/rotation_delta"
CLOSE = "steps/action/gripper_closedness_action"
OPEN = "steps/action/open_gripper"
OBSERVATION = "steps/observation/"
MOTION = {MOVE: [[0.1, 0.2, 0.3]] * 4, TURN: [[0.4, 0.5, 0.6]] * 4}
MOVED = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]] * 4)
HOLD_CLOSE_HOLD_OPEN = [0, 1, 0, -1]
OPEN_CLOSED_CLOSED_OPEN = [1, 0, 0, 1]


class Case(NamedTuple):
    row: str
    given: dict[str, Any]  # what the episode of four steps holds
    state: Any
    action: Any


def column(values):
    return np.array(values, float)[:, None]


def numbered(dims):
    """Returns [4, dims]: 0, 0.001, 0.002, ... in the first step, 0.1, 0.101, ... in the next."""
    return (np.arange(dims) + 100.0 * np.arange(4)[:, None]) / 1000


UR5_STATE = np.concatenate(
    [numbered(9), [[0, 0, 0, 1]] * 4, column([0, 1, 1, 0]), column([5, 5, 5, 5])], axis=1
)
COMMANDED = {CLOSE: column(HOLD_CLOSE_HOLD_OPEN)}

CASES = (
    Case(
        "taco_play",  # the seventh number is the gripper's width, the eighth a joint; -1 closes
        {
            f"{OBSERVATION}robot_obs": numbered(15),
            "steps/action/rel_actions_world": np.concatenate(
                [MOVED, column([1, -1, -1, 1])], axis=1
            ),
        },
        numbered(7),
        np.concatenate([MOVED, column([1, 0, 0, 1])], axis=1),
    ),
    Case(
        "jaco_play",  # no rotation: zeros
        {
            MOVE: MOTION[MOVE],
            CLOSE: column(HOLD_CLOSE_HOLD_OPEN),
            f"{OBSERVATION}end_effector_cartesian_pos": numbered(7),
        },
        numbered(7),
        np.concatenate([MOVED[:, 0:3], np.zeros((4, 3)), column(OPEN_CLOSED_CLOSED_OPEN)], axis=1),
    ),
    # no gripper
    Case(
        "berkeley_cable_routing",
        {**MOTION, f"{OBSERVATION}robot_state": numbered(7)},
        numbered(7),
        MOVED,
    ),
    Case(
        "roboturk",  # -1 opens, 1 closes; no state
        {**MOTION, CLOSE: column([-1, 1, 0.25, -0.5])},
        np.zeros((4, 0)),
        np.concatenate([MOVED, column([1, 0, 0.375, 0.75])], axis=1),
    ),
    Case(
        "nyu_door_opening_surprising_effectiveness",
        MOTION | COMMANDED,
        np.zeros((4, 0)),
        np.concatenate([MOVED, column(OPEN_CLOSED_CLOSED_OPEN)], axis=1),
    ),
    Case(
        "viola",  # the gripper's command is one number, not a vector of one
        {
            **MOTION,
            CLOSE: [-1, 1, 1, -1],
            f"{OBSERVATION}joint_states": numbered(7),
            f"{OBSERVATION}gripper_states": column([0.08, 0.08, 0.02, 0.02]),
        },
        np.concatenate([numbered(7), column([0.08, 0.08, 0.02, 0.02])], axis=1),
        np.concatenate([MOVED, column([1, 0, 0, 1])], axis=1),
    ),
    Case(
        "berkeley_autolab_ur5",  # of 15 numbers: position, quaternion, gripper with 1 = closed
        {**MOTION, CLOSE: HOLD_CLOSE_HOLD_OPEN, f"{OBSERVATION}robot_state": UR5_STATE},
        [
            [0.1 * i + 0.006, 0.1 * i + 0.007, 0.1 * i + 0.008, 0, 0, 0, 1, closed]
            for i, closed in enumerate([0, 1, 1, 0])
        ],
        np.concatenate([MOVED, column(OPEN_CLOSED_CLOSED_OPEN)], axis=1),
    ),
    Case(
        "toto",
        {**MOTION, OPEN: [True, False, False, True], f"{OBSERVATION}state": numbered(7)},
        numbered(7),
        np.concatenate([MOVED, column([1, 0, 0, 1])], axis=1),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row)
def test_columns(tmp_path, case):
    instruction = {f"{OBSERVATION}natural_language_instruction": "close the drawer"}
    index = index_from_spec(ROWS[case.row], tmp_path, [case.given | instruction])
    np.testing.assert_allclose(index.state, np.array(case.state, np.float32), atol=1e-6)
    np.testing.assert_allclose(index.action, np.array(case.action, np.float32), atol=1e-6)
    assert index.frames("train").tolist() == [0, 1, 2, 3]
    assert index.prompts == ["close the drawer"]
    assert index.episodes["success"].tolist() == [-1]


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("row", "stored", "seen"),
    [
        ("taco_play", {"rgb_static": RED, "rgb_gripper": GREEN}, {"base": RED, "wrist": GREEN}),
        ("jaco_play", {"image": RED, "image_wrist": GREEN}, {"base": RED, "wrist": GREEN}),
        (
            "berkeley_cable_routing",
            {"image": RED, "wrist45_image": GREEN, "wrist225_image": BLUE},
            {"base": RED, "wrist": GREEN, "wrist_2": BLUE},
        ),
        ("roboturk", {"front_rgb": RED}, {"base": RED}),
        ("nyu_door_opening_surprising_effectiveness", {"image": RED}, {"wrist": RED}),
        ("viola", {"agentview_rgb": RED, "eye_in_hand_rgb": GREEN}, {"base": RED, "wrist": GREEN}),
        # Of this one only the wrist camera is stored as blue, green, red.
        ("berkeley_autolab_ur5", {"image": RED, "hand_image": BLUE}, {"base": RED, "wrist": RED}),
        ("toto", {"image": RED}, {"base": RED}),
    ],
)
def test_cameras_and_colours(tmp_path, row, stored, seen):
    index = index_from_spec(
        ROWS[row], tmp_path, [{f"{OBSERVATION}{name}": [colour] for name, colour in stored.items()}]
    )
    images = index.observation(0)["images"]
    assert images.keys() == seen.keys()
    for camera, colour in seen.items():
        np.testing.assert_allclose(images[camera][0, 0], colour, atol=3)


def test_toto_holds_poses_which_repeat_past_the_end_and_not_changes_which_stop(tmp_path):
    index = index_from_spec(ROWS["toto"], tmp_path, [MOTION])
    actions, valid = index.chunk(3, 2)
    np.testing.assert_allclose(actions[1, 0:6], MOVED[0], atol=1e-6)
    assert valid.tolist() == [True, False]


def test_velocities_are_zero_past_the_end_and_the_gripper_holds(tmp_path):
    index = index_from_spec(
        ROWS["nyu_door_opening_surprising_effectiveness"], tmp_path, [MOTION | COMMANDED]
    )
    actions, _ = index.chunk(3, 2)
    np.testing.assert_array_equal(actions[1], [0, 0, 0, 0, 0, 0, -1])  # open, as its commands say
