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
from pi0_jax.data.index.columns import EPISODE_COLUMNS, step_columns
from pi0_jax.data.index.episode import index_episode
from pi0_jax.data.index.oddities import Told
from pi0_jax.data.index.validate import Validator
from pi0_jax.data.records.episodes import RawEpisode, Shard, raw_episode
from pi0_jax.data.records.images import SizeRange
from pi0_jax.data.records.tfrecord import scan_records
from pi0_jax.data.rows import Dataset, Standardised
from pi0_jax.errors import InputError
from pi0_jax.files import replacing

# Only the merge knows the split and the number of the shard.
_OWN_COLUMNS = {
    name: dtype for name, dtype in EPISODE_COLUMNS.items() if name not in ("split", "shard")
}


class Part(NamedTuple):
    """Holds what one shard gives to an index: T steps and E episodes.

    Attributes:
        columns: "frames", int64[kept], ascending; "step_" and the name of each column of the steps,
            [T, ...], where prompts are given by their number in `prompts`, -1 for none; and
            "episode_" and the name of each of EPISODE_COLUMNS but split and shard, [E].
        prompts: the distinct prompts, in order of first appearance.
        image_sizes: one for each view; None if the part has no episode.
        skipped: for each episode that was left out, why.
        told: what is odd about the others.
    """

    columns: dict[str, np.ndarray]
    prompts: list[str]
    image_sizes: list[SizeRange | None]
    skipped: list[str]
    told: Told


@dataclasses.dataclass(frozen=True)
class PartTask:
    """Holds all that a process needs to make one part."""

    row: Dataset
    shard: Shard
    number: int  # the shard's
    fingerprint: list[Any]  # of the shard's file, as the index's version says it
    folder: Path  # of the parts
    decode_all: bool
    skip: int  # how many bad episodes may be left out

    @property
    def size(self) -> int:
        """Returns the size of the shard's file, in bytes."""
        return self.fingerprint[0]

    @property
    def path(self) -> Path:
        """Returns the file of the part."""
        return self.folder / f"{self.number:05d}.npz"


def make_part(task: PartTask, on_read: Callable[[int], object]) -> list[str]:
    """Makes the part, unless it is there, and returns why each episode was left out.

    `on_read` is called with the number of bytes read so far, and at last with all.

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

    `on_read` is called with the number of bytes read so far.

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
                raw = raw_episode(row, shard, record)
                episode = index_episode(row, raw, validator, decode_all=decode_all)
                collected.append(raw, *episode)
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
        more = f" (and {len(skipped) - 1} more bad episodes; {allowed} may be left out)"
        raise InputError(skipped[-1] + (more if allowed else ""))


class _Columns:
    """Holds each column of the episodes so far as a list of arrays: appending costs no copy."""

    def __init__(self, row: Dataset) -> None:
        self.skipped: list[str] = []
        self._steps = 0
        self._layout = step_columns(row)
        self._columns: dict[str, list[np.ndarray]] = {name: [] for name in self._layout}
        self._frames: list[np.ndarray] = []
        self._episodes: list[tuple[int, ...]] = []
        self._prompts: dict[str, int] = {}
        self._sizes: list[SizeRange | None] = [None] * len(row.views)

    def append(self, raw: RawEpisode, episode: Standardised, sizes: tuple[SizeRange, ...]) -> None:
        """Appends one episode."""
        # int64[V, 2, T]; V is 0 for a robot without cameras
        ranges = [[view.offsets, view.lengths] for view in raw.images.values()]
        images = np.array(ranges, np.int64).reshape(len(ranges), 2, raw.steps)
        columns = {
            "state": episode.state,
            "action": episode.action,
            "image_offset": images[:, 0].T + raw.offset,
            "image_length": images[:, 1].T,
            "prompt": self._number_prompts(raw),
        }
        for name, column in columns.items():
            self._columns[name].append(column)
        kept = np.flatnonzero(episode.keep)
        self._frames.append(kept + self._steps)
        success = -1 if episode.success is None else int(episode.success)
        place = (raw.record, raw.offset, len(raw.payload))
        self._episodes.append(  # in the order of _OWN_COLUMNS
            (self._steps, raw.steps, episode.stop, *place, success, len(kept))
        )
        self._sizes = [found.union(known) for found, known in zip(sizes, self._sizes, strict=True)]
        self._steps += raw.steps

    def part(self, told: Told) -> Part:
        """Returns all episodes as a part."""
        columns = {
            f"step_{name}": _concatenated(self._columns[name], dtype, shape)
            for name, (dtype, shape) in self._layout.items()
        }
        table = np.array(self._episodes, np.int64).reshape(-1, len(_OWN_COLUMNS))
        for i, (name, dtype) in enumerate(_OWN_COLUMNS.items()):
            columns[f"episode_{name}"] = table[:, i].astype(dtype)
        columns["frames"] = _concatenated(self._frames, "int64", ())
        return Part(columns, list(self._prompts), self._sizes, self.skipped, told)

    def _number_prompts(self, raw: RawEpisode) -> np.ndarray:
        """Returns the numbers of an episode's prompts, int32[T, P]. New prompts get new numbers."""
        numbers = np.empty((raw.steps, len(raw.prompts)), np.int32)
        for field, texts in enumerate(raw.prompts):
            numbers[:, field] = [
                self._prompts.setdefault(text, len(self._prompts)) if text else -1 for text in texts
            ]
        return numbers


def _concatenated(chunks: list[np.ndarray], dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns arrays one after the other, also if there are none."""
    return np.concatenate([np.empty((0, *shape), dtype), *chunks]).astype(dtype, copy=False)


def _save_part(part: Part, path: Path) -> None:
    """Writes a part. The file appears whole, by one rename."""
    summary = json.dumps(
        {name: value for name, value in part._asdict().items() if name != "columns"}
    )
    with replacing(path) as temporary, open(temporary, "wb") as file:
        columns: dict[str, Any] = part.columns
        np.savez(file, summary=np.frombuffer(summary.encode(), np.uint8), **columns)
        file.flush()
        os.fsync(file.fileno())


def load_part(path: Path) -> Part:
    """Reads a part.

    Raises:
        InputError: the file is damaged.
        FileNotFoundError: the file is gone.
    """
    columns = _read_part(path)
    summary = json.loads(columns.pop("summary").tobytes())
    sizes = [sizes and SizeRange(*map(tuple, sizes)) for sizes in summary["image_sizes"]]
    # A build that an older version began has told nothing.
    told = {text: tuple(value) for text, value in summary.get("told", {}).items()}
    return Part(columns, summary["prompts"], sizes, summary["skipped"], told)


def load_skipped(path: Path) -> list[str]:
    """Reads `Part.skipped` alone."""
    return json.loads(_read_part(path, "summary")["summary"].tobytes())["skipped"]


def _read_part(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Returns the arrays of these names, or all arrays."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: expected a part of an index, found: {error}; delete it and build again"
        ) from error
