"""Finds, for every episode of a LeRobot dataset, its rows of which file and its time in which videos."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pi0_jax.data.lerobot.declared import Declared
from pi0_jax.data.lerobot.tables import read_columns, read_lines, text_column
from pi0_jax.data.lerobot.videos import Clip
from pi0_jax.errors import InputError, expecting

_MOST_REPORTED = 10  # mistakes of one kind


@dataclasses.dataclass(frozen=True)
class Episode:
    """Says where one episode is.

    Attributes:
        number: LeRobot's episode_index.
        length: its frames.
        first: the dataset's number (`index`) of its first frame.
        table: the parquet file that holds its rows.
        table_rows: the number of rows that the file should have.
        table_start: the row of its first frame in that file.
        clips: for each camera with videos, by the feature's name, where its video is.
    """

    number: int
    length: int
    first: int
    table: Path
    table_rows: int
    table_start: int
    clips: Mapping[str, Clip]


def read_tasks(folder: Path, declared: Declared) -> dict[int, str]:
    """Returns the instruction of every task_index.

    Raises:
        InputError: the file is missing or wrong, or names a task twice.
    """
    if declared.version == "v2.1":
        file = folder / "meta" / "tasks.jsonl"
        with expecting("lines with task_index and task", str(file)):
            pairs = [(record["task_index"], record["task"]) for record in read_lines(file)]
    else:
        file = folder / "meta" / "tasks.parquet"
        # The texts are the index of a pandas frame, and have its name.
        column = text_column(file)
        found = read_columns(file, ("task_index", column))
        pairs = list(zip(found["task_index"], found[column], strict=True))
    tasks = dict(pairs)
    if len(tasks) < len(pairs) or not all(
        isinstance(index, int) and isinstance(text, str) for index, text in pairs
    ):
        raise InputError(f"{file}: expected one text for each task_index, found {pairs[:20]}")
    return tasks


def read_episodes(folder: Path, declared: Declared) -> list[Episode]:
    """Returns where every episode is, in their order.

    Raises:
        InputError: a file of meta/ is missing or wrong, episodes have gaps, overlap or differ from
            what info.json counts, or a parquet file or video is missing.
    """
    read = _episodes_v21 if declared.version == "v2.1" else _episodes_v30
    episodes = read(folder, declared)
    _check_counts(folder, declared, episodes)
    files = dict.fromkeys(
        file
        for episode in episodes
        for file in (episode.table, *(clip.file for clip in episode.clips.values()))
    )
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(
            *(f"{file}: expected a file, found none" for file in missing[:_MOST_REPORTED])
        )
    return episodes


def _check_counts(folder: Path, declared: Declared, episodes: Sequence[Episode]) -> None:
    """Compares the episodes with each other and with what info.json counts."""
    meta = folder / "meta"
    numbers = [episode.number for episode in episodes]
    if not episodes or numbers != list(range(len(episodes))):
        wrong = next((i for i, number in enumerate(numbers) if number != i), 0)
        raise InputError(
            f"{meta}: expected the episodes 0, 1, 2 and so on, found {numbers[wrong : wrong + 1] or 'none'} at place {wrong}"
        )
    for episode, following in itertools.pairwise(episodes):
        if following.first != episode.first + episode.length:
            raise InputError(
                f"{meta}: episode {following.number}: expected to begin at frame {episode.first + episode.length},"
                f" where episode {episode.number} ends, found {following.first}"
            )
    found = {
        "total_episodes": len(episodes),
        "total_frames": sum(episode.length for episode in episodes),
    }
    for name, count in found.items():
        if name in declared.info and declared.info[name] != count:
            raise InputError(
                f"{meta / 'info.json'}: {name}: expected {count}, as the episodes' records say, found {declared.info[name]!r}"
            )


def _template(declared: Declared, name: str, file: Path) -> str:
    found = declared.info[name] if name in declared.info else None
    if not isinstance(found, str):
        raise InputError(f"{file}: {name}: expected a path with places to fill, found {found!r}")
    return found


def _video_names(declared: Declared) -> list[str]:
    return [feature.name for feature in declared.cameras if feature.dtype == "video"]


def _length(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: length: expected a number of frames above 0, found {value!r}")
    return value


def _episodes_v21(folder: Path, declared: Declared) -> list[Episode]:
    """Reads episodes.jsonl; each episode has files of its own."""
    info, file = folder / "meta" / "info.json", folder / "meta" / "episodes.jsonl"
    videos = _video_names(declared)
    table_path = _template(declared, "data_path", info)
    video_path = _template(declared, "video_path", info) if videos else ""
    episodes, first = [], 0
    with expecting("lines with episode_index and length, and paths of info.json", str(file)):
        chunk_size = int(declared.info["chunks_size"])
        for record in sorted(read_lines(file), key=lambda record: int(record["episode_index"])):
            number = record["episode_index"]
            length = _length(record["length"], f"{file}: episode {number}")
            where = {"episode_chunk": number // chunk_size, "episode_index": number}
            clips = {
                name: Clip(folder / video_path.format(video_key=name, **where), length, 0.0)
                for name in videos
            }
            table = folder / table_path.format(**where)
            episodes.append(Episode(number, length, first, table, length, 0, clips))
            first += length
    return episodes


def _episodes_v30(folder: Path, declared: Declared) -> list[Episode]:
    """Reads the tables of meta/episodes; a file holds several episodes, one behind the other."""
    info = folder / "meta" / "info.json"
    videos = _video_names(declared)
    table_path = _template(declared, "data_path", info)
    video_path = _template(declared, "video_path", info) if videos else ""
    records = sorted(
        _records_v30(folder / "meta" / "episodes", videos),
        key=lambda record: record["episode_index"],
    )
    with expecting("columns of meta/episodes and paths of info.json", str(folder / "meta")):
        tables = [
            folder / table_path.format(chunk_index=chunk, file_index=number)
            for record in records
            for chunk, number in [(record["data/chunk_index"], record["data/file_index"])]
        ]
        clips = {name: _clips(folder, video_path, name, records, declared.fps) for name in videos}
    rows, starts = Counter[Path](), []
    for record, table in zip(records, tables, strict=True):
        starts.append(rows[table])
        rows[table] += record["length"]
    return [
        Episode(
            number=record["episode_index"],
            length=record["length"],
            first=record["dataset_from_index"],
            table=table,
            table_rows=rows[table],
            table_start=start,
            clips={name: clips[name][place] for name in videos},
        )
        for place, (record, table, start) in enumerate(zip(records, tables, starts, strict=True))
    ]


def _records_v30(folder: Path, videos: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the records of all episodes."""
    columns = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    columns += ["data/chunk_index", "data/file_index"]
    for name in videos:
        columns += [f"videos/{name}/{what}" for what in _CLIP_COLUMNS]
    files = sorted(folder.glob("*/*.parquet"))
    if not files:
        raise InputError(f"{folder}: expected parquet files with the episodes, found none")
    for file in files:
        found = read_columns(file, columns)
        for values in zip(*found.values(), strict=True):
            record = dict(zip(found, values, strict=True))
            where = f"{file}: episode {record['episode_index']}"
            for name, value in record.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise InputError(f"{where}: {name}: expected a number, found {value!r}")
            length = _length(record["length"], where)
            if record["dataset_to_index"] - record["dataset_from_index"] != length:
                ends = f"{record['dataset_from_index']} to {record['dataset_to_index']}"
                raise InputError(f"{where}: expected {length} frames, its length, found {ends}")
            yield record


_CLIP_COLUMNS = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


def _clips(
    folder: Path, template: str, name: str, records: Sequence[Mapping[str, Any]], fps: float
) -> list[Clip]:
    """Returns where one camera's video of each episode is, and checks its time.

    Raises:
        InputError: an episode lasts longer or shorter in the video than its frames do, or begins
            before the one before it ends.
    """
    files: list[Path] = []
    frames, ends = Counter[Path](), dict[Path, float]()
    half = 0.5 / fps
    for record in records:
        chunk, number, start, end = (record[f"videos/{name}/{what}"] for what in _CLIP_COLUMNS)
        file = folder / template.format(video_key=name, chunk_index=chunk, file_index=number)
        where = f"{folder / 'meta'}: episode {record['episode_index']}: {name}"
        lasts = record["length"] / fps
        if not (math.isfinite(start) and start >= 0 and abs(end - start - lasts) < half):
            raise InputError(
                f"{where}: expected {lasts:.6f} s of video for {record['length']} frames at {fps:g} Hz, found {start} to {end} s"
            )
        if file in ends and start < ends[file] - half:
            raise InputError(
                f"{where}: expected to begin behind the episode before it, at {ends[file]:.6f} s, found {start:.6f} s"
            )
        ends[file] = end
        frames[file] += record["length"]
        files.append(file)
    starts = [float(record[f"videos/{name}/from_timestamp"]) for record in records]
    return [Clip(file, frames[file], start) for file, start in zip(files, starts, strict=True)]
