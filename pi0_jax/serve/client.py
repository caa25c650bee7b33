"""Our client: a policy behind an address, in the place of one in this process.

with Client("ws://127.0.0.1:8000") as client:
    client.act([observation])                           # float32[1, H, A], as Policy.act
    controller = Controller(client)                     # executes chunks as the robot's record says
    action = controller.action(lambda: observation)     # float32[A], one per control tick
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

from pi0_jax.embodiments.record import ClientKeys
from pi0_jax.errors import InputError
from pi0_jax.execution import Execution, OpenLoop
from pi0_jax.observation import RawObservation
from pi0_jax.observation_keys import shortened, to_message
from pi0_jax.serve import wire
from pi0_jax.serve.api_key import HEADER, header

FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # s, between attempts to connect; each is twice the one before
_LATER = (  # a server's that is full, or a proxy's while its server starts
    HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT,
)  # fmt: skip


class ServerError(InputError):
    """What the server says is wrong with a request."""


class Client:
    """Connects when it is first needed and again whenever the connection is lost; a request that is lost with it is sent again.

    Not for several threads at once.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        timeout: float = 10.0,
        start_timeout: float = 600.0,
    ) -> None:
        """
        Args:
            address: "ws://host:port" or "host:port".
            timeout: seconds that a call may take, reconnecting included.
            start_timeout: seconds that the first connection may take: a server that is compiling makes its clients wait.
        """
        self._address = address if "://" in address else f"ws://{address}"
        self._headers = {HEADER: header(api_key)} if api_key else None
        self._timeout, self._start_timeout = timeout, start_timeout
        self._connection: ClientConnection | None = None
        self._closing = contextlib.ExitStack()  # holds the connection
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
        """What the server says of itself; see service.py. Raises as `infer`."""
        if self._metadata is None:
            self._connect(time.monotonic() + self._start_timeout)
        assert self._metadata is not None
        return self._metadata

    def infer(self, message: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        """One request of plain data and arrays, and its reply.

        Raises:
            ServerError: the server refuses the request. InputError: it refuses the API key, or the address is none.
            TimeoutError: no answer in time; a late one is not taken for the next request's.
        """
        request = wire.pack(message)
        assert self.metadata is not None  # the first connection may take longer than a call
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
                if (
                    isinstance(error, ConnectionClosed)
                    and error.rcvd is not None
                    and error.rcvd.code == CloseCode.MESSAGE_TOO_BIG
                ):
                    raise ServerError(
                        f"request of {len(request)} bytes is over the server's limit"
                    ) from error
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
        """Action chunks float32[n, H, A], as Policy.act; in as few requests as the server's batch sizes allow.

        Raises as `infer`; and InputError without observations, or with another number of seeds.
        """
        if isinstance(observations, Mapping):
            raise InputError("expected a sequence of observations, found one by itself")
        keys, most = self._keys(), max(self.metadata["batch_sizes"])
        numbers = [0] * len(observations) if seeds is None else [int(seed) for seed in seeds]
        if not observations:
            raise InputError("no observations: expected at least one")
        if len(numbers) != len(observations):
            raise InputError(
                f"{len(numbers)} seeds for {len(observations)} observations; expected one each"
            )
        chunks = []
        for start in range(0, len(observations), most):
            rows = [
                to_message(observation, keys) for observation in observations[start : start + most]
            ]
            chunks.append(
                self.infer({"batch": rows, "seeds": numbers[start : start + most]})["actions"]
            )
        return np.concatenate(chunks)

    def ping(self) -> float:
        """Seconds until a ping is answered, whatever the server is working at. Raises as `infer`."""
        assert self.metadata is not None  # the first connection may take longer than a call
        connection = self._connect(time.monotonic() + self._timeout)
        start = time.perf_counter()
        if not connection.ping().wait(self._timeout):
            self._drop()
            raise TimeoutError(f"{self._address}: no answer to a ping in time")
        return time.perf_counter() - start

    def _keys(self) -> ClientKeys:
        data = self.metadata
        return ClientKeys(
            data["cameras"],
            tuple((key, count) for key, count in data["state"]),
            data["channel_first"],
        )

    def _connect(self, deadline: float) -> ClientConnection:
        """The connection that there is, or a new one."""
        wait = FIRST_WAIT
        while self._connection is None:
            try:
                self._connection, self._metadata = self._open(deadline)
            except InputError:  # which is a ValueError
                raise
            except (InvalidURI, ValueError) as error:  # the latter of a port that is none
                raise InputError(
                    f"{self._address}: expected an address like ws://host:port"
                ) from error
            except (
                OSError,
                InvalidHandshake,
                ConnectionClosed,
            ) as error:  # a TimeoutError is an OSError
                reason = self._refusal(error) if isinstance(error, InvalidStatus) else error
                left = deadline - time.monotonic()
                if left <= wait:
                    raise TimeoutError(f"{self._address}: cannot connect: {reason}") from error
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
        return self._connection

    def _refusal(self, error: InvalidStatus) -> str:
        """What the server says, where it may take a client later. Raises InputError where it never will."""
        status = error.response.status_code
        if status == HTTPStatus.UNAUTHORIZED:
            raise InputError(f"{self._address}: the server refuses the API key") from error
        if status not in _LATER:
            raise InputError(
                f"{self._address}: expected a policy server, found one that answers {status}"
            ) from error
        return f"{status}: {shortened((error.response.body or b'').decode(errors='replace'))}"

    def _open(self, deadline: float) -> tuple[ClientConnection, dict[str, Any]]:
        left = max(deadline - time.monotonic(), 0.0)
        opening = connect(
            self._address,
            additional_headers=self._headers,
            compression=None,
            max_size=None,
            open_timeout=left,
            proxy=None,
        )
        with contextlib.ExitStack() as until_greeted:
            connection = until_greeted.enter_context(opening)
            greeting = connection.recv(timeout=max(deadline - time.monotonic(), 0.0))
            if isinstance(greeting, str):
                raise InputError(
                    f"{self._address}: expected a policy server's metadata, found text"
                )
            metadata = wire.unpack(greeting)
            self._closing = until_greeted.pop_all()
        return connection, metadata

    def _drop(self) -> None:
        """Ends the connection without a closing handshake: the other side does not answer."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.socket.shutdown(socket.SHUT_RDWR)
        self.close()


def _exchange(connection: ClientConnection, request: bytes, deadline: float) -> bytes | str:
    """Raises TimeoutError, or ConnectionClosed or another OSError where the connection is lost."""
    left = max(deadline - time.monotonic(), 1e-3)
    # A server that has stopped reading would block `send` for good; receiving has a timeout of its own.
    connection.socket.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(left), int(left % 1 * 1e6))
    )
    connection.send(request)
    return connection.recv(timeout=max(deadline - time.monotonic(), 0.0))


class Controller:
    """An action for every control tick: chunks come from a client and are executed by a strategy."""

    def __init__(self, client: Client, execution: Execution | None = None) -> None:
        """`execution`: None is open loop, for as many steps of a chunk as the server says.

        Raises:
            InputError: that is more than a chunk has. As Client.infer.
        """
        self._client = client
        self._fresh = _open_loop(client.metadata) if execution is None else execution
        self._now = self._fresh

    def reset(self) -> None:
        """Begins an episode: nothing of earlier chunks is left."""
        self._now = self._fresh

    def action(self, observe: Callable[[], RawObservation], *, seed: int = 0) -> np.ndarray:
        """float32[A], in the robot's units. `observe` is called only at ticks that need a new chunk. Raises as Client.infer."""
        chunk = self._client.act([observe()], [seed])[0] if self._now.wants_chunk() else None
        action, self._now = self._now.step(chunk)
        return action


def _open_loop(metadata: Mapping[str, Any]) -> OpenLoop:
    steps, horizon = metadata["execute_steps"], metadata["horizon"]
    if steps > horizon:
        raise InputError(
            f"the robot's record executes {steps} steps of a chunk, which has {horizon}; expected an execution of your own"
        )
    return OpenLoop(steps)
