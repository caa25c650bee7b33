"""The websocket server.

    event loop   handshakes, pings, /healthz, one conversation per client
    one thread   loading and compiling, then every request in turn: unpack, policy, pack

The port is taken first, since loading may take minutes: a port in use is told at once, and clients that come early wait for the metadata.

    client   ->  connect (Authorization: Api-Key ..., where one is asked for)
             <-  metadata, as soon as the policy is warm
             ->  observation      a binary frame
             <-  actions          a binary frame; or what was wrong with the observation, a text frame: the connection stays open

A conversation holds at most one request, and requests run in the order in which they came: between two of one client every other client
that waits has its turn. A message over the limit closes its connection with code 1009.

A client has proven itself when one of its requests was answered. It is never dropped because it is idle. Others make room: where
`max_connections` are there, for a new client (one that finds no room is answered 503); and where all together hold more bytes than
`max_in_flight_bytes`, the one that holds most.
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
from pi0_jax.serve import api_key, wire
from pi0_jax.serve.service import Service

HEALTH_PATH = "/healthz"
MOST_PONGS = 2**14  # bytes of them that a client has not read
_SICK = 5  # requests in a row without an answer, which are not the clients' mistakes
_PART = 2**15  # bytes of what arrives, between two looks at what is not read
_GRACE_S = 1.0  # in which a new client need not make room
_TRIM_S = 10.0  # between two looks at whether freed memory is worth giving back
_WORTH_GIVING_BACK = 2**25  # bytes held at once since then; what clients send in turn is used again
_FRAMING = 2**10  # bytes of a message's frames, at most, where its client sends nothing ahead

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Options:
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    api_key: str | None = None
    max_message_bytes: int = 16 * 2**20
    max_connections: int = 64
    max_in_flight_bytes: int = 128 * 2**20  # of requests that are not answered yet, of all clients
    send_seconds: float = 20.0  # a client that does not take its answer by then is dropped


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches an address; a name that is none of its own is not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(
    load: Callable[[], Service],
    options: Options,
    on_state: Callable[[str, int], None] = lambda state, port: None,
) -> None:
    """Serves until SIGTERM or SIGINT; then finishes the requests that it has and returns.

    Args:
        load: called once, in the thread that answers requests, when the port is taken; the service that it returns is ready to answer.
        on_state: told "listening" and "warm", with the port.

    Raises:
        InputError: the address cannot be bound; whatever `load` raises.
    """
    asyncio.run(_PolicyServer(options).run(load, on_state))


class _Traffic:
    """What all clients together have sent and has not been answered."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.connections: set[_Connection] = set()
        self.peak = 0  # bytes held together at once, since `since_last` was asked

    def add(self, connection: "_Connection", count: int) -> None:
        """Counts bytes that came, and drops whoever holds most if all together hold too many."""
        connection.held += count
        self.peak = max(self.peak, self._held())
        while self._held() > self._most:
            unproven = {each for each in self.connections if not each.proven}
            largest = max(unproven or self.connections, key=lambda each: each.held)
            if not largest.held:  # the others are answered by and by
                largest = max(self.connections, key=lambda each: each.held)
            largest.drop(f"of all that is not answered it holds the most, {largest.held:,} bytes")

    def since_last(self) -> int:
        """The most bytes that were held at once since the last call."""
        peak, self.peak = self.peak, self._held()
        return peak

    def _held(self) -> int:
        return sum(each.held for each in self.connections)

    def make_room(self) -> bool:
        """Drops the client that has been there longest without a request that could be answered; False if there is none."""
        patient = time.monotonic() - _GRACE_S
        waiting = [each for each in self.connections if not each.proven and each.since < patient]
        if waiting:
            oldest = min(waiting, key=lambda each: each.since)
            oldest.drop("it has sent no request that could be answered, and makes room for another")
        return bool(waiting)


class _Connection(ServerConnection):
    """Ends where a client does not read: its answer is waited for, but the pongs that it asks for would pile up.

    They are few, because asyncio adds up all that waits at every write.
    """

    _traffic: _Traffic  # of the server that it belongs to

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.answer_bytes = 0  # of the last message that the client was sent
        self.held = 0  # bytes that came and are not answered
        self.proven = False  # whether one of its requests was answered
        self.since = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._traffic.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._traffic.connections.discard(self)
        super().connection_lost(exc)

    def drop(self, why: str) -> None:
        """Ends the connection at once: to close it in order would wait for the client."""
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
        self._service: Service  # there is one when the server is warm
        self._warm, self._stopping = asyncio.Event(), asyncio.Event()
        self._unanswered = (
            0  # requests since the last one that was answered; a client's mistakes do not count
        )
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self._traffic = _Traffic(options.max_in_flight_bytes)

    async def run(self, load: Callable[[], Service], on_state: Callable[[str, int], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            server = await self._listen()
        except OSError as error:
            place = f"{self._options.host}:{self._options.port}"
            # asyncio's own text repeats the address; errors in host names have negative numbers.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise InputError(f"cannot listen on {place}: {reason}") from error
        port = next(iter(server.sockets)).getsockname()[1]
        on_state("listening", port)
        # as SIGTERM does, it ends the process at once: a compilation is not waited for
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
            origins=[None],  # browsers name one: no web page may talk to a robot's policy
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
                return connection.respond(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"not healthy: none of the last {self._unanswered} requests could be answered\n",
                )
            if self._warm.is_set() and not self._stopping.is_set():
                return connection.respond(HTTPStatus.OK, "OK\n")
            doing = "stopping" if self._stopping.is_set() else "loading"
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {doing}\n")
        key = self._options.api_key
        if key is not None:
            given = request.headers.get_all(api_key.HEADER)
            if len(given) != 1 or not hmac.compare_digest(
                _bytes(given[0]), _bytes(api_key.header(key))
            ):
                logger.warning("%s: refused: wrong API key", _name(connection))
                return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong API key\n")
        most = self._options.max_connections
        full = len(connection.server.connections) >= most
        if full and not (self._warm.is_set() and self._traffic.make_room()):
            logger.warning("%s: refused: %d clients are connected", _name(connection), most)
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"too many clients: {most} are connected, the most allowed\n",
            )
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        assert isinstance(connection, _Connection)  # which _listen asks for
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
            logger.warning(
                "%s: dropped: did not take its answer within %g s",
                _name(connection),
                self._options.send_seconds,
            )
            connection.transport.abort()  # to close it in order would wait for the client again, for ever

    async def _before_stop(self, wanted: Coroutine[Any, Any, T]) -> T | None:
        """What `wanted` gives, or None if the server stops first."""
        task, stop = asyncio.ensure_future(wanted), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            stop.cancel()
            task.cancel()

    async def _reply(self, connection: _Connection, message: bytes | str) -> bytes | str | None:
        """The answer, what is wrong as text, or None if the client has gone."""
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
            work.cancel()  # runs no more if it had not begun
            return None
        error = work.exception()
        if error is None:
            self._unanswered, connection.proven = 0, True
            return work.result()
        if isinstance(error, NotFiniteError) or not isinstance(error, InputError):
            self._unanswered += 1
        if isinstance(error, NotFiniteError):
            logger.error("%s: request failed: %s", _name(connection), error)
            return str(error)
        if isinstance(error, InputError):
            logger.info("%s: bad request: %s", _name(connection), error)
            return str(error)
        logger.error("%s: request failed", _name(connection), exc_info=error)
        return "internal error: the request could not be answered; the server's log says why"

    async def _send(self, connection: _Connection, reply: bytes | str) -> None:
        connection.answer_bytes = len(reply)
        async with asyncio.timeout(self._options.send_seconds):
            await connection.send(reply)


def _bytes(header: str) -> bytes:
    return header.encode("utf-8", "surrogateescape")  # a header may hold any bytes


def _name(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if address else "a client"
