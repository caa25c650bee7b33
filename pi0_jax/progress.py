"""Shows progress bars: a terminal overwrites them, and a log file gets a line now and then."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from tqdm import tqdm

_TERMINAL_S, _LOG_S = 1.0, 10.0  # seconds between two states of a bar


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """Returns a tqdm bar on standard error; it takes tqdm's arguments.

    On a terminal the bar is drawn anew every second. Elsewhere each state is a line of its own, and
    ten seconds lie between two of them. The last state is always shown.
    """
    if sys.stderr.isatty():
        return tqdm(*args, mininterval=_TERMINAL_S, **options)
    # With miniters=0 only the clock decides when a state is shown.
    return tqdm(*args, file=_Lines(sys.stderr), mininterval=_LOG_S, miniters=0, **options)


@contextlib.contextmanager
def clock(text: str) -> Iterator[None]:
    """Shows `text` and the time that the block has taken, once it takes more than a second."""
    ended = threading.Event()

    def show() -> None:
        if ended.wait(_TERMINAL_S):
            return
        with progress_bar(
            desc=text, bar_format="{desc}, {elapsed}", leave=False, position=0
        ) as line:
            line.start_t -= _TERMINAL_S
            while not ended.wait(line.mininterval):
                line.refresh()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Lines:
    """Is the stream of a bar outside of a terminal: every state becomes a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        state = text.strip("\r\n ")
        if state:
            self._stream.write(state + "\n")

    def flush(self) -> None:
        self._stream.flush()
