"""Demonstrations are RLDS datasets: TFDS reads them back, and the same seed gives the same bytes.

Nothing is half-written.
"""

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pi0_jax.data.write import (
    ArrayFeature,
    ImageFeature,
    TextFeature,
    encode_jpeg,
    read_settings,
    write_rlds,
)
from pi0_jax.errors import InputError
from pi0_jax.sim import demonstrations
from pi0_jax.sim.demonstrations import write_reach_data
from tests.own_process import python

COLORS = ("red", "green", "blue")
tfds = pytest.importorskip("tensorflow_datasets")

# 21: more than one task of a worker
SIZES = {
    "episodes": 21,
    "val_episodes": 2,
    "heldout_episodes": 3,
}
ROBOTS = {"reach_arm3": (3, 21), "reach_arm4": (4, 21), "reach_arm5": (5, 3)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reach")
    write_reach_data(folder, seed=0, workers=2, **SIZES)
    return folder


def read(folder, split):
    """Returns a split as nested lists and dicts of NumPy values."""
    dataset = tfds.builder_from_directory(folder).as_dataset(split=split, shuffle_files=False)
    return [{**episode, "steps": list(episode["steps"])} for episode in tfds.as_numpy(dataset)]


def in_another_process(name, *arguments):
    """Returns what a function of sim_worlds.py returns, from a process that renders.

    TensorFlow is loaded in this one.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_of_sim_worlds, name, *arguments).result()


def _of_sim_worlds(name, *arguments):
    from tests import sim_worlds

    return getattr(sim_worlds, name)(*arguments)


def digests(folder: Path):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


# ---- the reach data


@pytest.mark.parametrize("robot", ROBOTS)
def test_every_robot_is_an_ordinary_tfds_dataset(data_dir, robot):
    joints, train = ROBOTS[robot]
    info = tfds.builder_from_directory(data_dir / robot / "1.0.0").info
    assert info.name == robot and info.features["steps"]["action"].shape == (joints,)
    assert {split: info.splits[split].num_examples for split in info.splits} == {
        "train": train,
        "val": 2,
    }


def test_episodes_follow_the_rlds_layout(data_dir):
    for episode in read(data_dir / "reach_arm4" / "1.0.0", "train"):
        steps, metadata = episode["steps"], episode["episode_metadata"]
        last = len(steps) - 1
        assert [step["is_first"] for step in steps] == [i == 0 for i in range(last + 1)]
        assert (
            [step["is_last"] for step in steps]
            == [step["is_terminal"] for step in steps]
            == [i == last for i in range(last + 1)]
        )
        assert steps[-1]["reward"] == 1 and steps[0]["reward"] == 0 and steps[0]["discount"] == 1
        assert metadata["robot"] == b"reach_arm4" and metadata["success"]
        color = metadata["prompt_color"].decode()
        assert color in COLORS and all(
            color in step["language_instruction"].decode() for step in steps
        )
        for step in steps:
            assert (
                step["observation"]["base"].shape
                == step["observation"]["wrist"].shape
                == (64, 64, 3)
            )
            assert step["observation"]["state"].dtype == step["action"].dtype == np.float32


def test_an_episode_is_its_demonstration(data_dir):
    """The seed in the metadata makes the episode again.

    Vectors are exact, and images are the same but for what JPEG loses.
    """
    stored = read(data_dir / "reach_arm3" / "1.0.0", "val")[1]
    seed = int(stored["episode_metadata"]["seed"])
    made = in_another_process("demonstration", "reach_arm3", seed)
    assert len(stored["steps"]) == len(made)
    for mine, theirs in zip(made, stored["steps"], strict=True):
        np.testing.assert_array_equal(mine["action"], theirs["action"])
        np.testing.assert_array_equal(mine["state"], theirs["observation"]["state"])
        for camera, image in mine["images"].items():
            error = np.abs(image.astype(int) - theirs["observation"][camera].astype(int))
            assert error.mean() < 2 and error.max() < 60  # grey levels


def test_no_two_episodes_share_a_seed(data_dir):
    seeds = [
        int(episode["episode_metadata"]["seed"])
        for robot in ROBOTS
        for split in ("train", "val")
        for episode in read(data_dir / robot / "1.0.0", split)
    ]
    assert len(set(seeds)) == len(seeds) == 21 + 21 + 3 + 3 * 2


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(data_dir, tmp_path):
    write_reach_data(tmp_path / "again", seed=0, workers=1, **SIZES)
    assert digests(tmp_path / "again") == digests(data_dir)
    other = write_reach_data(
        tmp_path / "other", seed=1, workers=1, episodes=1, val_episodes=1, heldout_episodes=1
    )
    assert all(other.values())
    assert read(tmp_path / "other/reach_arm5/1.0.0", "val")[0]["episode_metadata"]["seed"] not in [
        episode["episode_metadata"]["seed"]
        for episode in read(data_dir / "reach_arm5/1.0.0", "val")
    ]


def test_what_is_there_already_is_kept_or_refused(data_dir):
    before = digests(data_dir)
    assert not any(write_reach_data(data_dir, seed=0, workers=1, **SIZES).values())
    with pytest.raises(InputError, match="reach_arm3/1.0.0: .*other settings.*'seed': 7.*delete"):
        write_reach_data(data_dir, seed=7, workers=1, **SIZES)
    assert digests(data_dir) == before


def test_command_line(data_dir):
    flags = [f"--{name}={value}" for name, value in SIZES.items()]
    command = ("-m", "launch.make_reach_data", f"--data_dir={data_dir}", *flags)
    assert python(*command).stdout.count("there already, with the same settings") == 3
    refused = python(*command, "--episodes=0", status=2)
    assert "error: episodes: expected at least 1, found 0" in refused.stderr


# ---- the writer

STEPS = {
    "image": ImageFeature(4, 6),
    "nested": {"vector": ArrayFeature((2,), np.float64)},
    "text": TextFeature(),
}


def tiny_episode(number):
    image = np.full((4, 6, 3), 10 * number, np.uint8)
    step = {
        "image": image,
        "nested": {"vector": np.array([number, 0.5])},
        "text": f"episode {number}",
    }
    return {
        "steps": [step, {**step, "image": encode_jpeg(image)}],
        "episode_metadata": {"number": number},
    }


def write_tiny(data_dir, episodes, **options):
    metadata = {"number": ArrayFeature((), np.int64)}
    return write_rlds(
        data_dir,
        "tiny",
        "0.1.0",
        steps=STEPS,
        metadata=metadata,
        splits={"train": episodes},
        **options,
    )


def test_any_features_any_shards(tmp_path):
    folder = write_tiny(
        tmp_path, map(tiny_episode, range(5)), episodes_per_shard=2, settings={"made": "by hand"}
    )
    assert folder == tmp_path / "tiny" / "0.1.0" and read_settings(folder) == {"made": "by hand"}
    assert [path.name for path in sorted(folder.glob("*tfrecord*"))] == [
        f"tiny-train.tfrecord-0000{i}-of-00003" for i in range(3)
    ]
    episodes = read(folder, "train")
    assert [episode["episode_metadata"]["number"] for episode in episodes] == list(range(5))
    for number, episode in enumerate(episodes):
        for step in episode["steps"]:
            assert np.abs(step["image"].astype(int) - 10 * number).max() <= 1
            np.testing.assert_array_equal(step["nested"]["vector"], [number, 0.5])
            assert step["text"].decode() == f"episode {number}"


def test_colour_keeps_its_resolution():
    """A red block two pixels wide is still red two pixels wide."""
    import io

    from PIL import Image

    image = np.full((16, 16, 3), 170, np.uint8)
    image[7:9, 7:9] = (230, 10, 10)
    stored = np.asarray(Image.open(io.BytesIO(encode_jpeg(image)))).astype(int)
    assert np.abs(stored - image).max() < 30


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def breaks():
        yield tiny_episode(0)
        raise RuntimeError("the simulator died")

    with pytest.raises(RuntimeError, match="the simulator died"):
        write_tiny(tmp_path, breaks())
    assert list((tmp_path / "tiny").iterdir()) == []
    assert write_tiny(tmp_path, [tiny_episode(0)]).exists()


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([], "dataset tiny: split 'train' has no episode"),
        (
            [{"steps": [{"image": np.zeros((4, 6, 3), np.float32)}]}],
            r"expected uint8.*found float32\[4, 6, 3\]",
        ),
        (
            [{"steps": [{"image": np.zeros((5, 6, 3), np.uint8)}]}],
            r"expected uint8\[4, 6, 3\], found uint8\[5, 6, 3\]",
        ),
    ],
)
def test_bad_episodes_are_named(tmp_path, episodes, message):
    with pytest.raises(InputError, match=message):
        write_tiny(tmp_path, episodes)


def test_an_existing_dataset_is_never_overwritten(tmp_path):
    write_tiny(tmp_path, [tiny_episode(0)])
    with pytest.raises(InputError, match=r"tiny/0.1.0: a dataset is here already"):
        write_tiny(tmp_path, [tiny_episode(1)])


def test_features_declare_what_the_environment_gives():
    with_joints = demonstrations.step_features("reach_arm5", 64)
    assert with_joints["observation"]["state"].shape == with_joints["action"].shape == (5,)
