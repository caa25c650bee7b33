"""Writes one shard of an import, and goes on with it after its process was killed."""

import dataclasses
import fcntl
import os
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pi0_jax.data.lerobot.declared import Declared
from pi0_jax.data.lerobot.layout import Episode
from pi0_jax.data.lerobot.steps import EPISODE_NUMBER, Encoding, EpisodeReader
from pi0_jax.data.records.example import parse_example
from pi0_jax.data.records.tfrecord import masked_crc, scan_records
from pi0_jax.errors import FULL_DISK, InputError


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """Says which episodes one shard is to hold, and how they are written.

    Attributes:
        folder: the LeRobot dataset.
        declared: what its meta/info.json says: version, rate and features.
        tasks: the instruction of every task_index.
        encoding: how images and numbers are stored, and how exact times must be.
        file: where the shard goes.
        number: its number among all shards.
        split: the split that it belongs to.
        episodes: its episodes, in their order. There is none where all of them are left out.
    """

    folder: Path
    declared: Declared
    tasks: Mapping[int, str]
    encoding: Encoding
    file: Path
    number: int
    split: str
    episodes: tuple[Episode, ...]


@dataclasses.dataclass(frozen=True)
class Written:
    """Says what a shard holds now.

    Attributes:
        number: the shard's number.
        records: its episodes.
        size: the bytes of all its records.
        problem: why it is not whole, in one line; "" if it is.
    """

    number: int
    records: int
    size: int
    problem: str = ""


def write_shard(task: ShardTask, advance: Callable[[int], object]) -> Written:
    """Writes the episodes of a shard that are not in its file yet, and tells frames to `advance`.

    Whole records of a file that is there are kept. What follows them was being written when a
    process was killed, and is cut off. The first wrong episode ends the shard.
    """
    task.file.touch()
    with open(task.file, "r+b", buffering=0) as file:
        # A worker whose command was killed may be writing its last shard still.
        fcntl.flock(file, fcntl.LOCK_EX)
        done, size = _resume(task, file)
        frames = sum(episode.length for episode in task.episodes[:done])
        advance(frames)
        reader = EpisodeReader(task.folder, task.declared, task.tasks, task.encoding)
        try:
            for episode in task.episodes[done:]:
                payload = reader.read(episode)
                _append(file, payload)
                done, size, frames = done + 1, size + len(payload), frames + episode.length
                advance(frames)
        except InputError as error:
            return Written(task.number, done, size, str(error))
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            return Written(task.number, done, size, f"{task.file}: {error.strerror}")
        finally:
            reader.close()
    return Written(task.number, done, size)


def _resume(task: ShardTask, file: BinaryIO) -> tuple[int, int]:
    """Returns how many episodes a file holds and the bytes of their records, and cuts off the rest.

    Raises:
        InputError: it holds other episodes than are to be written.
    """
    found, size, end = [], 0, 0
    try:
        for record in scan_records(task.file):
            if record.damage:
                break
            value = parse_example(record.payload, {EPISODE_NUMBER})[EPISODE_NUMBER]
            found.append(int(np.asarray(value).item()))
            size += len(record.payload)
            end = record.offset + len(record.payload) + _FOOTER.size
    except InputError:
        # The last record is not whole. It begins at `end`, where the next one is written.
        pass
    wanted = [episode.number for episode in task.episodes]
    if found != wanted[: len(found)]:
        expected = f"the episodes {wanted[0]} to {wanted[-1]}" if wanted else "no episode"
        raise InputError(
            f"{task.file}: expected {expected}, as this command leaves them, found {found};"
            f" delete the file, or leave out the same episodes as before"
        )
    file.truncate(end)
    file.seek(end)
    return len(found), size


_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")


def _append(file: BinaryIO, payload: bytes) -> None:
    """Appends a record, framed as pi0_jax.data.records.tfrecord.py draws it."""
    length = struct.pack("<Q", len(payload))
    header = _HEADER.pack(len(payload), masked_crc(length))
    for piece in (header, payload, _FOOTER.pack(masked_crc(payload))):
        rest = memoryview(piece)
        while rest:
            rest = rest[file.write(rest) :]


def write_counted(task: ShardTask, progress: Path) -> Written:
    """Does what `write_shard` does, in a worker, and writes its frames to the file of progress."""
    with open(progress, "r+b", buffering=0) as file:
        return write_shard(
            task,
            lambda frames: os.pwrite(
                file.fileno(), frames.to_bytes(8, sys.byteorder), 8 * task.number
            ),
        )
