"""Writes demonstrations of the reach world as RLDS datasets, one per robot.

Worker processes simulate, render and compress; this process serialises and writes. An episode is a
function of the robot, the seed, the split and its number. Episodes are written in order. So the
files do not depend on the number of workers. They do depend on the renderer: the pixels of
different OpenGL libraries differ a little.
"""

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from loky import ProcessPoolExecutor

from pi0_jax.data.write import (
    ArrayFeature,
    Features,
    ImageFeature,
    TextFeature,
    encode_jpeg,
    read_settings,
    write_rlds,
)
from pi0_jax.errors import InputError
from pi0_jax.progress import progress_bar
from pi0_jax.sim import gl
from pi0_jax.sim.arms import ARMS, HELD_OUT_ROBOT, ROBOTS

if TYPE_CHECKING:
    from pi0_jax.sim.expert import Demonstration

VERSION = "1.0.0"
# The revision is raised whenever the same settings no longer give the same data.
_REVISION = 1
_SPLITS = ("train", "val")
_EPISODES_PER_TASK = 20

METADATA_FEATURES: Features = {
    "robot": TextFeature(),
    "seed": ArrayFeature((), np.int64),
    "success": ArrayFeature((), np.bool_),
    "prompt_color": TextFeature(),
}


def step_features(robot: str, side: int) -> Features:
    """Returns the features of a step of a robot's dataset.

    They are the images (`side` pixels high and wide), joint angles and joint targets in rad, the
    instruction and RLDS's own fields.
    """
    joints = ArrayFeature((len(ARMS[robot].joints),), np.float32)
    flag, number = ArrayFeature((), np.bool_), ArrayFeature((), np.float32)
    image = ImageFeature(side, side)
    return {
        "observation": {"base": image, "wrist": image, "state": joints},
        "action": joints,
        "language_instruction": TextFeature(),
        **dict.fromkeys(("is_first", "is_last", "is_terminal"), flag),
        **dict.fromkeys(("reward", "discount"), number),
    }


def to_rlds(demonstration: "Demonstration") -> dict[str, Any]:
    """Returns the episode in the form that write_rlds takes, its images compressed."""
    last = len(demonstration.steps) - 1
    steps = []
    for i, step in enumerate(demonstration.steps):
        seen = step.observation
        images = {camera: encode_jpeg(image) for camera, image in seen["images"].items()}
        steps.append(
            {
                "observation": {**images, "state": seen["state"]},
                "action": step.action,
                "language_instruction": seen["prompt"],
                "is_first": i == 0,
                "is_last": i == last,
                "is_terminal": i == last,
                "reward": step.reward,
                "discount": 1.0,
            }
        )
    metadata = {
        "robot": demonstration.robot,
        "seed": demonstration.seed,
        "success": True,
        "prompt_color": demonstration.color,
    }
    return {"steps": steps, "episode_metadata": metadata}


def write_reach_data(
    data_dir: str,
    *,
    episodes: int,
    val_episodes: int,
    heldout_episodes: int,
    seed: int,
    workers: int,
    side: int = 64,
) -> Mapping[Path, bool]:
    """Writes the folder data_dir/<robot>/1.0.0 for every arm.

    Args:
        data_dir: the folder of the datasets.
        episodes: the episodes in the training split of reach_arm3 and reach_arm4 each.
        val_episodes: the episodes in the validation split of each robot.
        heldout_episodes: the episodes in the training split of reach_arm5: enough for its
            statistics.
        seed: decides the episodes.
        workers: the number of processes.
        side: image height and width in pixels.

    Returns:
        A folder -> whether it was written now. It was not if it is there already, whole and with
        these settings.

    Raises:
        InputError: a dataset is there already that was made with other settings. Then nothing is
            written.
    """
    sizes = dict(
        episodes=episodes,
        val_episodes=val_episodes,
        heldout_episodes=heldout_episodes,
        workers=workers,
        side=side,
    )
    for name, number in sizes.items():
        if number < 1:
            raise InputError(f"{name}: expected at least 1, found {number}")
    train = {**dict.fromkeys(ROBOTS, episodes), HELD_OUT_ROBOT: heldout_episodes}
    common = {"val": val_episodes, "seed": seed, "side": side}
    settings = {
        robot: {"revision": _REVISION, "train": count, **common} for robot, count in train.items()
    }
    folders = {robot: Path(data_dir) / robot / VERSION for robot in train}
    missing = {folders[robot]: _is_missing(folders[robot], settings[robot]) for robot in train}
    if any(missing.values()):
        gl.prepare_workers()
        gl.require()
        with ProcessPoolExecutor(workers) as pool:
            for robot, folder in folders.items():
                if missing[folder]:
                    _write_robot(pool, data_dir, robot, settings[robot])
    return missing


def _is_missing(folder: Path, settings: Mapping[str, int]) -> bool:
    found = read_settings(folder)
    if found is not None and found != settings:
        mismatch = f"was made with other settings; expected {settings}, found {found}"
        raise InputError(f"{folder}: {mismatch}; choose another folder or delete it")
    return found is None


def _write_robot(pool: Executor, data_dir: str, robot: str, settings: Mapping[str, int]) -> None:
    counts = {split: settings[split] for split in _SPLITS}
    with progress_bar(total=sum(counts.values()), desc=robot, unit="episode") as bar:

        def episodes(split: str) -> Iterator[dict[str, Any]]:
            key = (settings["seed"], list(ARMS).index(robot), _SPLITS.index(split))
            seeds = [_episode_seed(*key, episode) for episode in range(counts[split])]
            size = _EPISODES_PER_TASK
            tasks = [seeds[i : i + size] for i in range(0, len(seeds), size)]
            for done in pool.map(partial(_simulate, robot, settings["side"]), tasks):
                for episode in done:
                    yield episode
                    bar.update()

        write_rlds(
            data_dir,
            robot,
            VERSION,
            steps=step_features(robot, settings["side"]),
            metadata=METADATA_FEATURES,
            splits={split: episodes(split) for split in _SPLITS},
            settings=settings,
        )


def _simulate(robot: str, side: int, seeds: list[int]) -> list[dict[str, Any]]:
    """Runs one task of a worker process.

    A worker loads OpenGL, and the process that writes loads TensorFlow: no process loads both.
    """
    from pi0_jax.sim.expert import demonstrate
    from pi0_jax.sim.reach import ReachEnv

    with contextlib.closing(ReachEnv(robot, side=side)) as env:
        return [to_rlds(demonstrate(env, seed)) for seed in seeds]


def _episode_seed(*key: int) -> int:
    """Returns a non-negative int64, another one for every key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
