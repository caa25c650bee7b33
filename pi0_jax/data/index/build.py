"""Builds the index of one dataset in one pass over its files.

Every record is verified, and every episode is validated.

    <index root>/<digest of the version>/
        index.json                    what it was made for, counts, shards, image sizes, episodes
                                      left out
        state, action                 float32[N, S], float32[N, A]   N steps of all episodes, one
                                                                     after the other
        image_offset, image_length    int64[N, V], uint32[N, V]      where each view's bytes lie
                                                                     in the shard
        prompt                        int32[N, P]                    a prompt for each language
                                                                     field, -1 for an empty one
        episode_*                     one entry an episode: EPISODE_COLUMNS
        frames_train, frames_val      int64[kept]                    the steps that may be drawn
        prompt_text, prompt_end       uint8[bytes], int64[p]         the distinct prompts, one
                                                                     after the other

Beside the columns of states and actions a frame takes 24 bytes for one camera and one language
field: 12 a view, 4 a language field, 8 in the list of kept frames. To this comes its share of its
episode's 46 bytes and of a new prompt's text.

Shards are indexed one by one, by one process or by several, into parts (shards.py). The parts are
merged in the order of the shards, so the index does not depend on who made them. The directory
appears whole, by one rename. Its name is that of its version. So processes that build at the same
time make the same directory, and a job that reads an older version is not disturbed.
"""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.data.index.columns import SPLITS, ColumnWriters, index_columns
from pi0_jax.data.index.oddities import Told, merge_told
from pi0_jax.data.index.shards import Part, PartTask, check_skipped, load_part, load_skipped
from pi0_jax.data.index.version import INDEX_FILE, index_version, version_digest, write_record
from pi0_jax.data.index.workers import make_parts
from pi0_jax.data.permutation import key
from pi0_jax.data.records.episodes import Shard, open_shards
from pi0_jax.data.records.images import SizeRange
from pi0_jax.data.records.metadata import declared_image_sizes
from pi0_jax.data.rows import Dataset
from pi0_jax.data.storage import Location
from pi0_jax.errors import FULL_DISK, InputError
from pi0_jax.files import new_path
from pi0_jax.progress import progress_bar

# The names that datasets give to splits which are not trained on.
VALIDATION_SPLITS = ("val", "valid", "validation", "dev", "eval", "evaluation", "test")
_BUILDING = ".building-"
_PARTS = ".parts-"
_ABANDONED_AFTER_S = 24 * 3600


def build_index(
    row: Dataset,
    directory: Location,
    root: Path,
    *,
    progress: bool,
    workers: int,
    decode_all: bool,
    skip_bad_episodes: int,
) -> Path:
    """Builds the index of the dataset in `directory`, below `root`.

    A build that was killed or refused goes on from the shards that it had finished. For the
    arguments see `build_or_open`.

    Returns:
        The folder of the index. If another process made the same index first, it is that one.

    Raises:
        InputError: files, fields (episodes.py) or their contents (validate.py) are wrong, the files
            changed meanwhile, or `root` is not writable or full.
    """
    version = index_version(row, directory)
    target = root / version_digest(version)
    parts = root / f"{_PARTS}{target.name}{'-decoded' if decode_all else ''}"
    tasks = [
        PartTask(
            row, shard, i, version["files"][shard.path.name], parts, decode_all, skip_bad_episodes
        )
        for i, shard in enumerate(open_shards(row, directory))
    ]
    with _temporary_sibling(row, root, parts) as building:
        try:
            _make_all(tasks, workers, progress=progress)
            counts = _merge(row, tasks, building)
        except FileNotFoundError:
            # Another process made the same index first and removed the parts.
            if not (target / INDEX_FILE).is_file():
                raise
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            raise InputError(
                f"dataset {row.name}: no space left for its index below {root}; the shards that are done are kept"
            ) from error
        else:
            if index_version(row, directory) != version:
                raise InputError(
                    f"dataset {row.name}: files in {directory} changed while they were indexed"
                )
            about = {
                "version": version,
                "dataset_version": directory.name,
                "decode_all": decode_all,
                "declared_sizes": declared_image_sizes(row, directory),
            }
            write_record(building / INDEX_FILE, about | counts)
            _publish(building, target)
    shutil.rmtree(parts, ignore_errors=True)
    return target


def _make_all(tasks: list[PartTask], workers: int, *, progress: bool) -> None:
    """Makes the parts that are missing. The bar counts bytes, since these take the time."""
    row, skip = tasks[0].row, tasks[0].skip
    made = {task.number: task for task in tasks if task.path.exists()}
    missing = [task for task in tasks if task.number not in made]
    skipped = [problem for task in made.values() for problem in load_skipped(task.path)]
    check_skipped(skipped, skip)
    bar = progress_bar(
        total=sum(task.size for task in tasks),
        # What an earlier build has done does not count for the speed.
        initial=sum(task.size for task in made.values()),
        desc=f"index {row.name}",
        unit="B",
        unit_scale=True,
        disable=not progress,
    )
    with bar, closing(make_parts(missing, workers, bar)) as results:
        for found in results:
            skipped += found
            check_skipped(skipped, skip)


def _merge(row: Dataset, tasks: list[PartTask], directory: Path) -> dict[str, Any]:
    """Writes the columns from the parts, one after the other, and returns index.json's counts."""
    held_out = _held_out(row, [task.shard for task in tasks])
    prompts: dict[str, int] = {}
    sizes: list[SizeRange | None] = [None] * len(row.views)
    skipped: list[str] = []
    told: Told = {}
    steps = 0
    with ColumnWriters(directory, index_columns(row)) as columns:
        for task in tasks:
            part = load_part(task.path)
            columns.append(**_placed(part, task.number, steps, held_out[task.number], prompts))
            sizes = [
                found.union(known) if found else known
                for known, found in zip(sizes, part.image_sizes, strict=True)
            ]
            skipped += part.skipped
            merge_told(told, part.told)
            steps += len(part.columns["step_state"])
        columns.append(**_prompt_columns(list(prompts)))
    return {
        "steps": steps,
        "episodes": columns.checksums["episode_start"][0],
        "prompts": len(prompts),
        "skipped": skipped,
        "told": told,
        "checksums": columns.checksums,
        "views": list(row.views),
        "shards": [task.shard.path.name for task in tasks],
        "image_sizes": {
            view: size and {"min": size.low, "max": size.high}
            for view, size in zip(row.views, sizes, strict=True)
        },
    }


def _placed(
    part: Part, shard: int, start: int, held_out: np.ndarray, prompts: dict[str, int]
) -> dict[str, np.ndarray]:
    """Returns the part's columns as they stand in the index from step `start` on.

    What is new is added to `prompts`. The argument `held_out` is bool[episodes of the shard].
    """
    columns = {name.removeprefix("step_"): column for name, column in part.columns.items()}
    # A part's number of a prompt -> the index's number. The last entry, which -1 takes, is -1.
    known = [*(prompts.setdefault(text, len(prompts)) for text in part.prompts), -1]
    split = held_out[columns["episode_record"]].astype(np.uint8)
    frames = columns.pop("frames")
    split_of_frame = np.repeat(split, columns["episode_length"])[frames]
    return columns | {
        "prompt": np.array(known, np.int32)[columns["prompt"]],
        "episode_start": start + columns["episode_start"],
        "episode_split": split,
        "episode_shard": np.full(len(split), shard),
        **{f"frames_{name}": start + frames[split_of_frame == i] for i, name in enumerate(SPLITS)},
    }


def _prompt_columns(prompts: list[str]) -> dict[str, np.ndarray]:
    """Returns the text of all prompts, one after the other, and where each one ends."""
    encoded = [prompt.encode() for prompt in prompts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return {"prompt_text": np.frombuffer(b"".join(encoded), np.uint8), "prompt_end": ends}


def _held_out(row: Dataset, shards: list[Shard]) -> list[np.ndarray]:
    """Returns bool[episodes] for each shard: True for the episodes that are held out.

    These are the episodes of a validation split. Without one they are the episodes whose numbers,
    as the dataset counts them, have the smallest hashes. So an episode that is left out changes no
    other's place.
    """
    if row.held_out == 0 or any(shard.split in VALIDATION_SPLITS for shard in shards):
        return [np.full(shard.episodes, shard.split in VALIDATION_SPLITS) for shard in shards]
    # The hash takes the name of the files. So rows of the same files hold out the same episodes,
    # and none trains on what another validates on.
    hashes = [
        key(row.tfds_name, shard.split, shard.first + i)
        for shard in shards
        for i in range(shard.episodes)
    ]
    count = max(1, round(row.held_out * len(hashes))) if len(hashes) > 1 else 0
    chosen = np.zeros(len(hashes), bool)
    chosen[np.argsort(np.array(hashes, np.uint64), kind="stable")[:count]] = True
    return np.split(chosen, np.cumsum([shard.episodes for shard in shards])[:-1])


@contextmanager
def _temporary_sibling(row: Dataset, root: Path, parts: Path) -> Iterator[Path]:
    """Makes a fresh directory in `root`, which is removed at the end unless it was renamed.

    The folder `parts` is made beside it, and stays. Folders of other versions' builds that were
    killed long ago are removed.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        parts.mkdir(exist_ok=True)
        building = new_path(root, _BUILDING)
        building.mkdir()
    except OSError as error:
        raise InputError(
            f"dataset {row.name}: cannot write an index to {root} ({error.strerror}); give another index_dir"
        ) from error
    try:
        for path in (*root.glob(f"{_BUILDING}*"), *root.glob(f"{_PARTS}*")):
            if path != parts and _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Returns True if nothing in the folder was written for a day. A build writes all the time."""
    try:
        newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except FileNotFoundError:
        # Its own process has just renamed or removed it.
        return False
    return time.time() - newest > _ABANDONED_AFTER_S


def _publish(building: Path, target: Path) -> None:
    """Gives the index its name. If another process was first, its index stays."""
    try:
        os.rename(building, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Another process made the same index first. This one's copy is removed.
