"""A workdir is one run's: who trains in it, who sees it, and from which checkpoint it goes on.

A small file says who trains there:

    workdir/running   {"host": "node7", "machine": "...", "process": 4711, "started": "...", "beat": 12}

The file is made only where there is none, and it is replaced only as it was read, in one operation
each (TensorStore's conditional writes, on disks and object stores alike). So of two runs that start
at once one gets the workdir. A holder whose process is dead on this machine has lost it at once. A
run on another machine rewrites the file every BEAT_SECONDS. It has lost the workdir when nobody saw
that for SILENCE_SECONDS.

A run resumes from the newest whole checkpoint, or from the step that the user names. What it passes
over is moved aside:

    checkpoints/4    whole      <- the run resumes from it
    checkpoints/8    damaged    -> set_aside/step_8
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import tensorstore as ts
from etils import epath

from pi0_jax import checkpoints
from pi0_jax.checkpoints import FOLDER, manifest
from pi0_jax.checkpoints.folder import steps
from pi0_jax.errors import InputError
from pi0_jax.train.distributed import Processes

T = TypeVar("T")
ASIDE = "set_aside"
FILE = "running"
BEAT_SECONDS = 15.0
SILENCE_SECONDS = 75.0
_LOOK_SECONDS = 1.0
_DYING_SECONDS = 2.0  # a process that was killed is gone within this time


class WorkdirLock(contextlib.AbstractContextManager["WorkdirLock"]):
    """Holds a workdir while it is open."""

    def __init__(
        self,
        workdir: epath.Path,
        tell: Callable[[str], None],
        *,
        who: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepares the lock. Entering the block takes it; InputError says why it cannot be taken.

        Args:
            workdir: a folder; it is made if it is not there.
            tell: is given a line where the lock waits for another machine's run.
            who: this process, in words that no other process has; None finds them.
        """
        self._place = workdir / FILE
        self._tell = tell
        self._who = dict(this_process() if who is None else who)
        self._beat = 0
        self._over = threading.Event()
        self._lost = False
        self._beating = threading.Thread(target=self._keep, name="lock", daemon=True)

    def __enter__(self) -> Self:
        folder = self._place.parent
        text = os.fspath(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._store = ts.KvStore.open(
                f"{text if '://' in text else f'file://{text}'}/"
            ).result()
            while not self._take():  # another run was quicker
                pass
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(
                f"workdir {folder}: expected a folder to write to, found: {_reason(error)}"
            ) from error
        self._beating.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._beating.join()
        self.release()

    def check(self) -> None:
        """Checks that the workdir is still this run's.

        Raises:
            InputError: another run has taken it, because this one was silent for too long.
        """
        if self._lost:
            raise InputError(
                f"{self._place}: another run has taken the workdir, after this one was silent for"
                f" {SILENCE_SECONDS:g} s; it ends here"
            )

    def release(self) -> None:
        """Gives the workdir free, if this process still has it."""
        if not self._lost:
            # It fails where a storage is gone or a disk is full. That has ended the run already.
            with contextlib.suppress(ValueError):
                self._store.write(FILE, None, if_equal=self._generation).result()

    def _take(self) -> bool:
        """Takes the workdir; False where another run changed the file in between."""
        found = self._store.read(FILE).result()
        if found.state == "value" and (holder := _parsed(found.value)) is not None:
            self._wait_for_its_end(holder, found.stamp.generation)
        return self._replace(found.stamp.generation)

    def _replace(self, generation: bytes) -> bool:
        """Writes the file if its content is still of this generation; returns whether it was."""
        self._beat += 1
        text = json.dumps(self._who | {"beat": self._beat}).encode()
        stamp = self._store.write(FILE, text, if_equal=generation).result()
        if not stamp.generation:
            return False
        self._generation = stamp.generation
        return True

    def _wait_for_its_end(self, holder: Mapping[str, Any], generation: bytes) -> None:
        """Returns when the holder can no longer be alive.

        Raises:
            InputError: the holder is known to be alive.
        """
        refused = InputError(
            f"workdir {self._place.parent}: another run trains there, process {holder['process']}"
            f" on {holder['host']}; expected one at a time: stop it, or give this one another"
            " workdir"
        )
        if holder["machine"] == self._who["machine"]:
            deadline = time.monotonic() + _DYING_SECONDS
            while _alive(holder["process"], holder["started"]):
                if time.monotonic() > deadline:
                    raise refused
                time.sleep(0.1)
            return
        self._tell(
            f"{self._place}: left by process {holder['process']} on {holder['host']};"
            f" waiting for up to {SILENCE_SECONDS:g} s whether it is alive"
        )
        deadline = time.monotonic() + SILENCE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            now = self._store.read(FILE).result()
            if now.state != "value":
                return
            if now.stamp.generation != generation:
                raise refused

    def _is_still_ours(self) -> bool:
        """Returns whether the file is still ours, although it is not what we wrote last.

        A storage may have called a write of ours failed that took place. What cannot be read is
        written again.
        """
        found = self._store.read(FILE).result()
        holder = _parsed(found.value) if found.state == "value" else None
        if holder is None:
            return self._replace(found.stamp.generation)
        if any(holder[name] != value for name, value in self._who.items()):
            return False
        self._generation = found.stamp.generation
        return True

    def _keep(self) -> None:
        """Rewrites the file at every beat, until the lock is released or lost."""
        while not self._over.wait(BEAT_SECONDS):
            try:
                self._lost = not (self._replace(self._generation) or self._is_still_ours())
            except ValueError:
                continue  # The disk is full or the storage is away for a moment. Saving will tell.
            if self._lost:
                return


def _reason(error: OSError | ValueError) -> str:
    """Returns in one line why the storage refused; TensorStore writes the number of an OSError."""
    if isinstance(error, OSError):
        return str(error.strerror)
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    return " ".join(str(error).split())[:300]


def this_process() -> dict[str, Any]:
    """Returns what tells this process from every other one, here and on other machines."""
    process = os.getpid()
    # Processes are numbered anew at each start of the machine, and in each container.
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return {
        "host": socket.gethostname(),
        "machine": machine,
        "process": process,
        "started": _started(process),
    }


def _alive(process: int, started: str) -> bool:
    """Returns whether the process of this machine with this number and start time is alive."""
    found = _started(process)
    if found is not None:
        return found == started
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, whose number may be hidden
        return True
    return False


def _started(process: int) -> str | None:
    """Returns when a process of this machine began, in ticks since the machine's start.

    It returns "" if the process has ended, and None if nothing can be seen of it.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # After the name come the state, Z or X for one that has ended, and as the 20th the start time.
    return "" if fields[0] in "ZX" else fields[19]


def _parsed(text: bytes) -> Mapping[str, Any] | None:
    """Returns the holder's record; None where a full disk has left only a part of it."""
    try:
        record = json.loads(text)
    except ValueError:
        return None
    known = isinstance(record, dict) and {"host", "machine", "process", "started"} <= record.keys()
    return record if known else None


def check_shared(workdir: epath.Path, processes: Processes) -> None:
    """Checks that all processes share a workdir to which process 0 can write.

    Raises:
        InputError: process 0 cannot write to the folder; or, on every process, one of them does not
            see what process 0 wrote there.
    """
    mark = workdir / f".shared_{processes.broadcast('mark', uuid.uuid4().hex)}"
    if processes.first:
        try:
            for left in workdir.glob(".shared_*"):  # left by a run that was killed here
                left.unlink(missing_ok=True)
            mark.write_text("")
        except OSError as error:
            raise InputError(
                f"workdir {workdir}: expected a folder to write to,"
                f" found: {error.strerror or error}"
            ) from error
    processes.gather("marked", "marked")
    # Network file systems remember for a while that a file was not there.
    for _ in range(5):
        if seen := mark.exists():
            break
        time.sleep(1)
    everyone = processes.gather("mark seen", str(seen))
    if processes.first:
        mark.unlink(missing_ok=True)
    if "False" in everyone:
        blind = processes.name(everyone.index("False"))
        raise InputError(
            f"workdir {workdir}: expected a folder that all processes share; {blind} does not"
        )


def choose_step(
    workdir: epath.Path,
    processes: Processes,
    wanted: int | None,
    tell: Callable[[str], None],
    accept: Callable[[int], T],
) -> tuple[int, T] | None:
    """Returns the step to resume from, and what `accept` gives; None without a checkpoint.

    Every process calls it, and each verifies a share of the files.

    Args:
        workdir: the run's folder.
        processes: the processes that train together.
        wanted: the step that the user names; None takes the newest that is whole.
        tell: is given a line for each step that is moved aside, in process 0.
        accept: is given the step before anything is moved, and raises InputError if the run
            cannot go on from it.

    Raises:
        InputError: `wanted` is not there or damaged; or there are steps, and none is whole; or
            `accept` raises it.
    """
    everyone = steps(workdir) if processes.first else []
    known: list[int] = json.loads(processes.broadcast("steps", json.dumps(everyone)))
    if wanted is not None and wanted not in known:
        raise InputError(
            f"--step={wanted}: {workdir} has no such checkpoint; expected one of"
            f" {', '.join(map(str, known)) or 'none'}"
        )
    damaged: dict[int, str] = {}
    chosen = None
    for step in [wanted] if wanted is not None else reversed(known):
        if (found := _damage(workdir, step, processes)) is None:
            chosen = step
            break
        damaged[step] = found
    if damaged and chosen is None:
        reason = next(iter(damaged.values()))
        raise InputError(
            f"--step={wanted}: {reason}"
            if wanted is not None
            else f"no checkpoint of {workdir} is whole; the newest: {reason}"
        )
    accepted = None if chosen is None else (chosen, accept(chosen))
    if processes.first and chosen is not None:
        for step in known:
            why = damaged.get(step) or _of_another_run(workdir, step, chosen)
            if why is not None:
                tell(f"{why}; moved aside to {_move_aside(workdir, step)}")
        if damaged:
            tell(f"going on from step {chosen}, the newest that is whole")
    processes.gather("moved aside", "")
    return accepted


def _damage(workdir: epath.Path, step: int, processes: Processes) -> str | None:
    """Returns the first damage that a process found in its share of a step's files, or None."""
    share = processes.index, processes.count
    mine = checkpoints.damage(workdir / FOLDER / str(step), share)
    return next(filter(None, processes.gather(f"damage of {step}", mine or "")), None)


def _of_another_run(workdir: epath.Path, step: int, chosen: int) -> str | None:
    """Says why a step beside the chosen one cannot stay; None if it can.

    The run will save the step again, or cannot read how good it was.
    """
    folder = workdir / FOLDER / str(step)
    if step > chosen:
        return f"{folder}: after step {chosen}, from which this run goes on"
    return manifest.damage(folder, parts=("metrics",)) if manifest.exists(folder) else None


def _move_aside(workdir: epath.Path, step: int) -> epath.Path:
    """Moves a step's folder to a free name below set_aside, and returns that."""
    place = workdir / ASIDE / f"step_{step}"
    number = 1
    while place.exists():
        number += 1
        place = workdir / ASIDE / f"step_{step}_{number}"
    place.parent.mkdir(exist_ok=True)
    return (workdir / FOLDER / str(step)).rename(place)
