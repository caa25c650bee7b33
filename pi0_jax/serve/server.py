"""Serves a policy over websockets.

    event loop   handshakes, pings, /healthz, one conversation per client
    one thread   loading and compiling, then every request in turn: unpack, policy, pack

The port is taken first, because loading may take minutes. So a port in use is told at once, and
clients that come early wait for the metadata.

    client   ->  connect (Authorization: Api-Key ..., where one is asked for)
             <-  metadata, as soon as the policy is warm
             ->  observation      a binary frame
             <-  actions          a binary frame; or what was wrong with the observation, a text
                                  frame: the connection stays open

A conversation holds at most one request. Requests run in the order in which they came: between two
requests of one client, every other client that waits has its turn. A message over the limit closes
its connection with code 1009.

A client is proven when one of its requests was answered. A client is never dropped only because it
is idle. A client is dropped to make room for others in two cases:

- `max_connections` clients are there and another one comes. The client that makes room is not
  proven. A new client that finds no room is answered 503.
- All clients together hold more bytes than `max_in_flight_bytes`. The client that holds most is
  dropped.
"""

import asyncio
import dataclasses
import hmac
import ipaddress
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, TypeVar

from websockets.asyncio.server import Request, Response, Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from pi0_jax.errors import InputError, NotFiniteError
from pi0_jax.freed_memory import give_back_freed_memory
from pi0_jax.serve import wire
from pi0_jax.serve.service import Service

HEALTH_PATH = "/healthz"
# The bytes of pongs that a client may leave unread.
MOST_PONGS = 2**14
# After so many requests in a row without an answer the server says that it is not healthy. The
# clients' own mistakes do not count.
_SICK = 5
# Bytes that are handled at a time of what arrives. After each part the server looks at what the
# client has left unread.
_PART = 2**15
# Seconds in which a new client need not make room for another.
_GRACE_S = 1.0
# Seconds between two looks at whether freed memory is worth giving back, and how many bytes must
# have been held at once since the last time. What clients send in turn is used again.
_TRIM_S = 10.0
_WORTH_GIVING_BACK = 2**25
# A message's frames take at most so many bytes, where its client sends nothing ahead.
_FRAMING = 2**10

_UNAVAILABLE = HTTPStatus.SERVICE_UNAVAILABLE
logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Options:
    """Holds the server's options: address and limits.

    Attributes:
        port: 0 takes any that is free.
        api_key: the key that clients must send, or None.
        max_in_flight_bytes: bytes of requests without an answer yet, of all clients together.
        send_seconds: a client is dropped if it does not take its answer within this time.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_message_bytes: int = 16 * 2**20
    max_connections: int = 64
    max_in_flight_bytes: int = 128 * 2**20
    send_seconds: float = 20.0


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach an address; of names only "localhost" is it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(
    load: Callable[[], Service],
    options: Options,
    on_state: Callable[[str, int], None] = lambda state, port: None,
) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests that it has and returns.

    Args:
        load: returns the service, ready to answer. It is called once, after the port is taken, in
            the thread that answers requests.
        options: where to listen, and the limits.
        on_state: is told "listening" and later "warm", each with the port.

    Raises:
        InputError: the address cannot be bound. Whatever `load` raises comes through as well.
    """
    asyncio.run(_PolicyServer(options).run(load, on_state))


class _Traffic:
    """Counts the bytes that all clients together have sent and that are not answered yet."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.connections: set[_Connection] = set()
        self.peak = 0  # the most bytes that were held at once since `since_last` was called

    def add(self, connection: "_Connection", count: int) -> None:
        """Counts bytes that came, and drops the client that holds most if there are too many.

        Clients that are not proven are dropped first.
        """
        connection.held += count
        self.peak = max(self.peak, self._held())
        while self._held() > self._most:
            unproven = {each for each in self.connections if not each.proven}
            largest = max(unproven or self.connections, key=lambda each: each.held)
            # The unproven clients hold nothing, so a proven one must make room.
            if not largest.held:
                largest = max(self.connections, key=lambda each: each.held)
            largest.drop(f"of all that is not answered it holds the most, {largest.held:,} bytes")

    def since_last(self) -> int:
        """Returns the most bytes of unanswered requests at one time since the last call."""
        peak, self.peak = self.peak, self._held()
        return peak

    def _held(self) -> int:
        return sum(each.held for each in self.connections)

    def make_room(self) -> bool:
        """Drops the unproven client that has been there longest, and returns whether there is one."""
        patient = time.monotonic() - _GRACE_S
        waiting = [each for each in self.connections if not each.proven and each.since < patient]
        if waiting:
            oldest = min(waiting, key=lambda each: each.since)
            oldest.drop("it has sent no request that could be answered, and makes room for another")
        return bool(waiting)


class _Connection(ServerConnection):
    """Is one client's connection, and ends it if the client does not read.

    The server waits until a client takes its answer. But a client could ask for pongs without end,
    and they would pile up. Few of them are allowed, because asyncio adds up all that waits at every
    write.
    """

    # The server sets it, in a subclass of its own.
    _traffic: _Traffic

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.answer_bytes = 0  # of the last message that the client was sent
        self.held = 0  # bytes that came and are not answered yet
        self.proven = False  # whether one of the client's requests was answered
        self.since = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._traffic.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._traffic.connections.discard(self)
        super().connection_lost(exc)

    def drop(self, why: str) -> None:
        """Ends the connection at once: an orderly end would wait for the client."""
        logger.warning("%s: dropped: %s", _name(self), why)
        self._traffic.connections.discard(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _PART):
            part = data[start : start + _PART]
            super().data_received(part)
            self._traffic.add(self, len(part))
            if self.transport.is_closing():
                return
            if self.transport.get_write_buffer_size() > MOST_PONGS + self.answer_bytes:
                self.drop("does not read")
                return


class _PolicyServer:
    def __init__(self, options: Options) -> None:
        self._options = options
        # It is set when the server is warm.
        self._service: Service
        self._warm, self._stopping = asyncio.Event(), asyncio.Event()
        # Requests since the last one that was answered. A client's own mistakes do not count.
        self._unanswered = 0
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self._traffic = _Traffic(options.max_in_flight_bytes)

    async def run(self, load: Callable[[], Service], on_state: Callable[[str, int], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            server = await self._listen()
        except OSError as error:
            place = f"{self._options.host}:{self._options.port}"
            # The text of asyncio's own errors repeats the address. Errors in host names have
            # negative numbers, which os.strerror does not know.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise InputError(f"cannot listen on {place}: {reason}") from error
        port = next(iter(server.sockets)).getsockname()[1]
        on_state("listening", port)
        # While the policy loads, SIGINT ends the process at once, as SIGTERM does: nobody waits for
        # a compilation to end.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        trimming = asyncio.ensure_future(self._give_memory_back())
        with self._worker:
            try:
                self._service = await loop.run_in_executor(self._worker, load)
                for stop in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(stop, self._stopping.set)
                self._warm.set()
                on_state("warm", port)
                await self._stopping.wait()
            finally:
                self._stopping.set()
                trimming.cancel()
                server.close(close_connections=False)
                await server.wait_closed()

    async def _listen(self) -> Server:
        class Connection(_Connection):
            _traffic = self._traffic

        return await serve(
            self._converse,
            self._options.host,
            self._options.port,
            process_request=self._check_request,
            # Browsers send an Origin header, and None refuses it: no web page may talk to a robot.
            origins=[None],
            compression=None,
            max_size=self._options.max_message_bytes,
            max_queue=1,
            server_header=None,
            create_connection=Connection,
        )

    async def _give_memory_back(self) -> None:
        """Gives the memory of large messages back to the system, for as long as the server runs."""
        while True:
            await asyncio.sleep(_TRIM_S)
            if self._traffic.since_last() > _WORTH_GIVING_BACK:
                give_back_freed_memory()

    def _check_request(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == HEALTH_PATH:
            if self._unanswered >= _SICK:
                none = f"none of the last {self._unanswered} requests could be answered"
                return connection.respond(_UNAVAILABLE, f"not healthy: {none}\n")
            if self._warm.is_set() and not self._stopping.is_set():
                return connection.respond(HTTPStatus.OK, "OK\n")
            doing = "stopping" if self._stopping.is_set() else "loading"
            return connection.respond(_UNAVAILABLE, f"not ready: {doing}\n")
        key = self._options.api_key
        if key is not None:
            # A header may hold any bytes, also such as are not UTF-8.
            headers = request.headers.get_all(wire.KEY_HEADER)
            given = [header.encode("utf-8", "surrogateescape") for header in headers]
            right = wire.key_header(key).encode()
            if len(given) != 1 or not hmac.compare_digest(given[0], right):
                logger.warning("%s: refused: wrong API key", _name(connection))
                return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong API key\n")
        most = self._options.max_connections
        many = len(connection.server.connections) >= most
        if many and not (self._warm.is_set() and self._traffic.make_room()):
            logger.warning("%s: refused: %d clients are connected", _name(connection), most)
            full = f"too many clients: {most} are connected, the most allowed\n"
            return connection.respond(_UNAVAILABLE, full)
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        # _listen asks for connections of this class.
        assert isinstance(connection, _Connection)
        logger.info("%s: connected", _name(connection))
        try:
            if not await self._before_stop(self._warm.wait()):
                return
            await self._send(connection, wire.pack(self._service.metadata))
            while (message := await self._before_stop(connection.recv())) is not None:
                came = connection.held
                reply = await self._reply(connection, message)
                if reply is None:
                    break
                await self._send(connection, reply)
                # What the client has sent ahead is still held.
                alone = came - len(message) <= _FRAMING
                connection.held -= came if alone else len(message)
            if self._stopping.is_set():
                async with asyncio.timeout(self._options.send_seconds):
                    await connection.close(CloseCode.GOING_AWAY, "the server stops")
        except ConnectionClosed as error:
            logger.info("%s: %s", _name(connection), error)
        except TimeoutError:
            late = f"did not take its answer within {self._options.send_seconds:g} s"
            logger.warning("%s: dropped: %s", _name(connection), late)
            # An orderly end would wait for the client again, for ever.
            connection.transport.abort()

    async def _before_stop(self, wanted: Coroutine[Any, Any, T]) -> T | None:
        """Returns the result of `wanted`, or None if the server stops first."""
        task, stop = asyncio.ensure_future(wanted), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            stop.cancel()
            task.cancel()

    async def _reply(self, connection: _Connection, message: bytes | str) -> bytes | str | None:
        """Returns the answer, or what is wrong as text, or None if the client has gone."""
        if isinstance(message, str):
            return "expected a binary frame with msgpack, found text"
        work = asyncio.get_running_loop().run_in_executor(
            self._worker, self._service.answer, message, time.perf_counter()
        )
        gone = asyncio.ensure_future(connection.wait_closed())
        either: set[asyncio.Future[Any]] = {work, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not work.done():
            # A request that has not begun never runs. One that runs cannot be stopped.
            work.cancel()
            return None
        error = work.exception()
        if error is None:
            self._unanswered, connection.proven = 0, True
            return work.result()
        if isinstance(error, InputError) and not isinstance(error, NotFiniteError):
            logger.info("%s: bad request: %s", _name(connection), error)
            return str(error)
        self._unanswered += 1
        if isinstance(error, NotFiniteError):
            logger.error("%s: request failed: %s", _name(connection), error)
            return str(error)
        logger.error("%s: request failed", _name(connection), exc_info=error)
        return "internal error: the request could not be answered; the server's log says why"

    async def _send(self, connection: _Connection, reply: bytes | str) -> None:
        connection.answer_bytes = len(reply)
        async with asyncio.timeout(self._options.send_seconds):
            await connection.send(reply)


def _name(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if address else "a client"
