"""Serves files over HTTP and does wrong on demand.

It serves byte ranges, lists nothing, and keeps a record of what it was asked.
"""

import collections
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

# An HTTP status, or:
DROP = "drop"  # breaks off in the middle of the body
SHORT = "short"  # sends half of what was asked for, and says so
WHOLE = "whole"  # ignores the range and sends all
ELSEWHERE = "elsewhere"  # sends as many bytes from another place
STALL = "stall"  # says nothing for STALL_S
STALL_S = 2.0


class Request(NamedTuple):
    method: str
    path: str  # with its query
    range: str | None
    authorization: str | None


class FaultyServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.etags: dict[str, str] = {}  # file name -> its ETag
        self.latency_s = 0.0
        self.requests: list[Request] = []
        self.bytes_sent = 0
        self.most_at_once = 0
        self._at_once = 0
        self._faults: dict[tuple[str, str], collections.deque] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fail(self, name: str, *faults, method: str = "GET") -> None:
        """Makes the next requests for the file `name` go wrong like this, one fault each."""
        self._faults[method, name] = collections.deque(faults)

    def asked(self, method: str, name: str) -> list[Request]:
        return [
            r
            for r in self.requests
            if r.method == method and r.path.partition("?")[0].endswith(name)
        ]

    def handle_error(self, request, client_address) -> None:
        """Clients that hang up are part of the tests."""

    def next_fault(self, method: str, name: str):
        with self._lock:
            faults = self._faults[method, name] if (method, name) in self._faults else ()
            return faults.popleft() if faults else None

    @contextmanager
    def counted(self, request: Request):
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two small writes
    server: FaultyServer

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_HEAD

    def log_message(self, *_) -> None:
        pass

    def _answer(self) -> None:
        wanted = self.headers.get("Range")
        with self.server.counted(
            Request(self.command, self.path, wanted, self.headers.get("Authorization"))
        ):
            file = self.server.root / self.path.partition("?")[0].lstrip("/")
            fault = self.server.next_fault(self.command, file.name)
            time.sleep(STALL_S if fault == STALL else self.server.latency_s)
            if isinstance(fault, int):
                self._refuse(fault)
            elif not file.is_file():
                self._refuse(404)
            else:
                self._send(file, wanted, fault)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, file: Path, wanted: str | None, fault) -> None:
        size = file.stat().st_size
        start, stop = 0, size
        if wanted is not None and fault != WHOLE:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop = int(first), min(size, int(last) + 1)
            if start >= size:
                return self._refuse(416)
            stop -= (stop - start) // 2 if fault == SHORT else 0
            shift = min(100, size - stop) if fault == ELSEWHERE else 0
            start, stop = start + shift, stop + shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        if file.name in self.server.etags:
            self.send_header("ETag", self.server.etags[file.name])
        self.end_headers()
        if self.command == "GET":
            self._send_body(file, start, (start + stop) // 2 if fault == DROP else stop)
            self.close_connection = fault == DROP
        return None

    def _send_body(self, file: Path, start: int, stop: int) -> None:
        with open(file, "rb") as source:
            source.seek(start)
            while start < stop:
                chunk = source.read(min(1 << 16, stop - start))
                self.wfile.write(chunk)
                start += len(chunk)
                self.server.bytes_sent += len(chunk)


@contextmanager
def serving(root: Path):
    server = FaultyServer(root)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
