"""SIGTERM, with which a machine announces that it is about to go: training ends at the next step that all processes can reach.

process 0   step 7 | 8 ................ 9 | saves 9
process 1   step 6 | SIGTERM  7 | 8     9 | saves 9       the loops wait while each says where it is: one after the furthest
"""

import contextlib
import os
import select
import signal
import socket
import threading
from types import TracebackType
from typing import Self

from pi0_jax.train.distributed import Processes

_POLL_SECONDS = 0.5
_ENDED = 128 + signal.SIGTERM


class StopSignal(contextlib.AbstractContextManager["StopSignal"]):
    """While it is open a first SIGTERM asks for a stop; a second one ends the process at once, whatever it is doing.

    Only in the main thread of a program, where Python lets signals be handled; elsewhere SIGTERM stays as it is.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._lock = threading.Lock()
        self._step = -1
        self._at: int | None = None
        self._over = threading.Event()
        self._listening = threading.Thread(target=self._listen, name="stop", daemon=True)

    def __enter__(self) -> Self:
        # signals come as bytes: a thread sees them even while XLA compiles
        self._received, self._sent = socket.socketpair()
        for end in (self._received, self._sent):
            end.setblocking(False)
        self._handled = threading.current_thread() is threading.main_thread()
        if self._handled:
            self._wakeup = signal.set_wakeup_fd(self._sent.fileno(), warn_on_full_buffer=False)
            self._before = signal.signal(signal.SIGTERM, lambda number, frame: None)
        self._listening.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            # one that is asked to stop still needs the others' answers
            self._processes.gather("stop listening", "")
        if self._handled:
            signal.signal(signal.SIGTERM, self._before)
            signal.set_wakeup_fd(self._wakeup)
        self._over.set()
        # else the thread may wait for the others, who are about to end
        if error is None or self._processes.count == 1:
            self._sent.send(b"\0")
            self._listening.join()
            self._sent.close()
            self._received.close()

    def reached(self, step: int) -> bool:
        """Whether training is to end after `step` steps; every process calls it after every step, and all get the same answer."""
        with self._lock:
            self._step = step
            return self._at is not None and step >= self._at

    def _listen(self) -> None:
        asked = 0
        while not self._over.is_set():
            ready, _, _ = select.select([self._received], [], [], _POLL_SECONDS)
            if ready:
                asked += self._received.recv(64).count(signal.SIGTERM)
            if asked > 1:
                os._exit(_ENDED)
            if self._at is None:
                if asked:
                    self._processes.publish("stop")
                if asked or self._processes.published("stop"):
                    self._agree()

    def _agree(self) -> None:
        with self._lock:
            self._at = max(map(int, self._processes.gather("stop after", str(self._step)))) + 1
