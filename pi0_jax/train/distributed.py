"""Several processes train as one: they find, hear and end each other.

    initialize   before any other use of JAX: joins the processes that flags, the environment,
                 SLURM or a TPU pod name
    Processes    passes short texts between them; when one ends with an error or goes silent, all
                 end, with a line that says which
    StopSignal   SIGTERM, Ctrl-C and SIGHUP end all of them after the same step

Texts go through the key-value store of jax.distributed, not through devices. So the others hear of
a failed process even while they wait for it in a computation. A process alone exchanges nothing.
"""

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Self

import jax
from jax._src import distributed as jax_distributed  # the key-value store has no public name

from pi0_jax.errors import InputError

_BEAT_SECONDS = 1.0
# The others give up a process that is silent for this time.
SILENCE_SECONDS = 25
# JAX gives up a silent process too, and aborts. It does so this time after twice our own limit: at
# a death, the last heartbeat that JAX has may be half of its limit old.
_BACKSTOP_SECONDS = 8
# Process 0 waits this long for the others to leave first. Without it JAX aborts them.
_LEAVE_SECONDS = 5.0
# One process may index for hours, so waiting has no real limit. Whoever waits for a dead process is
# ended by the watch.
_NO_LIMIT_MS = 7 * 24 * 3600 * 1000

_POLL_SECONDS = 0.5
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def initialize(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    silence_seconds: int = SILENCE_SECONDS,
) -> None:
    """Joins the other processes of the run, where there are any.

    Call it before anything else that uses JAX. An argument that is None is taken from the
    environment (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID). If all three are
    missing, JAX looks for a TPU pod, SLURM or Open MPI. If it finds none, the process is alone.

    Args:
        coordinator_address: host:port of process 0.
        num_processes: with 1 the process is alone and does not look.
        process_id: from 0.
        silence_seconds: see Processes.

    Raises:
        InputError: only some of the three are known, or process_id is out of range.
    """
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _number("num_processes", num_processes, "JAX_NUM_PROCESSES")
    index = _number("process_id", process_id, "JAX_PROCESS_ID")
    if count == 1:
        return
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < 3:
        raise InputError(
            f"{' and '.join(missing)}: expected coordinator_address, num_processes and process_id"
            " together, or none of them"
        )
    if count is not None and index is not None and not 0 <= index < count:
        raise InputError(
            f"process_id is {index}; expected a number from 0 to {count - 1} of {count} processes"
        )
    # JAX would stop for SIGTERM alone, and only where there are several processes: see StopSignal.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=address,
            num_processes=count,
            process_id=index,
            heartbeat_timeout_seconds=2 * silence_seconds + _BACKSTOP_SECONDS,
            shutdown_timeout_seconds=silence_seconds,
        )
    except ValueError as error:
        if missing and "coordinator_address should be defined" in str(error):
            return  # no cluster found
        raise InputError(f"processes of the run: {error}") from error


def _number(flag: str, value: int | None, variable: str) -> int | None:
    """Returns a number from a flag, or else from an environment variable; None without both."""
    text = os.environ.get(variable)
    if value is not None or text is None:
        return value
    if not text.isdigit():
        raise InputError(f"{variable} is {text!r}; expected a number, as of --{flag}")
    return int(text)


class Processes(contextlib.AbstractContextManager["Processes"]):
    """Is this process among those of the run.

    All processes make the same calls with the same names; a name is used once.

    Leaving the block without an error waits for all processes. After an error the process tells the
    others, and all of them end with its line and status (2 for an InputError, else 1). JAX's own
    shutdown would wait for processes that wait for this one. A process that is silent for
    `silence_seconds` is given up: the others end. A process alone just lets the error through.

    Attributes:
        index: this process's number, from 0.
        count: the number of processes.
        first: whether this is process 0, which prints and writes.
    """

    def __init__(self, silence_seconds: int = SILENCE_SECONDS) -> None:
        self._silence_seconds = silence_seconds
        self.index, self.count = jax.process_index(), jax.process_count()
        self.first = self.index == 0
        if self.count == 1:
            self._hosts = [socket.gethostname()]
            return
        client = jax_distributed.global_state.client
        assert client is not None  # several processes have joined, so they have a client
        self._client: Any = client
        number = self._client.key_value_increment(f"pi0_jax/runs/{self.index}", 1)
        self._prefix = f"pi0_jax/{number}"
        self._hosts = self.gather("host", socket.gethostname())
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="processes", daemon=True)

    def __enter__(self) -> Self:
        if self.count > 1:
            self._watching.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.count == 1:
            return
        if error is not None:
            self._fail(error)
        self.gather("over", "over")
        self._over.set()
        self._watching.join()

    def name(self, index: int) -> str:
        """Returns a process's number and host, for messages."""
        return f"process {index} ({self._hosts[index]})"

    def gather(self, name: str, text: str) -> list[str]:
        """Returns the text of every process, in order; waits for all of them."""
        if self.count == 1:
            return [text]
        self._client.key_value_set(f"{self._prefix}/{name}/{self.index}", text)
        return [
            self._client.blocking_key_value_get(f"{self._prefix}/{name}/{i}", _NO_LIMIT_MS)
            for i in range(self.count)
        ]

    def broadcast(self, name: str, text: str) -> str:
        """Returns the text of process 0; the others wait for it."""
        if self.count == 1:
            return text
        if self.first:
            self._client.key_value_set(f"{self._prefix}/{name}/0", text)
        return self._client.blocking_key_value_get(f"{self._prefix}/{name}/0", _NO_LIMIT_MS)

    def check_same(self, name: str, facts: Mapping[str, str]) -> None:
        """Checks that facts, by name, are the same on all processes; `name` names this check.

        Raises:
            InputError: a fact differs from that of process 0. It is raised on every process, and
                names the first process that differs, and the fact.
        """
        everyone = [json.loads(text) for text in self.gather(name, json.dumps(dict(facts)))]
        for index, theirs in enumerate(everyone):
            for fact in everyone[0] | theirs:
                expected, found = everyone[0].get(fact, "none"), theirs.get(fact, "none")
                if found != expected:
                    raise InputError(
                        f"{self.name(index)}: {fact} is {found}; expected that of process 0,"
                        f" {expected}"
                    )

    def publish(self, name: str) -> None:
        """Sets a mark that all processes can see, once or again, without waiting."""
        if self.count > 1:
            self._client.key_value_set(f"{self._prefix}/{name}/said", "yes", allow_overwrite=True)

    def published(self, name: str) -> bool:
        """Returns whether a process has set this mark."""
        return self.count > 1 and bool(self._client.key_value_dir_get(f"{self._prefix}/{name}/"))

    def _watch(self) -> None:
        """Tells the others that this process lives; ends it when another one failed or is lost."""
        # The key of a process -> its last beat, and the time at which that beat was new.
        heard: dict[str, tuple[str, float]] = {}
        try:
            for beat in itertools.count():
                self._client.key_value_set(
                    f"{self._prefix}/alive/{self.index}", str(beat), allow_overwrite=True
                )
                if self._over.wait(_BEAT_SECONDS):
                    return
                failed = self._client.key_value_dir_get(f"{self._prefix}/failed/")
                if self._over.is_set():
                    return
                for _, text in failed:
                    self._end(**json.loads(text))
                for key, text in self._client.key_value_dir_get(f"{self._prefix}/alive/"):
                    if key not in heard or heard[key][0] != text:
                        heard[key] = text, time.monotonic()
                    if time.monotonic() - heard[key][1] > self._silence_seconds:
                        dead = self.name(int(key.rsplit("/", 1)[1]))
                        self._end(
                            f"{dead} has died or cannot be reached; what was saved is whole, and"
                            " the same command goes on from there",
                            1,
                        )
        except jax.errors.JaxRuntimeError as error:
            leader = f"{self.name(0)}, which the others talk through,"
            self._end(f"{leader} has died or cannot be reached: {_one_line(error)}", 1)

    def _fail(self, error: BaseException) -> None:
        """Ends all processes because of an error in this one."""
        if isinstance(error, InputError):
            message, status = str(error), 2
        else:
            traceback.print_exception(error)
            message, status = f"{type(error).__name__}: {error}", 1
        # Most often the cause is another process's death. The watch knows more in a moment.
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(self._silence_seconds + 3 * _BEAT_SECONDS)
        self.leave(message, status)

    def leave(self, message: str, status: int) -> NoReturn:
        """Ends this process and all others at once, each with `message` and `status`."""
        if self.count > 1:
            self._over.set()
            told = {"message": f"{self.name(self.index)}: {message}", "status": status}
            self._client.key_value_set(f"{self._prefix}/failed/{self.index}", json.dumps(told))
        self._end(message, status)

    def _end(self, message: str, status: int) -> NoReturn:
        """Writes `message` to stderr in one line, and ends this process with `status`.

        Process 0 has the key-value store, so it waits a few seconds for the others to end.
        """
        sys.stdout.flush()
        sys.stderr.write(f"{'error: ' if status else ''}{_one_line(message)}\n")
        sys.stderr.flush()
        if self.count == 1:
            os._exit(status)
        # Process 0 may be gone, and the key-value store with it.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{self._prefix}/left/{self.index}", "left")
            deadline = time.monotonic() + _LEAVE_SECONDS
            while (
                self.first
                and time.monotonic() < deadline
                and len(self._client.key_value_dir_get(f"{self._prefix}/left/")) < self.count
            ):
                time.sleep(0.1)
        os._exit(status)


def _one_line(text: object) -> str:
    """Returns a text in one line, cut at 2,000 characters."""
    return " ".join(str(text).split())[:2000]


class StopSignal(contextlib.AbstractContextManager["StopSignal"]):
    """Ends training at the next step that all processes can reach, which is saved.

        process 0   step 7 | 8 ................ 9 | saves 9
        process 1   step 6 | SIGTERM  7 | 8     9 | saves 9

    The loops wait while each process says where it is. They stop one step after the furthest.
    Before the first step there is nothing to save, and all processes end at once. A second signal
    ends its process at once, whatever it is doing, with 128 and the signal's number.

    Signals are handled only in the main thread of a program, where Python lets them be handled.
    Elsewhere they stay as they are. A signal that is ignored, as SIGHUP is under nohup, stays
    ignored.

    Attributes:
        name: the name of the signal that asked for a stop, on whichever process; "" without one.
    """

    def __init__(
        self, processes: Processes, before_exit: Callable[[], None] = lambda: None
    ) -> None:
        """Prepares to listen; `before_exit` is called where a signal ends the process at once."""
        self._processes = processes
        self._before_exit = before_exit
        self._lock = threading.Lock()
        self._step = -1
        self._at: int | None = None
        self.name = ""
        self._over = threading.Event()
        self._listening = threading.Thread(target=self._listen, name="stop", daemon=True)

    def __enter__(self) -> Self:
        # Signals arrive as bytes on a socket. So a thread sees them even while XLA compiles.
        self._received, self._sent = socket.socketpair()
        for end in (self._received, self._sent):
            end.setblocking(False)
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._wakeup = signal.set_wakeup_fd(self._sent.fileno(), warn_on_full_buffer=False)
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, lambda number, frame: None)
        self._listening.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            # A process that is asked to stop still needs the others' answers.
            self._processes.gather("stop listening", "")
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup)
        self._over.set()
        # Otherwise the thread may wait for the others, which are about to end.
        if error is None or self._processes.count == 1:
            self._sent.send(b"\0")
            self._listening.join()
            self._sent.close()
            self._received.close()

    def reached(self, step: int) -> bool:
        """Returns whether training ends after `step` steps.

        Every process calls it after every step, and all get the same answer.
        """
        with self._lock:
            self._step = step
            return self._at is not None and step >= self._at

    def _listen(self) -> None:
        """Waits for signals and for other processes' wish to stop, until the block ends."""
        asked: list[int] = []
        while not self._over.is_set():
            ready, _, _ = select.select([self._received], [], [], _POLL_SECONDS)
            if ready:
                asked += [number for number in self._received.recv(64) if number in self._before]
            if len(asked) > 1:
                self._before_exit()
                os._exit(128 + asked[1])
            if self._at is None:
                if asked:
                    self._ask(signal.Signals(asked[0]).name)
                if asked or self._processes.published("stop"):
                    self._agree()

    def _ask(self, name: str) -> None:
        """Tells all processes to stop; before the first step it ends them at once."""
        with self._lock:
            started = self._step >= 0
        if not started:
            self._before_exit()
            self._processes.leave(
                f"{name}: stopped before the first step; there was nothing to save", 0
            )
        self.name = name
        self._processes.publish("stop")

    def _agree(self) -> None:
        """Agrees with the others on the last step: one after the furthest process."""
        with self._lock:
            said = self._processes.gather("stop after", json.dumps([self._step, self.name]))
            steps, names = zip(*map(json.loads, said), strict=True)
            self.name = next(filter(None, names))
            self._at = max(steps) + 1
