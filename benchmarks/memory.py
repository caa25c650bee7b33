"""Measures the anonymous memory of this process, on Linux.

It is what the process has allocated, without the page cache's mapped files.
"""

import threading

_INTERVAL_S = 0.02


def anonymous_bytes() -> int:
    """Returns RssAnon of /proc/self/status."""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class PeakMemory:
    """Watches by how many bytes RssAnon grows at most while a block runs.

    with PeakMemory() as peak:
        ...
    peak.growth
    """

    def __enter__(self) -> "PeakMemory":
        self._start = anonymous_bytes()
        self._most = self._start
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return max(self._most, anonymous_bytes()) - self._start

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._most = max(self._most, anonymous_bytes())
