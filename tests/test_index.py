"""An index holds what it should, and is told to be stale; test_build.py builds it."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build_or_open, open_index
from pi0_jax.data.rows import CameraField, Dataset, Language, RawField, Standardised, as_recorded
from pi0_jax.data.write import ArrayFeature, ImageFeature, write_rlds
from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.errors import InputError
from tests.own_process import loaded_by, python
from tests.tiny_data import (
    REACH_STEPS,
    reach_episodes,
    shard_files,
    solid,
    write_reach,
)

ROW = ROWS["reach_arm3"]


def build(data_dir, row=ROW, index_dir=None):
    return build_or_open(row, data_dir, index_dir, progress=False)


# ---- what it holds


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Episodes of 3, 5 and 4 steps; one of them is held out."""
    data_dir = tmp_path_factory.mktemp("data")
    write_reach(data_dir)
    return build(data_dir)


def test_columns_and_episodes(index):
    assert index.steps == 12
    np.testing.assert_array_equal(index.state[:, 0], [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(index.state[:, 1], [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 3])
    np.testing.assert_array_equal(index.action, index.state + np.float32(0.5))
    assert index.state.dtype == index.action.dtype == np.float32
    table = {name: column.tolist() for name, column in index.episodes.items()}
    assert table["start"] == [0, 3, 8]
    assert table["length"] == table["stop"] == table["kept"] == [3, 5, 4]
    assert (table["shard"], table["record"]) == ([0, 0, 1], [0, 1, 0])  # two episodes to a shard
    assert table["success"] == [-1, -1, -1]  # the dataset does not say
    assert index.prompts == ["reach block 0", "reach block 1"]
    assert [index.prompt(frame) for frame in (0, 3, 11)] == [
        "reach block 0",
        "reach block 1",
        "reach block 0",
    ]
    assert index.image_sizes == {
        f"steps/observation/{camera}": {"min": [16, 24], "max": [16, 24]}
        for camera in ("base", "wrist")
    }


def test_one_episode_in_three_is_held_out_by_hash(index):
    frames = {split: index.frames(split) for split in ("train", "val")}
    assert sorted([*frames["train"], *frames["val"]]) == list(range(12))
    assert len(np.unique(index.episode_of(frames["val"]))) == 1
    assert (index.episodes["split"][index.episode_of(frames["val"])] == 1).all()
    with pytest.raises(InputError, match="expected split train or val, found 'test'"):
        index.frames("test")


def test_rows_of_the_same_files_hold_out_the_same_episodes(index, tmp_path):
    """What one of DROID's three action spaces trains on, no other validates on."""
    other = build(
        index.path.parents[3], dataclasses.replace(ROW, name="reach_arm3_by_velocity"), tmp_path
    )
    np.testing.assert_array_equal(other.episodes["split"], index.episodes["split"])
    assert other.path.name != index.path.name


def test_an_instruction_may_change_within_an_episode(tmp_path):
    episodes = reach_episodes((3,))
    episodes[0]["steps"][1]["language_instruction"] = ""
    episodes[0]["steps"][2]["language_instruction"] = "something else"
    write_reach(tmp_path, episodes=episodes)
    index = build(tmp_path)
    assert [index.prompt(frame) for frame in range(3)] == ["reach block 0", "", "something else"]
    assert index.frames("train").tolist() == [0, 2]  # a step without an instruction is not drawn


def test_observation_is_the_frame(index):
    observation = index.observation(6)  # episode 1, step 3
    np.testing.assert_array_equal(observation["state"], np.array([1, 3, 0], np.float32))
    assert observation["prompt"] == "reach block 1"
    for camera, colour in (("base", (10, 60, 200)), ("wrist", (200, 0, 0))):
        image = observation["images"][camera]
        assert image.dtype == np.uint8 and image.shape == (16, 24, 3)
        assert np.abs(image.astype(int) - colour).max() <= 3


def test_chunks_repeat_the_last_absolute_action(index):
    actions, valid = index.chunks(np.array([0, 6, 11]), horizon=3)
    np.testing.assert_array_equal(
        actions[:, :, 1], np.array([[0, 1, 2], [3, 4, 4], [3, 3, 3]]) + 0.5
    )
    assert valid.tolist() == [[True, True, True], [True, True, False], [True, False, False]]
    one, one_valid = index.chunk(6, horizon=3)
    np.testing.assert_array_equal(one, actions[1])
    np.testing.assert_array_equal(one_valid, valid[1])


@pytest.mark.parametrize("split", ["val", "validation", "test"])
def test_a_dataset_of_ones_own_with_relative_actions_bgr_images_and_a_validation_split(
    tmp_path, split
):
    """The row and the rule are in the user's own file, without any change to the package."""
    steps = {
        **REACH_STEPS,
        "observation": {"front": ImageFeature(16, 24), "pose": ArrayFeature((2,), np.float64)},
    }
    steps["action"] = ArrayFeature((), np.int64)
    episode = {
        "steps": [
            {
                "observation": {"front": solid((255, 0, 0)), "pose": np.array([i, -i], np.float64)},
                "action": i - 1,
                "language_instruction": " go\n",
            }
            for i in range(4)
        ]
    }
    write_reach(tmp_path, name="mine", steps=steps, episodes=[episode], split=split)
    robot = Embodiment(
        "mine",
        "an arm",
        {"base_0_rgb": "front"},
        (StateDim("x", "m"),),
        (ActionDim("dx", "m", "relative"),),
        5.0,
        1,
    )
    index = build(tmp_path, own_row("mine", robot))
    np.testing.assert_array_equal(index.state, [[0], [1], [2], [3]])
    assert index.frames("train").tolist() == [] and index.frames("val").tolist() == [1, 2]
    actions, valid = index.chunk(2, horizon=2)
    assert actions.tolist() == [[1.0], [0.0]] and valid.tolist() == [True, False]
    assert index.observation(1)["prompt"] == "go"
    blue = index.observation(1)["images"]["front"][0, 0].astype(int)
    assert np.abs(blue - (0, 0, 255)).max() <= 3


def own_rule(columns):
    """Makes x of the pose the state, and the command a relative action.

    The first step is not drawn, and the last one has no action.
    """
    pose, action = columns["steps/observation/pose"], columns["steps/action"]
    return Standardised(pose[:, :1], action[:, None], np.array([False, True, True, False]), stop=3)


def own_row(name, robot):
    return Dataset(
        name=name,
        tfds_name=name,
        versions=("2.0.0", "1.0.0"),
        embodiment=robot,
        cameras={"front": CameraField("steps/observation/front", order="BGR")},
        fields={
            "steps/observation/pose": RawField((2,), "float64"),
            "steps/action": RawField((), "int64"),
        },
        language=Language(("steps/language_instruction",)),
        standardise=own_rule,
        revision=1,
    )


def test_an_instruction_of_the_episode_as_code_points(tmp_path):
    """Six numbers for an episode of three steps are one instruction, and not three."""
    episode = {**reach_episodes((3,))[0], "words": np.array([*map(ord, "push"), 0, 0], np.int32)}
    features = {"words": ArrayFeature((6,), np.int32)}
    write_rlds(
        tmp_path,
        "reach_arm3",
        "1.0.0",
        steps=REACH_STEPS,
        metadata={},
        episode=features,
        splits={"train": [episode]},
    )
    index = build(
        tmp_path, dataclasses.replace(ROW, language=Language(("words",), encoding="code points"))
    )
    assert [index.prompt(frame) for frame in range(3)] == ["push"] * 3


def test_frames_without_an_instruction_are_not_drawn(tmp_path):
    episodes = reach_episodes((2, 3))
    for step in episodes[1]["steps"]:
        step["language_instruction"] = " "
    write_reach(tmp_path, episodes=episodes)
    row = dataclasses.replace(ROW, held_out=0.0)
    index = build(tmp_path, row)
    assert index.frames("train").tolist() == [0, 1] and index.episodes["kept"].tolist() == [2, 0]
    assert build(tmp_path, dataclasses.replace(row, keep_empty_language=True)).frames(
        "train"
    ).tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists a process's open files")
def test_few_shards_stay_open(tmp_path):
    """Dozens of datasets of a thousand shards are mixed, and a process may have 1024 files open."""
    write_reach(tmp_path, episodes=[*reach_episodes((1,) * 10)] * 4, per_shard=1)
    index = build(tmp_path)
    for frame in range(index.steps):
        index.observation(frame)
    opened = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert 0 < sum(file.startswith(str(tmp_path)) and "tfrecord" in file for file in opened) <= 8
    assert sum(file.startswith(str(tmp_path)) for file in opened) <= 30


READS = """
import sys
from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import open_index
sys.keep = open_index(ROWS["reach_arm3"], "{}")
sys.keep.observation(4)
"""


def test_a_reader_is_quiet_when_the_interpreter_ends(tmp_path):
    write_reach(tmp_path)
    build(tmp_path)
    assert python("-c", READS.format(tmp_path)).stderr == ""


def test_reading_an_index_needs_no_tensorflow(tmp_path):
    write_reach(tmp_path)
    build(tmp_path)
    assert loaded_by(READS.format(tmp_path), "tensorflow", "tensorflow_datasets", "jax") == []


# ---- when it is stale


def test_an_index_is_built_once_and_equal_builds_have_equal_bytes(tmp_path):
    directory = write_reach(tmp_path / "data")
    first = build(tmp_path / "data")
    made = first.path.stat().st_mtime_ns
    assert first.path.parent == directory / "pi0_index"
    assert build(tmp_path / "data").path == open_index(ROW, tmp_path / "data").path == first.path
    assert first.path.stat().st_mtime_ns == made
    other = build(tmp_path / "data", index_dir=tmp_path / "indices")
    assert other.path.parent == tmp_path / "indices" / "reach_arm3" / "1.0.0"
    assert contents(other.path) == contents(first.path)


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def another_rule(columns):
    result = as_recorded(columns)
    return result._replace(action=result.action + 1)


def test_a_stale_index_is_refused_by_open_and_replaced_by_build(tmp_path):
    write_reach(tmp_path)
    with pytest.raises(InputError, match="reach_arm3: expected an index .*, found none; build it"):
        open_index(ROW, tmp_path)
    old = build(tmp_path)
    state, actions = (
        [dataclasses.replace(dim, unit="1") for dim in dims]
        for dims in (ROW.embodiment.state, ROW.embodiment.actions)
    )
    # so other values are plausible
    without_units = dataclasses.replace(ROW.embodiment, state=tuple(state), actions=tuple(actions))
    for row, reason in (
        (dataclasses.replace(ROW, revision=2), "the row's revision changed since"),
        (dataclasses.replace(ROW, standardise=another_rule), "the row's rule changed since"),
        (dataclasses.replace(ROW, embodiment=without_units), "the row's state changed since"),
    ):
        with pytest.raises(InputError, match=f"found a stale one: {reason}"):
            open_index(row, tmp_path)
    new = build(tmp_path, dataclasses.replace(ROW, standardise=another_rule))
    np.testing.assert_array_equal(new.action, old.action + 1)


def test_other_data_under_the_same_name_is_indexed_anew(tmp_path):
    directory = write_reach(tmp_path / "data")
    old = build(tmp_path / "data", index_dir=tmp_path / "indices")
    shutil.rmtree(directory)
    write_reach(tmp_path / "data", (3, 5, 7))
    new = build(tmp_path / "data", index_dir=tmp_path / "indices")
    assert (old.steps, new.steps) == (12, 15)
    assert new.path.parent == old.path.parent and new.path != old.path


def test_a_changed_file_makes_the_index_stale(tmp_path):
    directory = write_reach(tmp_path)
    build(tmp_path)
    last = list(shard_files(directory))[-1]
    last.write_bytes(last.read_bytes() + b"more")
    with pytest.raises(InputError, match=f"found a stale one: file {last.name} changed since"):
        open_index(ROW, tmp_path)


def test_changed_metadata_make_the_index_stale(tmp_path):
    directory = write_reach(tmp_path)
    build(tmp_path)
    features = directory / "features.json"
    features.write_text(features.read_text() + " ")
    with pytest.raises(InputError, match="found a stale one: file features.json changed since"):
        open_index(ROW, tmp_path)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    command = ("-m", "launch.index", f"--data_dir={tmp_path}", "--datasets=reach_arm3")
    line = python(*command, status=2).stderr.splitlines()[-1]
    assert line.startswith("error: dataset reach_arm3: expected a readable directory ")


def test_a_missing_dataset_is_said_before_another_is_built(tmp_path):
    directory = write_reach(tmp_path)
    command = ("-m", "launch.index", f"--data_dir={tmp_path}", "--datasets=reach_arm3,reach_arm4")
    failed = python(*command, status=2)
    assert "error: dataset reach_arm4: expected a readable directory" in failed.stderr
    assert not (directory / "pi0_index").exists()
