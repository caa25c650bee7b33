"""Offers the policy of a server as if it were in this process.
with Client("ws://127.0.0.1:8000") as client:
    client.act([observation])                         # float32[1, H, A], as Policy.act
    controller = Controller(client)                   # executes chunks as the record says
    action = controller.action(lambda: observation)   # float32[A], one per control tick
"""

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Self

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

from pi0_jax.embodiments.keys import shortened, to_message
from pi0_jax.embodiments.record import ClientKeys
from pi0_jax.errors import InputError
from pi0_jax.execution import Execution, OpenLoop
from pi0_jax.observation import RawObservation
from pi0_jax.serve import wire

# Seconds between two attempts to connect. Each wait is twice the one before.
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0
# The answers of a server that is full, or of a proxy while its server starts: worth another try.
_LATER = (
    HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT,
)  # fmt: skip


class ServerError(InputError):
    """Holds what the server says is wrong with a request."""


class Client:
    """Sends requests to a policy server and returns its replies.

    The client connects when the connection is first needed, and again whenever it is lost. A
    request that is lost with the connection is sent again. Several threads must not use one client
    at the same time.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        timeout: float = 10.0,
        start_timeout: float = 600.0,
    ) -> None:
        """Notes the address; the first request connects.

        Args:
            address: "ws://host:port" or "host:port".
            api_key: the key that the server asks for, or None where it asks for none.
            timeout: seconds that a call may take, reconnecting included.
            start_timeout: seconds for the first connection: a server may still be compiling.
        """
        self._address = address if "://" in address else f"ws://{address}"
        self._headers = {wire.KEY_HEADER: wire.key_header(api_key)} if api_key else None
        self._timeout, self._start_timeout = timeout, start_timeout
        self._connection: ClientConnection | None = None
        # It holds the open connection, and closes it.
        self._closing = contextlib.ExitStack()
        self._metadata: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection = None
        self._closing.close()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Returns the server's metadata, with the fields of Service.metadata.

        Raises:
            InputError, TimeoutError: as in `infer`.
        """
        if self._metadata is None:
            self._connect(time.monotonic() + self._start_timeout)
        assert self._metadata is not None
        return self._metadata

    def infer(self, message: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        """Sends one request of plain data and arrays, and returns its reply.

        Args:
            message: what wire.pack takes: maps, lists, text, numbers and NumPy arrays.
            timeout: seconds that this call may take; None takes the client's own.

        Raises:
            ServerError: the server refuses the request.
            InputError: the server refuses the API key, or the address is not a policy server's.
            TimeoutError: no answer comes in time. A late answer is never taken for that of the
                next request.
        """
        request = wire.pack(message)
        # Connects if need be: the first connection may take longer than a call.
        assert self.metadata is not None
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        while True:
            connection = self._connect(deadline)
            try:
                reply = _exchange(connection, request, deadline)
            except TimeoutError:
                self._drop()
                raise TimeoutError(f"{self._address}: no answer in time") from None
            except (ConnectionClosed, OSError) as error:
                self.close()
                ended = error.rcvd if isinstance(error, ConnectionClosed) else None
                if ended is not None and ended.code == CloseCode.MESSAGE_TOO_BIG:
                    size = f"request of {len(request)} bytes"
                    raise ServerError(f"{size} is over the server's limit") from error
                time.sleep(FIRST_WAIT)
                continue
            if isinstance(reply, str):
                raise ServerError(reply)
            return wire.unpack(reply)

    def act(
        self,
        observations: Sequence[RawObservation],
        seeds: Sequence[int] | np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns a chunk of actions for every observation, in the way of Policy.act.

        The observations are sent in as few requests as the server's batch sizes allow.

        Args:
            observations: n observations of the server's robot, under our own names.
            seeds: n whole numbers in [0, 2^32) that key the noise; None takes 0 for all.

        Returns:
            float32[n, H, A], in the robot's units.

        Raises:
            InputError: there are no observations, or the number of seeds differs. Also as `infer`.
            ServerError, TimeoutError: as `infer`.
        """
        if isinstance(observations, Mapping):
            raise InputError("expected a sequence of observations, found one by itself")
        data = self.metadata
        state = tuple((key, size) for key, size in data["state"])
        keys = ClientKeys(data["cameras"], state, data["channel_first"])
        count, most = len(observations), max(data["batch_sizes"])
        numbers = [0] * count if seeds is None else [int(seed) for seed in seeds]
        if not count:
            raise InputError("no observations: expected at least one")
        if len(numbers) != count:
            raise InputError(f"{len(numbers)} seeds for {count} observations; expected one each")
        rows = [to_message(observation, keys) for observation in observations]
        requests = [
            {"batch": rows[start : start + most], "seeds": numbers[start : start + most]}
            for start in range(0, count, most)
        ]
        return np.concatenate([self.infer(request)["actions"] for request in requests])

    def ping(self) -> float:
        """Returns the seconds until a ping is answered, however busy the server's policy is.

        Raises:
            InputError, TimeoutError: as in `infer`.
        """
        # Connects if need be: the first connection may take longer than a call.
        assert self.metadata is not None
        connection = self._connect(time.monotonic() + self._timeout)
        start = time.perf_counter()
        if not connection.ping().wait(self._timeout):
            self._drop()
            raise TimeoutError(f"{self._address}: no answer to a ping in time")
        return time.perf_counter() - start

    def _connect(self, deadline: float) -> ClientConnection:
        """Returns the connection that there is, or opens a new one before the deadline."""
        wait = FIRST_WAIT
        while self._connection is None:
            try:
                self._connection, self._metadata = self._open(deadline)
            # An InputError is a ValueError, so it must not reach the next clause.
            except InputError:
                raise
            # A ValueError comes of a port that is not a number in range.
            except (InvalidURI, ValueError) as error:
                expected = "expected an address like ws://host:port"
                raise InputError(f"{self._address}: {expected}") from error
            # A TimeoutError is an OSError.
            except (OSError, InvalidHandshake, ConnectionClosed) as error:
                reason = self._refusal(error) if isinstance(error, InvalidStatus) else error
                left = deadline - time.monotonic()
                if left <= wait:
                    raise TimeoutError(f"{self._address}: cannot connect: {reason}") from error
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
        return self._connection

    def _refusal(self, error: InvalidStatus) -> str:
        """Returns the reason why the server does not take the client now, but may later.

        Raises:
            InputError: the server will never take this client.
        """
        status = error.response.status_code
        if status == HTTPStatus.UNAUTHORIZED:
            raise InputError(f"{self._address}: the server refuses the API key") from error
        if status not in _LATER:
            mismatch = f"expected a policy server, found one that answers {status}"
            raise InputError(f"{self._address}: {mismatch}") from error
        return f"{status}: {shortened((error.response.body or b'').decode(errors='replace'))}"

    def _open(self, deadline: float) -> tuple[ClientConnection, dict[str, Any]]:
        opening = connect(
            self._address,
            additional_headers=self._headers,
            compression=None,
            max_size=None,
            open_timeout=max(deadline - time.monotonic(), 0.0),
            proxy=None,
        )
        with contextlib.ExitStack() as until_greeted:
            connection = until_greeted.enter_context(opening)
            greeting = connection.recv(timeout=max(deadline - time.monotonic(), 0.0))
            if isinstance(greeting, str):
                mismatch = "expected a policy server's metadata, found text"
                raise InputError(f"{self._address}: {mismatch}")
            metadata = wire.unpack(greeting)
            self._closing = until_greeted.pop_all()
        return connection, metadata

    def _drop(self) -> None:
        """Ends the connection without a closing handshake, because the other side is silent."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.socket.shutdown(socket.SHUT_RDWR)
        self.close()


def _exchange(connection: ClientConnection, request: bytes, deadline: float) -> bytes | str:
    """Sends a request and waits for its reply.

    Raises:
        TimeoutError: the deadline (of time.monotonic) passed.
        ConnectionClosed, OSError: the connection is lost.
    """
    left = max(deadline - time.monotonic(), 1e-3)
    # A server that has stopped reading would block `send` for good. Receiving has a timeout of its
    # own. The option takes a C timeval: whole seconds and microseconds.
    connection.socket.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(left), int(left % 1 * 1e6))
    )
    connection.send(request)
    return connection.recv(timeout=max(deadline - time.monotonic(), 0.0))


class Controller:
    """Returns an action for every control tick.

    The chunks come from a client, and a strategy (execution.py) executes them.
    """

    def __init__(self, client: Client, execution: Execution | None = None) -> None:
        """Chooses how chunks are executed; None is open loop, for as many steps as the server says.

        Raises:
            InputError: a chunk has fewer steps than the server says. Also as Client.infer.
            TimeoutError: no server answers in time.
        """
        if execution is None:
            steps, horizon = client.metadata["execute_steps"], client.metadata["horizon"]
            if steps > horizon:
                fault = f"the robot's record executes {steps} steps of a chunk, which has {horizon}"
                raise InputError(f"{fault}; expected an execution of your own")
            execution = OpenLoop(steps)
        self._client, self._fresh, self._now = client, execution, execution

    def reset(self) -> None:
        """Begins an episode: nothing of earlier chunks is used any more."""
        self._now = self._fresh

    def action(self, observe: Callable[[], RawObservation], *, seed: int = 0) -> np.ndarray:
        """Returns the action of this control tick.

        Args:
            observe: returns the observation of now. It is called only at ticks that need a new
                chunk.
            seed: keys the noise of a new chunk, a whole number in [0, 2^32).

        Returns:
            float32[A], in the robot's units.

        Raises:
            InputError, TimeoutError: as Client.infer.
        """
        chunk = self._client.act([observe()], [seed])[0] if self._now.wants_chunk() else None
        action, self._now = self._now.step(chunk)
        return action
