"""Writes the shards of an import in several processes, and shows how far they are."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from functools import partial
from pathlib import Path

import numpy as np
from loky import ProcessPoolExecutor
from loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from pi0_jax.data.lerobot.shards import ShardTask, Written, write_counted, write_shard
from pi0_jax.errors import InputError
from pi0_jax.progress import progress_bar

_MOST_PROBLEMS = 10  # after so many wrong episodes no further shard is begun
_POLL_S = 0.5
# A worker ends when it has had nothing to do for so long. Perhaps its parent was killed.
_IDLE_S = 10


def write_shards(
    shards: Sequence[ShardTask], progress: Path, workers: int, name: str
) -> list[Written]:
    """Writes every shard and returns what each holds, in their order.

    Args:
        shards: the shards.
        progress: a file for the frames written so far of every shard, uint64 each.
        workers: the number of processes. With one worker or one shard all happens in this process.
        name: for the bar.

    Raises:
        InputError: episodes are wrong, one line for each shard that has one, or a worker was
            killed. Whole episodes stay in their files.
    """
    total = sum(episode.length for shard in shards for episode in shard.episodes)
    workers = min(workers, len(shards))
    done: list[Written] = []
    with progress_bar(total=total, desc=name, unit="frame") as bar:
        found = (
            _write_here(shards, bar)
            if workers == 1
            else _write_in_processes(shards, progress, workers, bar)
        )
        for written in found:
            done.append(written)
            if sum(bool(one.problem) for one in done) == _MOST_PROBLEMS:
                break
    if problems := [one.problem for one in sorted(done, key=_number) if one.problem]:
        kept = sum(one.records for one in done)
        raise InputError(
            *problems,
            f"{kept} episodes are written and kept; mend these, or leave them out with --skip_episodes, and go on",
        )
    return sorted(done, key=_number)


def _number(written: Written) -> int:
    return written.number


def _write_here(shards: Sequence[ShardTask], bar: tqdm) -> Iterator[Written]:
    """Writes the shards in this process."""
    for shard in shards:
        yield write_shard(shard, partial(_advance, bar, bar.n))


def _advance(bar: tqdm, before: int, frames: int) -> None:
    """Moves the bar to so many frames after `before`."""
    bar.update(before + frames - bar.n)


def _write_in_processes(
    shards: Sequence[ShardTask], progress: Path, workers: int, bar: tqdm
) -> Iterator[Written]:
    """Writes the shards in worker processes, and yields them in any order."""
    np.zeros(len(shards), np.uint64).tofile(progress)
    executor = ProcessPoolExecutor(workers, timeout=_IDLE_S)
    try:
        pending = {executor.submit(write_counted, shard, progress) for shard in shards}
        while pending:
            finished, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            bar.update(int(np.fromfile(progress, np.uint64).sum()) - bar.n)
            yield from [future.result() for future in finished]
    except TerminatedWorkerError as error:
        raise InputError(
            f"{progress.parent}: a worker process was killed, for its memory perhaps; import again, with fewer workers:"
            " the episodes that are done are kept"
        ) from error
    finally:
        executor.shutdown(kill_workers=True)
