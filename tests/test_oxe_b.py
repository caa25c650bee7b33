"""Rows of public datasets give hand-written columns.

For each row a tiny dataset of the public structure is written and indexed. Numbers that no rule may
read are 9. DROID has its own file.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from tests.spec_data import index_from_spec

STATE, ACTION = "steps/observation/state", "steps/action"
POSE = "steps/observation/eef_pose"
IMAGE, WRIST = "steps/observation/image", "steps/observation/wrist_image"
SIDE_1, WRIST_1 = "steps/observation/image_side_1", "steps/observation/image_wrist_1"
INSTRUCTION = "steps/language_instruction"
CONVERTED = "_converted_externally_to_rlds"
H = 0.70710678  # sine and cosine of 45 degrees
JOINTS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
MOVE = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
STILL = [0, 0, 0, 0, 0, 0]
POINT = [0.1, 0.2, 0.3]


class Case(NamedTuple):
    name: str
    raw: dict[str, Sequence[Any]]  # path -> a value for each of two steps
    state: Sequence[Sequence[float]]
    action: Sequence[Sequence[float]]
    cameras: dict[str, str]  # the robot's camera -> image field
    stored: str = "RGB"  # the order in which this dataset's images are stored


BOTH = {"base": IMAGE, "wrist": WRIST}
# Raw: -1 opens and +1 closes. Columns: 1 is open.
CLOSING = {ACTION: [[*MOVE, -1], [*STILL, 1]]}
OPENING_ACTION = [[*MOVE, 1], [*STILL, 0]]
# Commands between the two, where a public rule neither rounds nor cuts.
PART_CLOSED = {ACTION: [[*MOVE, 0.25], [*STILL, 1]]}
PART_OPEN_ACTION = [[*MOVE, 0.75], [*STILL, 0]]

JOINTS_AND_WIDTH = {STATE: [[*JOINTS, 0.08] + [9] * 16, [*JOINTS, 0.01] + [9] * 16]}
NAMED_JOINTS_AND_WIDTH = {
    STATE: [[9] * 8, [9] * 8],
    "steps/observation/state_joint": [JOINTS, JOINTS],
    "steps/observation/state_gripper": [[0.08], [0.01]],
}
JOINT_STATES = [[*JOINTS, 0.08], [*JOINTS, 0.01]]

CASES = [
    Case(
        f"austin_buds_dataset{CONVERTED}",
        {**JOINTS_AND_WIDTH, **CLOSING},
        JOINT_STATES,
        OPENING_ACTION,
        BOTH,
    ),
    *(
        Case(
            f"austin_{name}_dataset{CONVERTED}",
            {**NAMED_JOINTS_AND_WIDTH, **CLOSING},
            JOINT_STATES,
            OPENING_ACTION,
            BOTH,
        )
        for name in ("sailor", "sirius")
    ),
    Case(
        "utaustin_mutex", {**JOINTS_AND_WIDTH, **CLOSING}, JOINT_STATES, OPENING_ACTION, BOTH, "BGR"
    ),
    Case(
        f"stanford_hydra_dataset{CONVERTED}",
        {
            STATE: [
                [*POINT, 0, 0, 0, 1, 1.1, 1.2, 1.3, *[9] * 14, 0.08, 9, 9],
                [*POINT, 0, 0, 1, 0, 1.1, 1.2, -1.3, *[9] * 14, 0.01, 9, 9],
            ],
            **PART_CLOSED,
        },
        [[*POINT, 1.1, 1.2, 1.3, 0.08], [*POINT, 1.1, 1.2, -1.3, 0.01]],
        PART_OPEN_ACTION,
        BOTH,
        "BGR",
    ),
    Case(
        f"nyu_franka_play_dataset{CONVERTED}",
        {
            STATE: [[*[9] * 7, *POINT, 1.1, 1.2, 1.3], [*[9] * 7, *POINT, -1.1, 1.2, 1.3]],
            ACTION: [[*[9] * 7, *MOVE, 1, 0], [*[9] * 7, *STILL, -1, 1]],
        },
        [[*POINT, 1.1, 1.2, 1.3], [*POINT, -1.1, 1.2, 1.3]],
        OPENING_ACTION,
        {"base": IMAGE},
    ),
    Case(
        f"furniture_bench_dataset{CONVERTED}",
        {
            STATE: [[*POINT, 0, 0, 0, 1, *[9] * 27, 0.08], [*POINT, H, 0, 0, H, *[9] * 27, 0.01]],
            # A quarter turn about z, and the same turn with all signs the other way about x.
            ACTION: [[0.01, 0.02, 0.03, 0, 0, H, H, -1], [0.01, 0.02, 0.03, -H, 0, 0, -H, 1]],
        },
        [[*POINT, 0, 0, 0, 1, 0.08], [*POINT, H, 0, 0, H, 0.01]],
        [[0.01, 0.02, 0.03, 0, 0, 1.5707963, 1], [0.01, 0.02, 0.03, 1.5707963, 0, 0, 0]],
        BOTH,
    ),
    Case(
        f"iamlab_cmu_pickup_insert{CONVERTED}",
        {
            STATE: [[*JOINTS, 1, *[9] * 12], [*JOINTS, 0, *[9] * 12]],
            # It points down and is turned by 90 degrees about z. Then it rolls on by one degree, to
            # 181, which is -179.
            ACTION: [
                [0.5, 0.1, 0.2, H, H, 0, 0, 1],
                [0.5, 0.1, 0.2, 0.99996192, 0, 0, -0.00872654, 0],
            ],
        },
        [[*JOINTS, 1], [*JOINTS, 0]],
        [[0.5, 0.1, 0.2, 3.1415927, 0, 1.5707963, 1], [0.5, 0.1, 0.2, -3.1241394, 0, 0, 0]],
        BOTH,
    ),
    Case(
        "fmb",
        {
            POSE: [[*POINT, 0, 0, 0, 1], [*POINT, H, 0, 0, H]],
            "steps/observation/state_gripper_pose": [1, 0],
            ACTION: [[*MOVE, 1], [*STILL, 0]],
        },
        [[*POINT, 0, 0, 0, 1, 1], [*POINT, H, 0, 0, H, 0]],
        [[*MOVE, 1], [*STILL, 0]],
        {"base": SIDE_1, "wrist": WRIST_1},
        "BGR",
    ),
    Case(
        "fmb_dataset",
        {
            POSE: [[*POINT, 1.1, 1.2, 1.3], [*POINT, 1.1, 1.2, -1.3]],
            "steps/observation/state_gripper_pose": [1, 0],
            ACTION: [[*MOVE, 1], [*STILL, 0]],
        },
        [[*POINT, 1.1, 1.2, 1.3, 1], [*POINT, 1.1, 1.2, -1.3, 0]],
        [[*MOVE, 1], [*STILL, 0]],
        {"base": SIDE_1, "wrist": WRIST_1},
        "BGR",
    ),
    Case(
        f"ucsd_kitchen_dataset{CONVERTED}",
        # Millimetres and degrees; a roll of 179 and, on by two degrees, of -179.
        {
            STATE: [[*JOINTS] + [9] * 14] * 2,
            ACTION: [[410, -100, 200, 179, 30, 90, 1, 0], [410, -100, 200, -179, 30, 90, 0, 1]],
        },
        [JOINTS, JOINTS],
        [
            [0.41, -0.1, 0.2, 3.1241394, 0.5235988, 1.5707963, 1],
            [0.41, -0.1, 0.2, -3.1241394, 0.5235988, 1.5707963, 0],
        ],
        {"base": IMAGE},
    ),
    Case(
        f"dlr_edan_shared_control{CONVERTED}",
        {STATE: [[*POINT, 1.1, 1.2, 1.3, 0], [*POINT, 1.1, 1.2, -1.3, 1]], **PART_CLOSED},
        [[*POINT, 1.1, 1.2, 1.3, 0], [*POINT, 1.1, 1.2, -1.3, 1]],
        PART_OPEN_ACTION,
        {"base": IMAGE},
    ),
    Case(
        "berkeley_fanuc_manipulation",
        {STATE: [[*JOINTS[:6], 0, *[9] * 6], [*JOINTS[:6], 1, *[9] * 6]], ACTION: [MOVE, STILL]},
        [[*JOINTS[:6], 0], [*JOINTS[:6], 1]],
        [[*MOVE, 1], [*STILL, 0]],
        BOTH,
        "BGR",
    ),
    Case(
        "cmu_stretch",
        {
            STATE: [[*POINT, 0.9], [*POINT, 0.1]],
            ACTION: [[0.01, 0, 0.03, 0, 0, 0, 1, 0], [*STILL, 0, 1]],
        },
        [[*POINT, 0.9], [*POINT, 0.1]],
        [[0.01, 0, 0.03, 0, 0, 0, 1], [*STILL, 0]],
        {"base": IMAGE},
    ),
    Case(
        "dobbe",
        {
            STATE: [[*POINT, 1.1, 1.2, 1.3, 0.9], [*POINT, 1.1, 1.2, -1.3, 0.1]],
            ACTION: [[*MOVE, 0.9], [*STILL, 0.1]],
        },
        [[*POINT, 1.1, 1.2, 1.3, 0.9], [*POINT, 1.1, 1.2, -1.3, 0.1]],
        [[*MOVE, 0.9], [*STILL, 0.1]],
        {"wrist": WRIST},
    ),
    *(
        Case(
            f"libero_{suite}_no_noops",
            {
                STATE: [[*POINT, 3.1, 0.1, 0.2, 0.04, -0.04], [*POINT, 3.1, 0.1, 0.2, 0.01, -0.01]],
                **CLOSING,
            },
            [[*POINT, 3.1, 0.1, 0.2, 0.04, -0.04], [*POINT, 3.1, 0.1, 0.2, 0.01, -0.01]],
            OPENING_ACTION,
            BOTH,
        )
        for suite in ("spatial", "object", "goal", "10")
    ),
    Case(
        "aloha_mobile",
        {
            STATE: [[*JOINTS[:6], 1, *JOINTS[:6], 0]] * 2,
            ACTION: [
                [*JOINTS[1:], 1.02, *JOINTS[1:], -0.01, 0.3, -0.2],
                [*JOINTS[1:], 0, *JOINTS[1:], 1, 0, 0],
            ],
        },
        [[*JOINTS[:6], 1, *JOINTS[:6], 0]] * 2,
        [[*JOINTS[1:], 1, *JOINTS[1:], 0, 0.3, -0.2], [*JOINTS[1:], 0, *JOINTS[1:], 1, 0, 0]],
        {
            camera: f"steps/observation/{camera}"
            for camera in ("cam_high", "cam_left_wrist", "cam_right_wrist")
        },
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_columns_colours_and_prompts(case, tmp_path):
    red_as_stored = {"RGB": (255, 0, 0), "BGR": (0, 0, 255)}[case.stored]
    images = {path: [red_as_stored] * 2 for path in case.cameras.values()}
    instruction = {INSTRUCTION: "put the cup on the shelf"}
    shortest = {"steps/is_first": [True]}  # an episode of one step
    index = index_from_spec(
        ROWS[case.name], tmp_path, [{**case.raw, **images, **instruction}, shortest]
    )

    np.testing.assert_allclose(index.state[:2], case.state, atol=1e-6)
    np.testing.assert_allclose(index.action[:2], case.action, atol=1e-6)
    assert sorted([*index.frames("train"), *index.frames("val")]) == [0, 1, 2]
    assert index.episodes["stop"].tolist() == [2, 1]
    observation = index.observation(0)
    assert observation["prompt"] == "put the cup on the shelf"
    assert observation["images"].keys() == case.cameras.keys()
    for image in observation["images"].values():
        np.testing.assert_allclose(image.reshape(-1, 3).mean(axis=0), (255, 0, 0), atol=2)


def chunk_after_the_end(name: str, tmp_path) -> np.ndarray:
    """Returns the step after the last one of the case, in robot units."""
    case = next(case for case in CASES if case.name == name)
    index = index_from_spec(ROWS[name], tmp_path, [case.raw])
    return index.chunk(1, 2)[0][1]


def test_past_the_end_targets_stay_and_changes_and_velocities_stop(tmp_path):
    stays = [0.41, -0.1, 0.2, -3.1241394, 0.5235988, 1.5707963, 0]  # a pose, and a gripper
    np.testing.assert_allclose(
        chunk_after_the_end(f"ucsd_kitchen_dataset{CONVERTED}", tmp_path), stays, atol=1e-6
    )
    np.testing.assert_allclose(chunk_after_the_end("cmu_stretch", tmp_path), [*STILL, 0], atol=1e-6)
    np.testing.assert_allclose(chunk_after_the_end("dobbe", tmp_path), [*STILL, 0.1], atol=1e-6)
    np.testing.assert_allclose(
        chunk_after_the_end("aloha_mobile", tmp_path),
        [*JOINTS[1:], 0, *JOINTS[1:], 1, 0, 0],
        atol=1e-6,
    )


def test_quaternions_that_rules_or_states_rely_on_are_declared():
    """So the build refuses a quaternion that is not of unit length."""
    declared = {
        (name, path): field.quaternions
        for name, row in ROWS.items()
        for path, field in row.fields.items()
        if field.quaternions
    }
    here = {
        key: places for key, places in declared.items() if key[0] in {case.name for case in CASES}
    }
    assert here == {
        (f"stanford_hydra_dataset{CONVERTED}", STATE): (3,),
        (f"furniture_bench_dataset{CONVERTED}", STATE): (3,),
        (f"furniture_bench_dataset{CONVERTED}", ACTION): (3,),
        (f"iamlab_cmu_pickup_insert{CONVERTED}", ACTION): (3,),
        ("fmb", POSE): (3,),
    }
