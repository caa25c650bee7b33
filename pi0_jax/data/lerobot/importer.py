"""Imports a LeRobot dataset as RLDS, in one pass, in several processes.

    data_dir/name/1.0.0.incomplete-import/     until the dataset is whole
        import.json                            the settings; another command must have the same
        lock, progress
        dataset/                               what becomes data_dir/name/1.0.0

A shard holds whole episodes. Which ones does not depend on the number of workers, so the bytes do
not either. A command that was killed goes on behind the last whole episode of each shard. An episode
that is left out moves no other one to another shard, so that what is done stays.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.data.lerobot.declared import TEXT_DTYPE, Declared, Feature, read_declared
from pi0_jax.data.lerobot.layout import Episode, read_episodes, read_tasks
from pi0_jax.data.lerobot.processes import write_shards
from pi0_jax.data.lerobot.shards import ShardTask, Written
from pi0_jax.data.lerobot.steps import Encoding
from pi0_jax.data.write import (
    ArrayFeature,
    ImageFeature,
    TextFeature,
    read_settings,
    write_info,
)
from pi0_jax.errors import InputError, expecting, optional_packages
from pi0_jax.files import replacing

VERSION = "1.0.0"
_LEAST_FRAMES = 2000  # of a shard, so that there is work for several processes
_MOST_SHARDS = 1000
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Imported:
    """Holds the result of an import.

    Attributes:
        folder: the RLDS dataset, data_dir/name/version.
        declared: what meta/info.json of the LeRobot dataset says: version, rate and features.
        episodes: the number of episodes, by split.
        frames: the number of all frames.
        written: whether it was written now. It was not if it was there already.
    """

    folder: Path
    declared: Declared
    episodes: Mapping[str, int]
    frames: int
    written: bool


def import_lerobot(
    folder: Path,
    data_dir: Path,
    *,
    name: str = "",
    encoding: Encoding | None = None,
    without: Sequence[str] = (),
    skip_episodes: Sequence[int] = (),
    workers: int = 1,
) -> Imported:
    """Writes the LeRobot dataset in `folder` as the RLDS dataset data_dir/name/1.0.0.

    Args:
        folder: a LeRobotDataset v2.1 or v3.0.
        data_dir: the folder of RLDS datasets.
        name: the RLDS dataset's name; by default it is made of the folder's.
        encoding: how images and numbers are stored, and how exact times must be.
        without: features that are left out.
        skip_episodes: episodes that are left out.
        workers: the number of processes.

    Raises:
        InputError: something of the dataset or of the settings is wrong, or another import writes
            there. Episodes that are done are kept, and the next import goes on behind them.
    """
    encoding = encoding or Encoding()
    name = dataset_name(name, folder)
    declared = read_declared(folder, without)
    tasks = read_tasks(folder, declared)
    episodes = read_episodes(folder, declared)
    skipped = frozenset(skip_episodes)
    splits = _splits(folder, declared, episodes, skipped)
    settings = {
        "source": f"LeRobotDataset {declared.version}",
        "info": dict(declared.info),
        "without": sorted(without),
        **dataclasses.asdict(encoding),
    }
    all_settings = settings | {"skipped_episodes": sorted(skipped)}
    final = data_dir / name / VERSION
    work = final.with_name(f"{VERSION}.incomplete-import")
    missing = _is_missing(final, all_settings)
    if missing:
        with optional_packages():  # TFDS writes the last files, perhaps hours later
            import tensorflow_datasets as _  # noqa: F401
        with _working_folder(work, settings) as dataset:
            # Another import may have ended meanwhile.
            if missing := _is_missing(final, all_settings):
                shards = [
                    ShardTask(folder, declared, tasks, encoding, file, number, split, chosen)
                    for number, (split, file, chosen) in enumerate(
                        _plan(dataset, name, splits, skipped)
                    )
                ]
                done = write_shards(shards, work / "progress", workers, name)
                _finish(dataset, name, declared, encoding, shards, done, all_settings)
                os.rename(dataset, final)
    shutil.rmtree(work, ignore_errors=True)
    kept = {split: _without(chosen, skipped) for split, chosen in splits.items()}
    counts = {split: len(chosen) for split, chosen in kept.items()}
    frames = sum(episode.length for chosen in kept.values() for episode in chosen)
    return Imported(final, declared, counts, frames, missing)


def dataset_name(name: str, folder: Path) -> str:
    """Returns the RLDS dataset's name, made of the folder's where none is given.

    Raises:
        InputError: it is no name for TFDS.
    """
    made = name or re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_")
    if not _NAME.fullmatch(made):
        raise InputError(
            f"name: expected small letters, digits and _, beginning with a letter, found {made!r}; give one with --name"
        )
    return made


def _splits(
    folder: Path, declared: Declared, episodes: Sequence[Episode], skipped: frozenset[int]
) -> dict[str, list[Episode]]:
    """Returns the episodes of each split, and of these also the ones that are skipped.

    Raises:
        InputError: an episode to skip is not there, a split is left empty, or the splits of
            info.json do not have every episode once.
    """
    if unknown := sorted(skipped - {episode.number for episode in episodes}):
        raise InputError(
            f"skip_episodes: expected numbers from 0 to {len(episodes) - 1}, found {unknown[0]}"
        )
    given = declared.info["splits"] if "splits" in declared.info else None
    whole = {"train": f"0:{len(episodes)}"}
    splits: dict[str, list[Episode]] = {}
    where = f"{folder / 'meta' / 'info.json'}: splits"
    with expecting('ranges of episodes such as {"train": "0:50"}', where):
        for split, ends in sorted(
            (given or whole).items(), key=lambda it: int(it[1].split(":")[0])
        ):
            start, stop = map(int, ends.split(":"))
            if not _NAME.fullmatch(split):
                raise InputError(f"{where}: expected a name of small letters, found {split!r}")
            splits[split] = list(episodes[start:stop])
    if [episode for chosen in splits.values() for episode in chosen] != list(episodes):
        raise InputError(
            f"{where}: expected ranges that have each of {len(episodes)} episodes once, found {given}"
        )
    if empty := [split for split, chosen in splits.items() if not _without(chosen, skipped)]:
        raise InputError(
            f"{where}: {empty[0]}: expected an episode that is not skipped, found none"
        )
    return splits


def _without(episodes: Sequence[Episode], skipped: frozenset[int]) -> tuple[Episode, ...]:
    return tuple(episode for episode in episodes if episode.number not in skipped)


def _plan(
    dataset: Path, name: str, splits: Mapping[str, Sequence[Episode]], skipped: frozenset[int]
) -> Iterator[tuple[str, Path, tuple[Episode, ...]]]:
    """Yields the split, the file and the episodes of each shard.

    Skipped episodes count where shards begin and end, and then are dropped. A shard of which all
    are skipped is an empty file.
    """
    frames = sum(episode.length for chosen in splits.values() for episode in chosen)
    least = max(_LEAST_FRAMES, frames // _MOST_SHARDS)
    for split, episodes in splits.items():
        groups: list[list[Episode]] = []
        room = 0
        for episode in episodes:
            if room <= 0:
                groups.append([])
                room = least
            groups[-1].append(episode)
            room -= episode.length
        for number, group in enumerate(groups):
            file = f"{name}-{split}.tfrecord-{number:05d}-of-{len(groups):05d}"
            yield split, dataset / file, _without(group, skipped)


@contextlib.contextmanager
def _working_folder(work: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Gives the folder of the unfinished dataset, to this process alone.

    Raises:
        InputError: another import works there, or one with other settings has begun.
    """
    (work / "dataset").mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{work}: another import is writing there") from error
        file = work / "import.json"
        if file.exists() and (begun := json.loads(file.read_text())) != settings:
            different = next(
                key for key in settings if key not in begun or begun[key] != settings[key]
            )
            raise InputError(
                f"{work}: an import with other settings has begun: {different}; take the same ones, or delete the folder"
            )
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(settings))
        yield work / "dataset"


def _is_missing(final: Path, settings: Mapping[str, Any]) -> bool:
    """Returns whether the dataset is not there yet.

    Raises:
        InputError: one that was made in another way is there.
    """
    found = read_settings(final)
    if found is not None and found != settings:
        raise InputError(
            f"{final}: a dataset that was made in another way is here already; choose another --name or folder, or delete it"
        )
    return found is None


def _finish(
    dataset: Path,
    name: str,
    declared: Declared,
    encoding: Encoding,
    shards: Sequence[ShardTask],
    done: Sequence[Written],
    settings: Mapping[str, Any],
) -> None:
    """Writes what TFDS needs to open the dataset."""
    lengths: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for shard, written in zip(shards, done, strict=True):
        lengths.setdefault(shard.split, []).append(written.records)
        sizes[shard.split] = sizes.get(shard.split, 0) + written.size
    write_info(
        dataset,
        name,
        VERSION,
        steps=step_features(declared, encoding),
        metadata={"episode_index": ArrayFeature((), np.int64)},
        shards={split: (lengths[split], sizes[split]) for split in lengths},
        settings=settings,
    )


def step_features(declared: Declared, encoding: Encoding) -> dict[str, Any]:
    """Returns the features of a step, as write_rlds takes them."""
    steps: dict[str, Any] = {}
    for feature in declared.features:
        if feature.name == "episode_index":  # it is in the episode's metadata
            continue
        inner = steps
        for key in feature.path[:-1]:
            inner = inner.setdefault(key, {})
        inner[feature.path[-1]] = _step_feature(feature, encoding)
    flag = ArrayFeature((), np.bool_)
    return steps | {"is_first": flag, "is_last": flag, "language_instruction": TextFeature()}


def _step_feature(feature: Feature, encoding: Encoding) -> Any:
    if feature.is_camera:
        height, width, _ = feature.shape
        return ImageFeature(height, width, encoding.images)
    if feature.dtype == TEXT_DTYPE:
        return TextFeature()
    return ArrayFeature(feature.shape, feature.stored_dtype)
