"""Metrics are written as JSON lines and for TensorBoard, to a workdir on a disk or behind a URL."""

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from pi0_jax.errors import InputError
from pi0_jax.files import replacing

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
        if self._remote is None:
            return
        with _named_errors(self._workdir):
            for file in (self._local / METRICS_FILE, *(self._local / _TENSORBOARD).iterdir()):
                target = self._workdir / file.relative_to(self._local).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        self._copied = time.monotonic()

    def close(self) -> None:
        # Every write is flushed. What is left now is what a full disk has refused before.
        """Closes the files, and copies them to a workdir behind a URL."""
        with contextlib.suppress(OSError):
            self._file.close()
            self._events.close()
        self.flush()
        if self._remote is not None:
            self._remote.cleanup()


class NoMetrics:
    """Stands in for a MetricsWriter in processes that do not write."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""
        pass

    def flush(self) -> None:
        """Does nothing."""
        pass

    def close(self) -> None:
        """Does nothing."""
        pass


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
    """Reads a line of the metrics file."""
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
