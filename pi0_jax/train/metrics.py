"""A run writes about itself to its workdir, on a disk or behind a URL.

metrics.jsonl, tensorboard/     MetricsWriter: losses, rates, validations
profile/                        Tracer: a trace of some steps, for TensorBoard or Perfetto
nonfinite/step_<n>.jsonl        write_nonfinite: the frames of a batch that halted the run
"""

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import jax
import numpy as np
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from pi0_jax.data.mixture import Mixture
from pi0_jax.errors import InputError
from pi0_jax.files import replacing
from pi0_jax.observation import FrameId

METRICS_FILE = "metrics.jsonl"
_TENSORBOARD = "tensorboard"
_COPY_SECONDS = 60.0


class MetricsWriter:
    """Appends metrics to workdir/metrics.jsonl and workdir/tensorboard.

    What a resumed run will do again is first taken off.

    An object store cannot append. For a workdir behind a URL the files are written to a local
    folder and copied there whole, at most every minute and at every `flush`.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, start: int) -> None:
        """Opens the files of a run.

        Args:
            workdir: the run's folder, or a URL.
            start: the steps that are done; lines of later steps are taken off.
        """
        self._workdir = epath.Path(workdir)
        self._remote = (
            tempfile.TemporaryDirectory(prefix="pi0_jax_metrics_")
            if "://" in os.fspath(workdir)
            else None
        )
        self._local = Path(self._remote.name if self._remote else workdir)
        self._copied = time.monotonic()
        lines = read_metrics(self._workdir) if (self._workdir / METRICS_FILE).exists() else []
        path = self._local / METRICS_FILE
        kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= start)
        with _named_errors(self._workdir):
            with replacing(path) as temporary:
                temporary.write_text(kept)
            self._file = path.open("a")
            (self._local / _TENSORBOARD).mkdir(exist_ok=True)
            # EventsWriter writes at once. SummaryWriter has a thread; a full disk kills the thread,
            # and the caller then waits for it. The suffix keeps a run that resumes within the same
            # second from overwriting the file of the run before.
            self._events = EventsWriter(
                str(self._local / _TENSORBOARD / "events"), filename_suffix=f".{start}"
            )
            self._events.write_event(
                Event(
                    wall_time=time.time(),
                    step=start + 1,
                    session_log=SessionLog(status=SessionLog.START),
                )
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line: the step, the time in seconds since the epoch, and the values.

        Values that are not finite are left out, because JSON has no word for them.

        Args:
            step: the steps done: the first update's metrics have step 1.
            values: metric -> value.

        Raises:
            InputError: the files cannot be written.
        """
        values, now = finite(values), time.time()
        with _named_errors(self._workdir):
            self._file.write(json.dumps({"step": step, "time": now, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._events.write_event(
                    Event(wall_time=now, step=step, summary=scalar(name, value))
                )
            self._events.flush()
        if time.monotonic() - self._copied > _COPY_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Copies everything written to the workdir, where it is behind a URL."""
        if self._remote is not None:
            with _named_errors(self._workdir):
                _copy(self._local, self._workdir)
            self._copied = time.monotonic()

    def close(self) -> None:
        """Closes the files, and copies them to a workdir behind a URL."""
        # Every write is flushed. What is left now is what a full disk has refused before.
        with contextlib.suppress(OSError):
            self._file.close()
            self._events.close()
        self.flush()
        if self._remote is not None:
            self._remote.cleanup()


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Returns the values that are finite."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Returns the lines of a run's metrics file.

    A last line that a killed run left unfinished is dropped.

    Raises:
        InputError: there is no such file, or a line is no JSON object with a step.
    """
    path = epath.Path(workdir) / METRICS_FILE
    if not path.exists():
        raise InputError(f"{path}: no metrics there; launch.train writes them to its workdir")
    lines = path.read_bytes().splitlines(keepends=True)
    return [
        _parsed(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.endswith(b"\n")
    ]


def _parsed(line: bytes, where: str) -> dict[str, float]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: expected JSON, found: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise InputError(f"{where}: expected a JSON object with a step, found {line[:80]!r}")
    return record


@contextlib.contextmanager
def _named_errors(workdir: epath.Path) -> Iterator[None]:
    """Turns the system's errors in the block into an InputError that names the workdir."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{workdir}: expected to write metrics there, found: {error.strerror or error}"
        ) from error


def _copy(folder: Path, target: epath.Path) -> None:
    """Copies the files below a local folder, whole, to a folder that may be behind a URL."""
    for file in (path for path in folder.rglob("*") if path.is_file()):
        place = target / file.relative_to(folder).as_posix()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())


class Clock:
    """Times the loop: how fast steps go, and which share of the time is spent waiting for data.

    Validation and saving do not count.
    """

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._done = 0
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of the block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Leaves the time of the block out of all rates."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def rates(self, done: int, batch_size: int) -> dict[str, float]:
        """Returns the rates since the last call; `done` steps of this process's run are done."""
        now = time.perf_counter()
        elapsed = now - self._mark - self._paused
        rate, waited = (done - self._done) / elapsed, self._waited / elapsed
        self._mark, self._done, self._waited, self._paused = now, done, 0.0, 0.0
        return {
            "steps_per_second": rate,
            "samples_per_second": rate * batch_size,
            "data_wait_share": waited,
        }


class Profile(NamedTuple):
    """Says which steps are traced."""

    start: int  # the steps done before the first one that is traced
    steps: int  # the number of steps that are traced

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads START:STEPS, as in 20:5; raises InputError if the text is something else."""
        found = re.fullmatch(r"(\d+):([1-9]\d*)", text)
        if not found:
            raise InputError(f"--profile={text}: expected START:STEPS, as in 20:5")
        return cls(int(found[1]), int(found[2]))


class Tracer(contextlib.AbstractContextManager["Tracer"]):
    """Traces the steps that a Profile names; each process traces its own devices."""

    def __init__(self, profile: Profile | None, workdir: epath.Path) -> None:
        # Without a profile no step's number is that of a start or an end.
        self._start = -1 if profile is None else profile.start
        self._end = -1 if profile is None else profile.start + profile.steps
        self._target = workdir / "profile"
        self._local: Path | None = None  # the folder of a trace that is running

    def before(self, step: int) -> None:
        """Starts the trace if it begins at `step`, counted from 0. Call it before each step."""
        if step == self._start:
            self._local = Path(tempfile.mkdtemp(prefix="pi0_jax_profile_"))
            jax.profiler.start_trace(self._local)

    def after(self, done: int, result: object) -> None:
        """Ends the trace if it ends after `done` steps. Call it after each, with its result."""
        if done == self._end and self._local is not None:
            jax.block_until_ready(result)
            self._stop(self._local)

    def __exit__(self, *raised: object) -> None:
        if self._local is not None:
            self._stop(self._local)

    def _stop(self, local: Path) -> None:
        jax.profiler.stop_trace()
        _copy(local, self._target)
        shutil.rmtree(local)
        self._local = None


def write_nonfinite(
    path: epath.Path, mixture: Mixture, frames: FrameId, row_losses: np.ndarray
) -> None:
    """Writes JSON lines, one for each row of a batch, the most suspicious first.

    Args:
        path: the file.
        mixture: what the run trains on.
        frames: the frames of the whole global batch.
        row_losses: float32[B], the loss of each row of the whole global batch.
    """
    lines = []
    # A loss that is not a number counts as infinite.
    for row in np.argsort(-np.nan_to_num(row_losses, nan=np.inf), kind="stable"):
        dataset, episode, step = (int(part[row]) for part in frames)
        index, loss = mixture.indices[dataset], float(row_losses[row])
        frame = int(index.episodes["start"][episode]) + step
        actions, valid = index.chunk(frame, mixture.horizon)
        line = {
            "row": int(row),
            "loss": loss if math.isfinite(loss) else None,
            "dataset": index.name,
            "episode": episode,
            "step": step,
            "prompt": index.prompt(frame),
            "file": str(index.shards[index.episodes["shard"][episode]]),
            "record": int(index.episodes["record"][episode]),
            "state": index.state[frame].tolist(),
            "actions": actions[valid].tolist(),
        }
        lines.append(json.dumps(line) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(lines))
    temporary.replace(path)
