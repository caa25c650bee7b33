"""Reads files behind a URL with fsspec: byte ranges by any thread, and streams that read ahead.

A request is repeated if it breaks off, takes too long, or is answered with HTTP 408, 429 or 5xx.
The wait before it doubles each time, within the bounds of a `Patience`. A missing file or a refused
access is reported at once. Bytes of another place or number than asked for are never handed on.
"""

import dataclasses
import io
import itertools
import random
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import fsspec
from fsspec.config import conf as user_options

from pi0_jax.data.remote_errors import (
    HTTP,
    NoRangesError,
    WrongAnswerError,
    diagnose,
    errors,
    without_secrets,
)
from pi0_jax.errors import InputError

T = TypeVar("T")

_BLOCK_BYTES = 8 << 20  # of a stream: what one request asks for
_BLOCKS_AHEAD = 2  # of a stream: requests on their way while a block is consumed
_BUFFER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, repr=False)
class RemotePath:
    """Holds a URL.

    It prints without user name, password and query, which may be secret. Messages show it so, and
    never its `url`.
    """

    url: str

    def __truediv__(self, name: str) -> "RemotePath":
        """Returns the file or folder `name` in this folder; a query stays at the end."""
        folder, mark, query = self.url.partition("?")
        return RemotePath(f"{folder if folder.endswith('/') else folder + '/'}{name}{mark}{query}")

    def __str__(self) -> str:
        return without_secrets(self.url)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    @property
    def name(self) -> str:
        """Returns the last part of the path."""
        return self.url.partition("?")[0].rstrip("/").rpartition("/")[2]

    @property
    def protocol(self) -> str:
        """Returns what stands before ://, such as "https"."""
        return self.url.partition("://")[0]


class MissingFileError(InputError):
    """Is raised where there is no such file."""


class Patience(NamedTuple):
    """Says how long a request is tried."""

    tries: int = 8
    first_wait_s: float = 0.25  # waits double; each is shortened by up to a half at random
    try_s: float = 60.0  # the longest time of one try
    total_s: float = 120.0  # the longest time of all tries together


PATIENCE = Patience()


def file_info(path: RemotePath, patience: Patience = PATIENCE) -> dict[str, Any]:
    """Returns what the storage says of a file, with "size" in bytes.

    Raises:
        InputError: as for `read_range`, or the size is not known.
    """
    info = _persist(
        path, "a file", lambda files, name, **limit: files.info(name, **limit), patience
    )
    if info["type"] != "file":
        raise MissingFileError(f"{path}: expected a file, found a {info['type']}")
    if info["size"] is None:
        raise InputError(f"{path}: expected a server that says how long a file is, found none said")
    return info


def read_range(path: RemotePath, offset: int, length: int, patience: Patience = PATIENCE) -> bytes:
    """Returns the bytes [offset, offset + length) of a file.

    Any number of threads may read at once: fsspec's requests run in one event loop of its own.

    Raises:
        MissingFileError: there is no such file.
        InputError: the access is refused, the server ignores ranges, the file is shorter, or faults
            last longer than `patience`. The message names URL, range and the last problem.
    """
    if not length:
        return b""

    def attempt(files: fsspec.AbstractFileSystem, name: str, **limit: float) -> bytes:
        data = files.cat_file(name, start=offset, end=offset + length, **limit)
        if len(data) > length:
            raise NoRangesError(f"{len(data)}: byte ranges are not served")
        if len(data) < length:
            raise WrongAnswerError(f"{len(data)}: cut short, or the file has changed")
        return data

    return _persist(path, f"{length} bytes at byte {offset}", attempt, patience)


def read_all(path: RemotePath, patience: Patience = PATIENCE) -> bytes:
    """Returns the bytes of a small file.

    Raises:
        InputError: as for `read_range`.
    """
    return _persist(
        path, "a file", lambda files, name, **limit: files.cat_file(name, **limit), patience
    )


def open_stream(path: RemotePath) -> io.BufferedReader:
    """Opens a file for reading from its start. At most a few blocks of it are in memory.

    Raises:
        InputError: as for `read_range`, now or when the stream is read.
    """
    return io.BufferedReader(_BlockStream(path, file_info(path)["size"]), _BUFFER_BYTES)


class _BlockStream(io.RawIOBase):
    """Reads a file by blocks. Threads fetch the next blocks while one is consumed."""

    def __init__(self, path: RemotePath, size: int) -> None:
        self._pool = ThreadPoolExecutor(_BLOCKS_AHEAD, thread_name_prefix="read-ahead")
        self._ranges = (
            (path, offset, min(_BLOCK_BYTES, size - offset))
            for offset in range(0, size, _BLOCK_BYTES)
        )
        self._coming: deque[Future[bytes]] = deque()
        self._rest = memoryview(b"")
        self._ask(_BLOCKS_AHEAD)

    def _ask(self, blocks: int) -> None:
        self._coming.extend(
            self._pool.submit(read_range, *wanted)
            for wanted in itertools.islice(self._ranges, blocks)
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest and self._coming:
            self._rest = memoryview(self._coming.popleft().result())
            self._ask(1)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()


def _persist(path: RemotePath, wanted: str, attempt: Callable[..., T], patience: Patience) -> T:
    """Calls `attempt` with file system and the file's name there, as often as that may help."""
    files, name = file_system(path)
    start, tries = time.monotonic(), 0
    while True:
        tries += 1
        left = patience.total_s - (time.monotonic() - start)
        # The event loop of an asynchronous file system ends a request that takes longer. Other file
        # systems have limits of their own.
        limit = {"timeout": max(0.1, min(patience.try_s, left))} if files.async_impl else {}
        try:
            return attempt(files, name, **limit)
        except errors(path.protocol) as error:
            problem = diagnose(error, path.protocol)
            spent = time.monotonic() - start
            wait = patience.first_wait_s * 2 ** (tries - 1) * random.uniform(0.5, 1.0)
            if not problem.repeatable or tries == patience.tries or spent + wait > patience.total_s:
                kind = MissingFileError if problem.missing else InputError
                lasted = f" ({tries} tries in {spent:.1f} s)" if problem.repeatable else ""
                # A library's own message may show the whole URL. If the URL holds a secret, the
                # message is not chained.
                cause = error if str(path) == path.url else None
                raise kind(f"{path}: expected {wanted}, found {problem.found}{lasted}") from cause
        time.sleep(wait)


def file_system(path: RemotePath) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns fsspec's instance for the URL, and the file's name there.

    Raises:
        InputError: fsspec does not know such URLs, or lacks the package for them.
    """
    # fsspec keeps one instance for each process, so it is asked each time.
    try:
        options = _http_options(path.protocol) if path.protocol in HTTP else {}
        return fsspec.core.url_to_fs(path.url, use_listings_cache=False, **options)
    except ImportError as error:
        raise InputError(
            f"{path}: reading {path.protocol}:// needs another package: pip install 'pi0_jax[remote]' (found: {error})"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path}: expected a URL that fsspec reads, found: {without_secrets(str(error))}"
        ) from None


def _http_options(protocol: str) -> dict[str, Any]:
    """Returns the user's own client options, from fsspec's configuration, and ours."""
    import aiohttp

    # Bytes come as they are, a long silence ends a request, and ranges are checked.
    client: dict[str, Any] = {"headers": {"Accept-Encoding": "identity"}}
    client |= user_options.get(protocol, {}).get("client_kwargs", {})
    client |= {
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=30),
        "raise_for_status": _refuse_other_bytes,
    }
    return {"client_kwargs": client}


async def _refuse_other_bytes(response: Any) -> None:
    """Checks an answer's head, so that a server without ranges sends no whole files to memory."""
    # A request for "bytes=100-199" is answered with "bytes 100-199/5000".
    wanted = response.request_info.headers.get("Range")
    if wanted is None or response.status >= 400:
        return
    given = response.headers.get("Content-Range")
    if (
        response.status != 206
        or given is None
        or not given.startswith(wanted.partition("-")[0].replace("=", " ") + "-")
    ):
        response.close()
        raise NoRangesError(
            f"HTTP {response.status}, content range {given}: byte ranges are not served"
        )
    if response.headers.get("Content-Encoding") not in (None, "identity"):
        response.close()
        raise NoRangesError(f"bytes encoded with {response.headers['Content-Encoding']}")
