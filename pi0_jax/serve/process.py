"""Starts a policy server of ours beside this process, by another Python if need be, and stops it.

A simulator pins packages that a policy does not have, and the other way round. So each has its own
environment, and they meet at a local port.
"""

import contextlib
import ctypes
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from pi0_jax.errors import InputError
from pi0_jax.serve.client import Client

_PORT = re.compile(r"warm on ws://[^ ]*:(\d+)\s*")
# A server that should stop is killed after this time.
_STOP_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
# A policy call of many rows on a slow machine.
_CALL_SECONDS = 300.0


@contextlib.contextmanager
def serving(
    python: str, module: str, arguments: Sequence[str], tell: Callable[[str], None]
) -> Iterator[Client]:
    """Runs launch.serve on a free port of this machine, and gives a client of it.

    Args:
        python: the Python of the policy's environment.
        module: the name of launch.serve there.
        arguments: of launch.serve: --checkpoint=DIR and so on.
        tell: gets what the server says.

    Raises:
        InputError: the server ends before it is ready.
    """
    command = [python, "-m", module, "--port=0", *arguments]
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, preexec_fn=_end_with_parent
        )
    except OSError as error:
        expected = "expected the Python of the policy's environment"
        raise InputError(f"{python}: {expected}, found: {error.strerror}") from error
    try:
        yield from _client(process, tell)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    """Lets Linux stop the server when this process is killed and cannot do so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _client(process: subprocess.Popen[str], tell: Callable[[str], None]) -> Iterator[Client]:
    assert process.stdout is not None
    for line in process.stdout:
        tell(line.rstrip())
        if found := _PORT.match(line):
            with Client(f"127.0.0.1:{found[1]}", timeout=_CALL_SECONDS) as client:
                yield client
            return
    status = process.wait()
    raise InputError(f"the server ended with status {status} before it was ready, as said above")
