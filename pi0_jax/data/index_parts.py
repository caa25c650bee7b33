"""Makes one shard's share of an index, in one process, and keeps it until the index is whole.

So a build that was killed goes on from the parts that it had finished.

    <index root>/.parts-<digest of the version>/
        00000.npz ...     the columns of shard 0, whole as soon as it has this name
        progress          see workers.py

In a part steps, kept frames and prompts are numbered from 0. The merge moves them to their places.
"""

import dataclasses
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pi0_jax.data import storage
from pi0_jax.data.columns import EPISODE_COLUMNS, step_columns
from pi0_jax.data.encoded_images import SizeRange
from pi0_jax.data.episode_index import IndexedEpisode, index_episode
from pi0_jax.data.episodes import RawEpisode, Shard, raw_episode
from pi0_jax.data.oddities import Told
from pi0_jax.data.rows import Dataset
from pi0_jax.data.tfrecord import Record, scan_records
from pi0_jax.data.validate import Validator
from pi0_jax.errors import InputError
from pi0_jax.files import replacing

# Only the merge knows the split and the number of the shard.
_OWN_COLUMNS = {
    name: dtype for name, dtype in EPISODE_COLUMNS.items() if name not in ("split", "shard")
}


class Part(NamedTuple):
    """Holds what one shard gives to an index: T steps and E episodes.

    Attributes:
        steps: columns of the steps, [T, ...]. Prompts are given by their number in `prompts`, -1
            for none.
        frames: int64[kept], ascending.
        episodes: EPISODE_COLUMNS but for split and shard, [E].
        prompts: the distinct prompts, in order of first appearance.
        image_sizes: one for each view; None if the part has no episode.
        skipped: for each episode that was left out, why.
        told: what is odd about the others.
    """

    steps: dict[str, np.ndarray]
    frames: np.ndarray
    episodes: dict[str, np.ndarray]
    prompts: list[str]
    image_sizes: list[SizeRange | None]
    skipped: list[str]
    told: Told


@dataclasses.dataclass(frozen=True)
class PartTask:
    """Holds all that a process needs to make one part.

    Attributes:
        row: the dataset's record.
        shard: the shard file.
        number: the shard's number.
        fingerprint: of the shard's file, as the index's version says it: the size in bytes comes
            first.
        folder: the folder of the parts.
        decode_all: whether all images are decoded.
        skip: how many bad episodes may be left out.
    """

    row: Dataset
    shard: Shard
    number: int
    fingerprint: list[Any]
    folder: Path
    decode_all: bool
    skip: int

    @property
    def size(self) -> int:
        """Returns the size of the shard's file, in bytes."""
        return self.fingerprint[0]

    @property
    def path(self) -> Path:
        """Returns the file of the part."""
        return self.folder / f"{self.number:05d}.npz"


def make_part(task: PartTask, on_read: Callable[[int], object]) -> list[str]:
    """Makes the part, unless it is there.

    Args:
        task: what to make.
        on_read: is called with the number of bytes read so far, and at last with all.

    Returns:
        For each episode that was left out, why.

    Raises:
        InputError: as for `index_shard`, or the file changed.
        FileNotFoundError: the folder of the parts is gone, since another process has made the
            index.
    """
    if task.path.exists():
        on_read(task.size)
        return load_skipped(task.path)
    part = index_shard(
        task.row, task.shard, decode_all=task.decode_all, skip=task.skip, on_read=on_read
    )
    if list(storage.identity(task.shard.path)) != task.fingerprint:
        raise InputError(f"dataset {task.row.name}: {task.shard.path} changed while it was indexed")
    _save_part(part, task.path)
    on_read(task.size)
    return part.skipped


def index_shard(
    row: Dataset, shard: Shard, *, decode_all: bool, skip: int, on_read: Callable[[int], object]
) -> Part:
    """Reads a shard from start to end. It holds the shard's columns and one record.

    Args:
        row: the dataset's record.
        shard: the shard file.
        decode_all: whether all images are decoded.
        skip: how many bad episodes may be left out.
        on_read: is called with the number of bytes read so far.

    Raises:
        InputError: the file cannot be read to its end, the number of records is not the declared
            one, or there are more than `skip` bad episodes.
    """
    collected = _Columns(row)
    validator = Validator(row)
    records = 0
    for record in scan_records(shard.path):
        records += 1
        if records <= shard.episodes:
            try:
                collected.append(*_episode(row, shard, record, validator, decode_all=decode_all))
            except InputError as error:
                collected.skipped.append(str(error))
                check_skipped(collected.skipped, skip)
        on_read(record.offset + len(record.payload))
    if records != shard.episodes:
        raise InputError(
            f"dataset {row.name}: {shard.path}: expected {shard.episodes} records as dataset_info.json says, found {records}"
        )
    return collected.part(validator.oddities.told)


def check_skipped(skipped: list[str], allowed: int) -> None:
    """Raises InputError, with the last bad episode's message, if more are bad than are allowed."""
    if len(skipped) > allowed:
        raise InputError(
            skipped[-1]
            + (
                f" (and {len(skipped) - 1} more bad episodes; {allowed} may be left out)"
                if allowed
                else ""
            )
        )


def _episode(
    row: Dataset, shard: Shard, record: Record, validator: Validator, *, decode_all: bool
) -> tuple[RawEpisode, IndexedEpisode]:
    """Reads and indexes the episode of one record."""
    if record.damage:
        number = shard.first + record.number
        raise InputError(
            f"dataset {row.name}: split {shard.split} episode {number}: {shard.path}: {record.damage}"
        )
    raw = raw_episode(row, shard, record)
    return raw, index_episode(row, raw, validator, decode_all=decode_all)


class _Columns:
    """Holds each column of the episodes so far as a list of arrays: appending costs no copy."""

    def __init__(self, row: Dataset) -> None:
        self.skipped: list[str] = []
        self._layout = step_columns(row)
        self._chunks: dict[str, list[np.ndarray]] = {
            name: [] for name in ("state", "action", "prompt")
        }
        self._frames: list[np.ndarray] = []
        self._offsets: list[list[np.ndarray]] = [[] for _ in row.views]
        self._lengths: list[list[np.ndarray]] = [[] for _ in row.views]
        self._episodes: list[tuple[int, ...]] = []
        self._prompts: dict[str, int] = {}
        self._sizes: list[SizeRange | None] = [None] * len(row.views)
        self._steps = 0

    def append(self, raw: RawEpisode, episode: IndexedEpisode) -> None:
        """Appends one episode."""
        kept = np.flatnonzero(episode.keep)
        self._chunks["state"].append(episode.state)
        self._chunks["action"].append(episode.action)
        self._chunks["prompt"].append(self._number_prompts(raw))
        self._frames.append(kept + self._steps)
        for view, sizes in enumerate(episode.image_sizes):
            self._offsets[view].append(episode.image_offsets[view])
            self._lengths[view].append(episode.image_lengths[view])
            self._sizes[view] = sizes.union(self._sizes[view])
        self._episodes.append(
            (
                self._steps,
                raw.steps,
                episode.stop,
                raw.record,
                raw.offset,
                len(raw.payload),
                episode.success,
                len(kept),
            )
        )
        self._steps += raw.steps

    def part(self, told: Told) -> Part:
        """Returns all episodes as a part."""
        chunks = self._chunks | {
            "image_offset": _columns_to_rows(self._offsets),
            "image_length": _columns_to_rows(self._lengths),
        }
        steps = {
            name: _concatenated(chunks[name], dtype, shape)
            for name, (dtype, shape) in self._layout.items()
        }
        table = np.array(self._episodes, np.int64).reshape(-1, len(_OWN_COLUMNS))
        episodes = {
            name: table[:, i].astype(dtype) for i, (name, dtype) in enumerate(_OWN_COLUMNS.items())
        }
        return Part(
            steps,
            _concatenated(self._frames, "int64", ()),
            episodes,
            list(self._prompts),
            self._sizes,
            self.skipped,
            told,
        )

    def _number_prompts(self, raw: RawEpisode) -> np.ndarray:
        """Returns the numbers of an episode's prompts, int32[T, P]. New prompts get new numbers."""
        numbers = np.empty((raw.steps, len(raw.prompts)), np.int32)
        for field, texts in enumerate(raw.prompts):
            numbers[:, field] = [
                self._prompts.setdefault(text, len(self._prompts)) if text else -1 for text in texts
            ]
        return numbers


def _columns_to_rows(views: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Makes each view's arrays a column of one array [T, V]. Without episodes there is no array."""
    return (
        [np.stack([np.concatenate(view) for view in views], axis=1)] if views and views[0] else []
    )


def _concatenated(chunks: list[np.ndarray], dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns arrays one after the other, also if there are none."""
    return np.concatenate([np.empty((0, *shape), dtype), *chunks]).astype(dtype, copy=False)


def _save_part(part: Part, path: Path) -> None:
    """Writes a part. The file appears whole, by one rename."""
    summary = json.dumps(
        {
            "prompts": part.prompts,
            "image_sizes": part.image_sizes,
            "skipped": part.skipped,
            "told": part.told,
        }
    )
    columns: dict[str, Any] = {
        "summary": np.frombuffer(summary.encode(), np.uint8),
        "frames": part.frames,
        **{f"step_{name}": column for name, column in part.steps.items()},
        **{f"episode_{name}": column for name, column in part.episodes.items()},
    }
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **columns)
        file.flush()
        os.fsync(file.fileno())


def load_part(path: Path) -> Part:
    """Reads a part.

    Raises:
        InputError: the file is damaged.
        FileNotFoundError: the file is gone.
    """
    columns = _read_part(path)
    summary = _summary(columns)
    return Part(
        steps=_below(columns, "step_"),
        frames=columns["frames"],
        episodes=_below(columns, "episode_"),
        prompts=summary["prompts"],
        image_sizes=[
            None if sizes is None else SizeRange(*map(tuple, sizes))
            for sizes in summary["image_sizes"]
        ],
        skipped=summary["skipped"],
        # A build that an older version began has none.
        told={text: tuple(value) for text, value in summary.get("told", {}).items()},
    )


def load_skipped(path: Path) -> list[str]:
    """Reads `Part.skipped` alone."""
    return _summary(_read_part(path, "summary"))["skipped"]


def _read_part(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Returns the arrays of these names, or all arrays."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: expected a part of an index, found: {error}; delete it and build again"
        ) from error


def _summary(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns what a part holds beside arrays."""
    return json.loads(columns["summary"].tobytes())


def _below(columns: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns the columns whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): column
        for name, column in columns.items()
        if name.startswith(prefix)
    }
