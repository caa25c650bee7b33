"""Writes demonstrations of Meta-World as an RLDS dataset.

The experts play in processes of the simulator's Python (demonstrations.py), which load
OpenGL and make the records; this process has TensorFlow and writes them, in order. So the files do
not depend on the number of workers.
"""

import contextlib
import json
import pickle
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import loky

from pi0_jax.data.write import read_settings, write_rlds
from pi0_jax.errors import InputError
from pi0_jax.files import replacing
from pi0_jax.progress import progress_bar
from pi0_jax.sim.metaworld.demonstrations import (
    METADATA_FEATURES,
    PROTOCOLS,
    Done,
    Job,
    step_features,
)
from pi0_jax.sim.rollouts import wilson_interval

VERSION = "1.0.0"
EXPERT_FILE = "expert.json"
# The revision is raised whenever the same settings no longer give the same data.
_REVISION = 1
_EPISODES_PER_JOB = 10
_SPLITS = ("train", "val")
# A process that has closed its output, or wrote nonsense to it, is killed after this time.
_END_SECONDS = 10.0


def write_metaworld_data(
    data_dir: Path,
    simulator: str,
    tasks: Sequence[str],
    *,
    protocol: str,
    episodes: int,
    val_episodes: int,
    seed: int,
    noise: float,
    side: int,
    workers: int | None = None,
) -> tuple[Path, bool]:
    """Writes the folder data_dir/<protocol>/1.0.0, and expert.json beside it.

    Args:
        data_dir: the folder of datasets.
        simulator: the Python that has Meta-World and this package.
        tasks: names of tasks, in whose order episodes alternate.
        protocol: "metaworld" or "metaworld_held", see metaworld.py.
        episodes: training episodes of each task.
        val_episodes: validation episodes of each task.
        seed: decides the episodes.
        noise: the standard deviation that is added to the actions of every second episode.
        side: height and width of images in pixels; 0 takes the protocol's.
        workers: the number of processes; None takes one for each core.

    Returns:
        The folder, and whether it was written now.

    Raises:
        InputError: a dataset with other settings is there, the simulator's Python fails, or an
            expert fails too often.
    """
    side = side or PROTOCOLS[protocol].side
    settings: dict[str, Any] = {
        "revision": _REVISION, "tasks": list(tasks), "train": episodes, "val": val_episodes,
        "seed": seed, "noise": noise, "side": side,
    }  # fmt: skip
    folder = data_dir / protocol / VERSION
    if (found := read_settings(folder)) is not None:
        if found != settings:
            mismatch = f"was made with other settings; expected {settings}, found {found}"
            raise InputError(f"{folder}: {mismatch}; choose another folder or delete it")
        if not (folder.parent / EXPERT_FILE).is_file():
            missing = f"expected it beside the data, found none; delete {folder} to make both again"
            raise InputError(f"{folder.parent / EXPERT_FILE}: {missing}")
        return folder, False
    players = _Players(simulator, workers or loky.cpu_count())
    attempts, kept = Counter[str](), Counter[str]()
    counts = {"train": episodes, "val": val_episodes}
    with players, progress_bar(
        total=len(tasks) * sum(counts.values()), desc=protocol, unit="episode"
    ) as bar:  # fmt: skip

        def records(split: str) -> Iterator[bytes]:
            jobs = [
                Job(protocol, task, _SPLITS.index(split), range(first, last), seed, noise, side)
                for first in range(0, counts[split], _EPISODES_PER_JOB)
                for last in (min(first + _EPISODES_PER_JOB, counts[split]),)
                for task in tasks
            ]
            for job, done in zip(jobs, players.play(jobs), strict=True):
                if done.failed:
                    raise InputError(done.failed)
                attempts[job.task] += done.attempts
                kept[job.task] += len(done.records)
                for record in done.records:
                    yield record
                    bar.update()
            if split == _SPLITS[-1]:  # before the data get their name, so that both are there
                _write_expert(folder.parent / EXPERT_FILE, tasks, kept, attempts)

        write_rlds(
            data_dir,
            protocol,
            VERSION,
            steps=step_features(side),
            metadata=METADATA_FEATURES,
            splits={split: records(split) for split in _SPLITS},
            settings=settings,
        )
    return folder, True


def expert_table(expert: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the experts' own successes as a text table."""
    width = max(map(len, expert))
    lines = []
    for task, row in expert.items():
        low, high = (f"{100 * end:.0f}" for end in row["interval"])
        lines.append(f"{task:<{width}} {row['successes']:>5}/{row['attempts']:<5} {low} to {high}%")
    return "\n".join([f"{'expert of':<{width}} success of attempts, 95% Wilson interval", *lines])


def _write_expert(
    file: Path, tasks: Sequence[str], kept: Mapping[str, int], attempts: Mapping[str, int]
) -> None:
    expert = {
        task: {
            "successes": kept[task],
            "attempts": attempts[task],
            "interval": list(wilson_interval(kept[task], attempts[task])),
        }
        for task in tasks
    }
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(expert, indent=1))


class _Players:
    """Holds processes of the simulator's Python, which play jobs side by side."""

    def __init__(self, simulator: str, count: int) -> None:
        command = [simulator, "-m", "pi0_jax.sim.metaworld.demonstrations"]
        self._simulator, self._processes = simulator, list[subprocess.Popen[bytes]]()
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(count)
        for _ in range(count):
            try:
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            except OSError as error:
                expected = "expected the Python of the simulator's environment (make metaworld-env)"
                raise InputError(f"{simulator}: {expected}, found: {error.strerror}") from error
            self._processes.append(process)
            self._idle.put(process)

    def play(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Yields what came of each job, in their order."""
        return self._threads.map(self._play, jobs)

    def _play(self, job: Job) -> Done:
        process = self._idle.get()
        assert process.stdin is not None and process.stdout is not None
        try:
            # A plain tuple: in the other process the class belongs to its main module.
            pickle.dump(tuple(job), process.stdin)
            process.stdin.flush()
            records, attempts, failed = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()
            ended = f"a simulator's process ended with status {process.wait()}, as said above"
            raise InputError(f"{self._simulator}: {ended}") from error
        finally:
            self._idle.put(process)  # a dead one too: the next job then fails, and does not wait
        return Done(records, attempts, failed)

    def __enter__(self) -> "_Players":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            # What was not written to a dead process is otherwise told when Python ends.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
