"""The rows of RT-1, QT-Opt, BC-Z and Language Table give columns that were written by hand.

The datasets are tiny and have their own feature structure.
"""

import numpy as np
import pytest
import tensorflow as tf

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build_or_open
from pi0_jax.data.records.tfrecord import read_records
from pi0_jax.errors import InputError
from tests.planted_faults import framed
from tests.spec_data import index_from_spec, write_from_spec
from tests.tiny_data import shard_files

RED = (255, 0, 0)
MOVES = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]
TURNS = [[0.01, 0.02, 0.03], [0.04, 0.05, 0.06], [0.07, 0.08, 0.09]]
POSES = [[0.1, 0.2, 0.3, 0, 0, 0, 1], [0.4, 0.5, 0.6, 1, 0, 0, 0], [0.7, 0.8, 0.9, 0.6, 0, 0.8, 0]]
GRASP = {
    "steps/action/world_vector": MOVES,
    "steps/action/rotation_delta": TURNS,
    "steps/action/gripper_closedness_action": [[0], [1], [0]],
    "steps/observation/image": [RED] * 3,
    "steps/observation/natural_language_instruction": "pick apple",
}
GRASP_ACTIONS = [  # open until it is told to close
    [0.1, 0.2, 0.3, 0.01, 0.02, 0.03, 1],
    [0.4, 0.5, 0.6, 0.04, 0.05, 0.06, 0],
    [0.7, 0.8, 0.9, 0.07, 0.08, 0.09, 0],
]


def assert_columns(index, state, action):
    np.testing.assert_allclose(index.state, np.array(state, np.float32), atol=1e-6)
    np.testing.assert_allclose(index.action, np.array(action, np.float32), atol=1e-6)


def assert_red_at_first_frame(index, camera="base"):
    np.testing.assert_allclose(index.observation(0)["images"][camera][0, 0], RED, atol=3)


def test_fractal(tmp_path):
    episode = GRASP | {
        "steps/observation/base_pose_tool_reached": POSES,
        "steps/observation/gripper_closed": [[0], [0.5], [1]],  # 1 = closed, and stays so
        "aspects/has_aspects": True,
        "aspects/success": True,
    }
    index = index_from_spec(ROWS["fractal20220817_data"], tmp_path, [episode])
    assert_columns(index, np.column_stack([POSES, [0, 0.5, 1]]), GRASP_ACTIONS)
    assert_red_at_first_frame(index)
    assert index.prompt(2) == "pick apple"
    assert index.frames("train").tolist() == [0, 1, 2]


def test_fractal_reports_success_where_the_episode_says_so_and_drops_nothing(tmp_path):
    said = [(True, True), (True, False), (False, False)]
    episodes = [
        GRASP | {"aspects/has_aspects": has, "aspects/success": success} for has, success in said
    ]
    index = index_from_spec(ROWS["fractal20220817_data"], tmp_path, episodes)
    assert index.episodes["success"].tolist() == [1, 0, -1]
    assert index.episodes["kept"].tolist() == [3, 3, 3]


KUKA_POSE = "steps/observation/clip_function_input/base_pose_tool_reached"
KUKA_CLOSED = "steps/observation/gripper_closed"


def test_kuka_draws_no_failed_grasp_and_reads_compressed_states(tmp_path):
    grasps = [
        GRASP | {KUKA_POSE: POSES, KUKA_CLOSED: [[0], [0], [1]], "success": success}
        for success in (True, False)
    ]
    index = index_from_spec(ROWS["kuka"], tmp_path, grasps, zlib=(KUKA_POSE, KUKA_CLOSED))
    state = np.column_stack([POSES, [0, 0, 1]])
    assert_columns(index, [*state, *state], [*GRASP_ACTIONS, *GRASP_ACTIONS])
    assert index.episodes["success"].tolist() == [1, 0]
    assert index.episodes["kept"].tolist() == [3, 0]
    assert_red_at_first_frame(index)
    assert index.prompt(0) == "pick apple"  # kept, where others blank it


def test_a_damaged_state_of_kuka_is_named_and_may_be_left_out(tmp_path):
    grasp = GRASP | {KUKA_POSE: POSES, KUKA_CLOSED: [[0], [0], [1]], "success": True}
    folder = write_from_spec(
        tmp_path,
        "kuka",
        [grasp, grasp],
        tfds_name="kuka",
        version="0.1.0",
        zlib=(KUKA_POSE, KUKA_CLOSED),
    )
    (shard,) = shard_files(folder)
    payloads = [record.payload for record in read_records(shard)]
    example = tf.train.Example.FromString(payloads[1])
    values = example.features.feature[KUKA_POSE].bytes_list.value
    values[2] = values[2][:-2]
    shard.write_bytes(framed(payloads[0]) + framed(example.SerializeToString()))
    place = f"episode 1 .* record 1.: step 2: field {KUKA_POSE}: expected 28 bytes of compressed numbers"
    with pytest.raises(InputError, match=place):
        build_or_open(ROWS["kuka"], tmp_path, progress=False)
    index = build_or_open(ROWS["kuka"], tmp_path, progress=False, skip_bad_episodes=1)
    assert len(index.skipped) == 1 and index.steps == 3


def test_bc_z_takes_the_first_of_ten_targets_and_axis_angles_for_what_they_are(tmp_path):
    # half a turn about an axis 0.1 rad from x
    tilt = np.pi * np.array([np.cos(0.1), np.sin(0.1), 0])
    residuals = np.zeros((3, 30))
    residuals[:, 0:3] = [tilt - [np.pi, 0, 0], [0.1, 0, 0], [0, 0, -0.2]]
    residuals[:, 3:] = 9  # later targets
    moves = np.full((3, 30), 9.0)
    moves[:, 0:3] = MOVES
    closes = np.full((3, 10), 7)
    closes[:, 0] = [0, 1, 1]
    episode = {
        "steps/observation/present/xyz": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        "steps/observation/present/axis_angle": [[np.pi, 0, 0], [0, 0, 0], [0, 0, 0.5]],
        "steps/observation/present/sensed_close": [[0.2], [0.6], [1]],
        "steps/action/future/xyz_residual": moves,
        "steps/action/future/axis_angle_residual": residuals,
        "steps/action/future/target_close": closes,
        "steps/observation/episode_success": [1, 1, 1],
        "steps/observation/image": [RED] * 3,
        "steps/observation/natural_language_instruction": "wipe tray",
    }
    index = index_from_spec(
        ROWS["bc_z"],
        tmp_path,
        [episode, episode | {"steps/observation/episode_success": [0, 0, 0]}],
    )
    state = [[1, 2, 3, np.pi, 0, 0, 0.2], [4, 5, 6, 0, 0, 0, 0.6], [7, 8, 9, 0, 0, 0.5, 1]]
    action = [
        [0.1, 0.2, 0.3, 0, 0, 0.2, 1],  # turns twice the tilt, about z
        [0.4, 0.5, 0.6, 0.1, 0, 0, 0],
        [0.7, 0.8, 0.9, 0, 0, -0.2, 0],
    ]
    assert_columns(index, [*state, *state], [*action, *action])
    assert_red_at_first_frame(index)
    assert index.prompt(0) == "wipe tray"
    assert index.episodes["success"].tolist() == [1, 0]
    assert index.episodes["kept"].tolist() == [3, 3]


@pytest.mark.parametrize("version", ["0.0.1", "0.1.0"])
def test_language_table_moves_in_a_plane_and_reads_code_points(tmp_path, version):
    episode = {
        "steps/observation/effector_translation": [[0.3, -0.1], [0.4, 0.2]],
        "steps/action": [[0.01, -0.02], [0.03, 0.04]],
        "steps/observation/rgb": [RED] * 2,
        "steps/observation/instruction": "push the red star → left",
    }
    index = index_from_spec(ROWS["language_table"], tmp_path, [episode], version=version)
    assert_columns(index, [[0.3, -0.1], [0.4, 0.2]], [[0.01, -0.02], [0.03, 0.04]])
    assert_red_at_first_frame(index)
    assert index.prompts == ["push the red star → left"]
