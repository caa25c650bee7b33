"""Builds the index of one dataset: one pass over its files, every record verified, every episode validated.

    <index root>/<digest of the version>/
        index.json                    what it was made for, counts, shards, image sizes
        state, action                 float32[N, S], float32[N, A]        N steps of all episodes, one after the other
        image_offset, image_length    int64[N, V], uint32[N, V]           where each view's bytes lie in the shard
        prompt                        int32[N, P]                         for each language field a prompt, -1 for an empty one
        episode_*                     one entry an episode: EPISODE_COLUMNS
        frames_train, frames_val      int64[kept]                         the steps that may be drawn
        prompt_text, prompt_end       uint8[bytes], int64[p]              the distinct prompts, one after the other

The directory appears by one rename, whole. Its name is its version's, so that processes that build at the same time
make the same directory, and a job that reads an older version is not disturbed.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from pi0_jax.data import storage
from pi0_jax.data.columns import ColumnWriters
from pi0_jax.data.encoded_images import BadImageError, decode_image, image_sizes
from pi0_jax.data.episodes import RawEpisode, Shard, open_shards, read_shard
from pi0_jax.data.rows import STEPS, DatasetRow, Standardised
from pi0_jax.data.tfrecord import FRAMING_BYTES
from pi0_jax.data.version import index_version, version_digest
from pi0_jax.errors import InputError

SPLITS = ("train", "val")
VALIDATION_SPLITS = ("val", "validation", "test")  # a dataset's own names for what is not trained on
EPISODE_COLUMNS = {
    "start": "int64",  # number of its first step in the index
    "length": "int32",
    "stop": "int32",  # steps [0, stop) have an action
    "split": "uint8",  # place in SPLITS
    "shard": "int32",
    "record": "int32",  # within the shard
    "offset": "int64",  # of the record's payload within the shard
    "bytes": "int64",  # of the payload
    "success": "int8",  # 1 or 0, -1 where the dataset does not say
    "kept": "int32",  # steps that may be drawn
}
INDEX_FILE = "index.json"
_BUILDING = ".building-"
_ABANDONED_AFTER_S = 24 * 3600
_DECODE_EVERY = 64  # episodes; one step of each of these is decoded whole, every image's header is always read


class _Episode(NamedTuple):
    """What the index keeps of one episode."""

    standardised: Standardised
    offsets: np.ndarray  # int64[T, V], within the shard file
    lengths: np.ndarray  # int64[T, V]
    sizes: np.ndarray  # int32[T, V, 2]: height, width


def build_index(row: DatasetRow, directory: Path, root: Path, *, progress: bool) -> Path:
    """Builds the index of the dataset in `directory` below `root` and gives its path: another process's, if that won.

    Raises InputError: see episodes.py for files and fields, `_index_episode` for their contents; root not writable.
    """
    version = index_version(row, directory)
    target = root / version_digest(version)
    with _temporary_sibling(row, root) as building:
        counts = _write_index(row, open_shards(row, directory), building, progress=progress)
        if index_version(row, directory) != version:
            raise InputError(f"dataset {row.name}: files in {directory} changed while they were indexed")
        _write_json(building / INDEX_FILE, {"version": version, "dataset_version": directory.name, **counts})
        _publish(building, target)
    return target


def _write_index(row: DatasetRow, shards: list[Shard], directory: Path, *, progress: bool) -> dict[str, Any]:
    held_out = _held_out(row, shards)
    prompts: dict[str, int] = {}
    image_range: dict[str, dict[str, list[int]] | None] = dict.fromkeys(row.views)
    start, episodes = 0, 0
    with ColumnWriters(directory, _layout(row)) as columns:
        for shard_number, raw in _read_all(row, shards, progress=progress):
            episode = _index_episode(row, raw, decode=episodes % _DECODE_EVERY == 0)
            split = _split_of(raw, shards[shard_number], held_out)
            frames = start + np.flatnonzero(episode.standardised.keep)
            columns.append(**_step_columns(episode), prompt=_number_prompts(raw, prompts), **{f"frames_{SPLITS[split]}": frames})
            place = (split, shard_number, raw.record, raw.offset, len(raw.payload))
            success = -1 if episode.standardised.success is None else int(episode.standardised.success)
            columns.append(**_episode_columns((start, raw.steps, episode.standardised.stop, *place, success, len(frames))))
            image_range = {view: _widen(image_range[view], episode.sizes[:, v]) for v, view in enumerate(row.views)}
            start, episodes = start + raw.steps, episodes + 1
        columns.append(**_prompt_columns(list(prompts)))
    files = [shard.path.name for shard in shards]
    counts = {"steps": start, "episodes": episodes, "prompts": len(prompts)}
    return {**counts, "views": list(row.views), "shards": files, "image_sizes": image_range}


def _step_columns(episode: _Episode) -> dict[str, np.ndarray]:
    state, action = episode.standardised.state, episode.standardised.action
    return {"state": state, "action": action, "image_offset": episode.offsets, "image_length": episode.lengths}


def _number_prompts(raw: RawEpisode, known: dict[str, int]) -> np.ndarray:
    """int32[T, P]; adds what is new to `known`."""
    numbers = [[known.setdefault(text, len(known)) if text else -1 for text in texts] for texts in raw.prompts]
    return np.stack([np.broadcast_to(np.array(column, np.int32), raw.steps) for column in numbers], axis=1)


def _episode_columns(values: tuple[int, ...]) -> dict[str, np.ndarray]:
    """One entry for each of EPISODE_COLUMNS, from values in its order."""
    return {f"episode_{name}": np.array([value]) for name, value in zip(EPISODE_COLUMNS, values, strict=True)}


def _prompt_columns(prompts: list[str]) -> dict[str, np.ndarray]:
    encoded = [prompt.encode() for prompt in prompts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return {"prompt_text": np.frombuffer(b"".join(encoded), np.uint8), "prompt_end": ends}


def _layout(row: DatasetRow) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Column -> dtype and shape of a row. What index.py opens."""
    layout: dict[str, tuple[str, tuple[int, ...]]] = {
        "state": ("float32", (len(row.embodiment.state),)),
        "action": ("float32", (len(row.embodiment.actions),)),
        "image_offset": ("int64", (len(row.views),)),
        "image_length": ("uint32", (len(row.views),)),
        "prompt": ("int32", (len(row.language.paths),)),
        "prompt_text": ("uint8", ()),
        "prompt_end": ("int64", ()),
    }
    layout |= {f"frames_{split}": ("int64", ()) for split in SPLITS}
    return layout | {f"episode_{name}": (dtype, ()) for name, dtype in EPISODE_COLUMNS.items()}


def _read_all(row: DatasetRow, shards: list[Shard], *, progress: bool) -> Iterator[tuple[int, RawEpisode]]:
    """Every episode with its shard's number, in order; the bar counts bytes, which is what takes the time."""
    total = sum(storage.size(shard.path) for shard in shards)
    with tqdm(total=total, desc=f"index {row.name}", unit="B", unit_scale=True, disable=not progress) as bar:
        for number, shard in enumerate(shards):
            for raw in read_shard(row, shard):
                yield number, raw
                bar.update(len(raw.payload) + FRAMING_BYTES)


def _index_episode(row: DatasetRow, raw: RawEpisode, *, decode: bool) -> _Episode:
    """Standardises and validates.

    Raises InputError: NaN or infinity, an image that is not 8-bit RGB, a rule's result that does not fit the robot.
    """
    for path, column in raw.columns.items():
        _check_finite(column, raw, f"field {path}", per_step=path.startswith(STEPS))
    result = row.standardise(raw.columns)
    standardised = result._replace(state=result.state.astype(np.float32), action=result.action.astype(np.float32))
    _check_standardised(row, raw, standardised)
    keep = standardised.keep & (_has_prompt(raw) | row.keep_empty_language)
    offsets = np.stack([ranges.offsets for ranges in raw.images.values()], axis=1) + raw.offset
    lengths = np.stack([ranges.lengths for ranges in raw.images.values()], axis=1)
    sizes = np.stack(
        [_check_images(row, raw, camera, view, decode=decode) for camera in row.cameras for view in row.cameras[camera].views], axis=1
    )
    return _Episode(standardised._replace(keep=keep), offsets, lengths, sizes)


def _has_prompt(raw: RawEpisode) -> np.ndarray:
    """bool[T]: whether any language field says something."""
    return np.any([np.broadcast_to([bool(text) for text in texts], raw.steps) for texts in raw.prompts], axis=0)


def _check_standardised(row: DatasetRow, raw: RawEpisode, result: Standardised) -> None:
    for name, values, dims in (
        ("state", result.state, row.embodiment.state),
        ("action", result.action, row.embodiment.actions),
    ):
        if values.shape != (raw.steps, len(dims)):
            raise InputError(
                f"{raw.where}: {name}: expected {raw.steps} steps of {len(dims)} dimensions"
                f" as embodiment {row.embodiment.name} declares, found {list(values.shape)}"
            )
        _check_finite(values, raw, name, per_step=True)
    if not 0 <= result.stop <= raw.steps or result.keep.shape != (raw.steps,) or result.keep[result.stop :].any():
        raise InputError(
            f"{raw.where}: the rule of row {row.name}: expected kept steps below {result.stop} of {raw.steps},"
            f" found {np.flatnonzero(result.keep).tolist()}"
        )


def _check_finite(values: np.ndarray, raw: RawEpisode, name: str, *, per_step: bool) -> None:
    if not np.issubdtype(values.dtype, np.floating) or np.isfinite(values).all():
        return
    place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
    step, dimension = (f"step {place[0]}: ", place[1:]) if per_step else ("", place)
    where = f"{name} dimension {', '.join(map(str, dimension))}" if dimension else name
    raise InputError(f"{raw.where}: {step}{where}: expected a finite number, found {values[place]}")


def _check_images(row: DatasetRow, raw: RawEpisode, camera: str, view: str, *, decode: bool) -> np.ndarray:
    """int32[T, 2]: height and width."""
    ranges = raw.images[view]
    try:
        sizes = image_sizes(raw.payload, ranges)
        if decode:
            decode_image(raw.payload[ranges.offsets[0] : ranges.offsets[0] + ranges.lengths[0]], row.cameras[camera].order)
    except BadImageError as error:
        raise InputError(f"{raw.where}: step {error.number}: field {view}: expected an 8-bit RGB JPEG or PNG, found {error}") from error
    return sizes


def _widen(known: dict[str, list[int]] | None, sizes: np.ndarray) -> dict[str, list[int]]:
    """Smallest and largest height and width so far; `sizes` is int32[T, 2]."""
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    if known is not None:
        low, high = np.minimum(low, known["min"]), np.maximum(high, known["max"])
    return {"min": low.tolist(), "max": high.tolist()}


def _split_of(raw: RawEpisode, shard: Shard, held_out: frozenset[tuple[str, int]]) -> int:
    validation = shard.split in VALIDATION_SPLITS or (shard.split, raw.number) in held_out
    return SPLITS.index("val" if validation else "train")


def _held_out(row: DatasetRow, shards: list[Shard]) -> frozenset[tuple[str, int]]:
    """(split, episode) of the episodes held out: those of the smallest hashes; none if there is a validation split."""
    if row.held_out == 0 or any(shard.split in VALIDATION_SPLITS for shard in shards):
        return frozenset()
    episodes = [(shard.split, shard.first + i) for shard in shards for i in range(shard.episodes)]
    count = max(1, round(row.held_out * len(episodes))) if len(episodes) > 1 else 0
    return frozenset(_smallest_hashes(row.name, episodes, count))


def _smallest_hashes(name: str, episodes: Iterable[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    return sorted(episodes, key=lambda e: hashlib.blake2b(f"{name}/{e[0]}/{e[1]}".encode(), digest_size=8).digest())[:count]


@contextmanager
def _temporary_sibling(row: DatasetRow, root: Path) -> Iterator[Path]:
    """A fresh directory in `root`, removed at the end unless renamed. What builds killed long ago left goes too."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=root))
    except OSError as error:
        raise InputError(f"dataset {row.name}: cannot write an index to {root} ({error.strerror}); give another index_dir") from error
    try:
        for path in root.glob(f"{_BUILDING}*"):
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _is_abandoned(building: Path) -> bool:
    """True if nothing below was written for a day: a build writes all the time."""
    try:
        newest = max(path.stat().st_mtime for path in (building, *building.iterdir()))
    except FileNotFoundError:  # its own process has just renamed or removed it
        return False
    return time.time() - newest > _ABANDONED_AFTER_S


def _publish(building: Path, target: Path) -> None:
    building.chmod(0o755)  # mkdtemp's is for its user alone
    try:
        os.rename(building, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Another process made the same index first. This one's copy goes.


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
