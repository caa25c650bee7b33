"""The Bridge rows read their datasets right: rules by hand, tiny datasets, real episodes.

The real episodes are used where they are at hand.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build_or_open
from pi0_jax.data.oxe import primitives
from pi0_jax.data.oxe.bridge import standardise
from pi0_jax.data.rows import row_version
from tests.spec_data import index_from_spec

REAL = Path(__file__).parents[2] / "shared" / "data" / "bridge_dataset" / "1.0.0"
BRIDGE = ROWS["bridge_dataset"]


def _columns(state, action):
    return {
        "steps/observation/state": np.array(state, np.float32),
        "steps/action": np.array(action, np.float32),
    }


def test_actions_are_reached_changes_and_the_last_step_has_none():
    state = [[0.1, 0, 0, 0, 0, 3.1, 1], [0.2, 0, 0, 0, 0, -3.1, 1], [0.2, 0.3, 0, 0, 0, -3.0, 0]]
    command = [[9, 9, 9, 9, 9, 9, 1], [9, 9, 9, 9, 9, 9, 0.5], [9, 9, 9, 9, 9, 9, 0]]
    result = standardise(_columns(state, command))
    yaw = 2 * np.pi - 6.2  # from 3.1 to -3.1 rad through pi: +0.083, not -6.2
    np.testing.assert_allclose(
        result.action[:2], [[0.1, 0, 0, 0, 0, yaw, 1], [0, 0.3, 0, 0, 0, 0.1, 0]], atol=1e-6
    )
    np.testing.assert_array_equal(result.state, np.array(state, np.float32))
    assert result.keep.tolist() == [True, True, False]
    assert result.stop == 2


def test_a_first_step_without_a_command_is_dropped():
    state, command = np.zeros((4, 7)), np.full((4, 7), 0.5)
    command[0] = 0
    assert standardise(_columns(state, command)).keep.tolist() == [False, True, True, False]


def test_an_episode_of_one_step_has_nothing_to_keep():
    result = standardise(_columns(np.ones((1, 7)), np.ones((1, 7))))
    assert result.keep.tolist() == [False]
    assert result.stop == 0


def test_a_change_in_what_the_rule_calls_is_a_change_of_the_rule(monkeypatch):
    before = row_version(BRIDGE)
    assert row_version(BRIDGE) == before
    monkeypatch.setattr(primitives, "GRIPPER_OPEN", 0.9)
    assert row_version(BRIDGE) != before


OBSERVED = "steps/observation/state"
POSES = [
    [0.1, 0, 0, 0, 0, 3.1, 1],
    [0.2, 0, 0, 0, 0, -3.1, 0.5],
    [0.2, 0.3, 0, 0, 0, -3.0, 0],
    [0.2, 0.3, 0, 0, 0, -3.0, 0],
]
YAW = 2 * np.pi - 6.2
REACHED = np.array([[0.1, 0, 0, 0, 0, YAW], [0, 0.3, 0, 0, 0, 0.1], [0, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("name", ["bridge_dataset", "bridge_orig"])
def test_bridge_v2_under_both_its_names(tmp_path, name):
    commands = np.full((4, 7), 9.0)
    commands[:, 6] = [1, 0.5, 0, 0]
    episodes = [
        {OBSERVED: POSES, "steps/action": commands, "steps/observation/image_0": [(255, 0, 0)] * 4},
        {OBSERVED: POSES, "steps/action": commands * [[0], [1], [1], [1]]},  # a filler first
        {OBSERVED: POSES, "steps/action": commands, "steps/language_instruction": ""},
    ]
    index = index_from_spec(ROWS[name], tmp_path, episodes, spec="bridge_orig", split="train")
    np.testing.assert_allclose(index.state[0:4], np.array(POSES, np.float32))
    np.testing.assert_allclose(index.action[0:3], np.column_stack([REACHED, [1, 0, 0]]), atol=1e-6)
    # the last step never, the first not if a filler, none without an instruction
    assert index.episodes["kept"].tolist() == [
        3,
        2,
        0,
    ]
    np.testing.assert_allclose(index.observation(0)["images"]["image_0"][0, 0], (255, 0, 0), atol=3)


def test_the_older_bridge_has_its_commands_in_a_dict(tmp_path):
    zero_first = np.array([[0], [1], [1], [1]])
    episodes = [
        {
            OBSERVED: POSES,
            "steps/action/world_vector": np.full((4, 3), 9),
            "steps/action/open_gripper": [True, False, False, True],
        },
        {
            OBSERVED: POSES,
            "steps/action/world_vector": zero_first * [1, 2, 3],
            "steps/action/rotation_delta": zero_first * [4, 5, 6],
            "steps/action/open_gripper": [False, True, True, True],
        },
    ]
    index = index_from_spec(ROWS["bridge"], tmp_path, episodes)
    np.testing.assert_allclose(index.action[0:3], np.column_stack([REACHED, [1, 0, 0]]), atol=1e-6)
    assert index.episodes["kept"].tolist() == [3, 2]
    assert index.row.embodiment is ROWS["bridge_dataset"].embodiment
    assert index.prompts == ["do something"]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Returns (index, the raw episodes as TensorFlow parses them)."""
    if not REAL.is_dir():
        pytest.skip(f"needs the real Bridge V2 episodes in {REAL}")
    data_dir = tmp_path_factory.mktemp("data")
    directory = data_dir / "bridge_dataset" / "1.0.0"
    shutil.copytree(REAL, directory)
    directory.chmod(0o755)
    return build_or_open(BRIDGE, data_dir, progress=False), _parse(directory)


def _parse(directory):
    import tensorflow as tf

    files = [
        str(directory / f"bridge_dataset-{split}.tfrecord-00000-of-00001")
        for split in ("train", "val")
    ]
    records = tf.data.TFRecordDataset(files, buffer_size=1 << 20)
    return [tf.train.Example.FromString(record.numpy()).features.feature for record in records]


def test_real_images_equal_the_protobuf_parse(real):
    import tensorflow as tf

    index, episodes = real
    frame = 0
    for episode in episodes:
        for encoded in episode["steps/observation/image_0"].bytes_list.value:
            raw = index.read_encoded(frame, "steps/observation/image_0")
            assert raw == encoded
            frame += 1
    assert frame == index.steps == 500
    ours = index.observation(0)["images"]["image_0"].astype(int)
    theirs = tf.io.decode_jpeg(
        index.read_encoded(0, "steps/observation/image_0"), dct_method="INTEGER_ACCURATE"
    ).numpy()
    assert np.abs(ours - theirs).max() <= 2  # two JPEG libraries


def test_real_columns_follow_the_rule(real):
    index, episodes = real
    assert len(index.prompts) == 4 and len(index.frames("train")) == len(index.frames("val")) == 225
    for number, episode in enumerate(episodes):
        start = int(index.episodes["start"][number])
        state = np.array(episode["steps/observation/state"].float_list.value, np.float32).reshape(
            -1, 7
        )
        command = np.array(episode["steps/action"].float_list.value, np.float32).reshape(-1, 7)
        steps = slice(start, start + len(state))
        np.testing.assert_array_equal(index.state[steps], state)
        action = index.action[steps]
        # no yaw jump in these episodes
        np.testing.assert_allclose(action[:-1, :6], state[1:, :6] - state[:-1, :6], atol=1e-7)
        settled = (command[:-1, 6] > 0.95) | (command[:-1, 6] < 0.05)
        np.testing.assert_array_equal(action[:-1, 6][settled], np.round(command[:-1, 6][settled]))
        assert (
            index.observation(start)["prompt"]
            == episode["steps/language_instruction"].bytes_list.value[0].decode()
        )


def test_a_chunk_past_the_last_action_holds_still_and_keeps_the_gripper(real):
    index, _ = real
    actions, valid = index.chunk(6, 5)  # the first episode has 10 steps, so 9 actions
    assert valid.tolist() == [True, True, True, False, False]
    np.testing.assert_array_equal(actions[:3], index.action[6:9])
    assert (actions[3:, :6] == 0).all()
    assert (actions[3:, 6] == index.action[8, 6]).all()
