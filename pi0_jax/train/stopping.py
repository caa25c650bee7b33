"""SIGTERM, Ctrl-C and SIGHUP end training at the next step that all processes can reach.

That step is saved.

    process 0   step 7 | 8 ................ 9 | saves 9
    process 1   step 6 | SIGTERM  7 | 8     9 | saves 9

The loops wait while each process says where it is. They stop one step after the furthest.

Before the first step there is nothing to save, and all processes end at once. A second signal ends
its process at once, whatever it is doing.
"""

import contextlib
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pi0_jax.train.distributed import Processes

_POLL_SECONDS = 0.5
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignal(contextlib.AbstractContextManager["StopSignal"]):
    """Asks for a stop at a first signal, while it is open; a second one ends the process.

    The process then ends with 128 and the signal's number.

    Signals are handled only in the main thread of a program, where Python lets them be handled.
    Elsewhere they stay as they are. A signal that is ignored, as SIGHUP is under nohup, stays
    ignored.

    Attributes:
        name: the name of the signal that asked for a stop, on whichever process; "" without one.
    """

    def __init__(
        self, processes: Processes, before_exit: Callable[[], None] = lambda: None
    ) -> None:
        """Prepares to listen; entering the block begins it.

        Args:
            processes: the processes that train together.
            before_exit: is called where a signal ends the process at once.
        """
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
