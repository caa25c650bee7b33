"""Makes the parts of an index in several processes, and shows how far they are.

Workers are fresh interpreters (loky), and never forks of a process in which JAX or TensorFlow may
run threads. They import what reads records, and nothing of TensorFlow or JAX. If a row's rule is
not the package's own, it reaches them by value, since a config file has no name to import.
"""

import contextlib
import os
import pickle
import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from functools import partial
from pathlib import Path

import cloudpickle
import numpy as np
from loky import ProcessPoolExecutor, cpu_count
from loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from pi0_jax.data.index.shards import PartTask, make_part
from pi0_jax.data.rows import Dataset
from pi0_jax.errors import InputError

# The file holds the bytes read so far of every shard, uint64 each, at the place of the shard's
# number.
_PROGRESS_FILE = "progress"
_POLL_S = 0.5
# A worker ends when it has had nothing to do for so long. Perhaps its parent was killed.
_IDLE_S = 10


def default_workers() -> int:
    """Returns the number of processors that this process may use, as its container limits them."""
    return cpu_count()


def make_parts(
    tasks: Sequence[PartTask], workers: int, bar: tqdm
) -> Generator[list[str], None, None]:
    """Makes every task's part and yields what it skipped, in any order. The bar counts bytes.

    With one worker or one task all happens in this process.

    Raises:
        InputError: as for `make_part`, or a worker was killed.
    """
    if workers > 1 and len(tasks) > 1:
        yield from _make_in_processes(tasks, min(workers, len(tasks)), bar)
        return
    for task in tasks:
        yield make_part(task, partial(_advance, bar, bar.n))


def _advance(bar: tqdm, before: int, read: int) -> None:
    """Moves the bar to so many bytes after `before`."""
    bar.update(before + read - bar.n)


def _make_in_processes(
    tasks: Sequence[PartTask], workers: int, bar: tqdm
) -> Generator[list[str], None, None]:
    row, before = tasks[0].row, bar.n
    progress, numbers = tasks[0].folder / _PROGRESS_FILE, [task.number for task in tasks]
    # Nothing is read yet. Another process that builds the same index may share the file.
    progress.touch()
    for number in numbers:
        _write_progress(progress, number, 0)
    executor = ProcessPoolExecutor(workers, timeout=_IDLE_S)
    try:
        with _by_value(row):
            pending = {executor.submit(_run, cloudpickle.dumps(task)) for task in tasks}
        while pending:
            finished, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            bar.update(before + int(np.fromfile(progress, np.uint64)[numbers].sum()) - bar.n)
            yield from [future.result() for future in finished]
    except TerminatedWorkerError as error:
        raise InputError(
            f"dataset {row.name}: a worker process was killed, for its memory perhaps; build again, with fewer workers:"
            " the shards that are done are kept"
        ) from error
    finally:
        executor.shutdown(kill_workers=True)


def _run(pickled: bytes) -> list[str]:
    """Makes one part in a worker, and writes how far it is to the file of progress."""
    task: PartTask = pickle.loads(pickled)
    return make_part(task, partial(_write_progress, task.folder / _PROGRESS_FILE, task.number))


def _write_progress(file: Path, number: int, read: int) -> None:
    with open(file, "r+b", buffering=0) as stream:
        os.pwrite(stream.fileno(), read.to_bytes(8, sys.byteorder), 8 * number)


@contextlib.contextmanager
def _by_value(row: Dataset) -> Iterator[None]:
    """Pickles functions of the rule's module by value, within the block.

    Modules of the package are pickled by name.
    """
    name = row.standardise.__module__
    if (
        name.startswith("pi0_jax.")
        or name not in sys.modules
        or name in cloudpickle.list_registry_pickle_by_value()
    ):
        yield
        return
    cloudpickle.register_pickle_by_value(sys.modules[name])
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[name])
