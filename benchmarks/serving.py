"""Measures what serving adds to a policy's call, on loopback.

The robot has three 224x224 cameras, and the server runs in a process of its own.

    round trip = call + packing + queue + socket
    call       the policy, as the server times it in that very request; beside it the same call in a
               process without a server
    packing    msgpack and checks, both ways: of the observation in client and server, of the
               actions in server and client
    queue      from when the event loop has the message to when the worker begins
    socket     the rest: websocket frames, loopback, the event loop's and the client's turns

It also measures how long pings of another client take meanwhile.
"""

import contextlib
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import arm, random_checkpoint
from benchmarks.policy import PERCENTILES, Report
from pi0_jax.embodiments.keys import to_message
from pi0_jax.policy import Policy
from pi0_jax.serve import server, wire
from pi0_jax.serve.client import Client
from pi0_jax.serve.service import Service

CAMERAS = 3
ROBOT = arm.ROBOTS[CAMERAS]
_PING_PAUSE = 0.005  # seconds


class RoundTrip(NamedTuple):
    """Holds the milliseconds of one request."""

    total: float
    call: float
    packing: float
    queue: float
    socket: float

    @property
    def overhead(self) -> float:
        return self.total - self.call


class Serving(NamedTuple):
    """Holds what was measured, in milliseconds.

    Attributes:
        in_process: calls without a server.
        round_trips: requests to the server.
        pings: pings while requests of another client run.
    """

    in_process: Sequence[float]
    round_trips: Sequence[RoundTrip]
    pings: Sequence[float]

    def rows(self) -> dict[str, Sequence[float]]:
        """Returns what was measured, by name."""
        trips = self.round_trips
        return {
            "in-process call": self.in_process,
            "round trip": [trip.total for trip in trips],
            "call in the server": [trip.call for trip in trips],
            "overhead": [trip.overhead for trip in trips],
            "of it packing": [trip.packing for trip in trips],
            "of it queue": [trip.queue for trip in trips],
            "of it socket": [trip.socket for trip in trips],
            "ping meanwhile": self.pings,
        }


def report(variant: str, dtype: str, *, calls: int) -> Report:
    """Measures a server whose policy has random weights.

    Args:
        variant: a name in random_checkpoint.MODELS.
        dtype: the policy's compute dtype.
        calls: the number of requests.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "run")
        random_checkpoint.write(checkpoint, random_checkpoint.named(variant), dtype)
        serving = benchmark_serving(checkpoint, dtype, calls=calls)
    rows = {
        name: np.percentile(values, PERCENTILES).tolist() for name, values in serving.rows().items()
    }
    lines = [
        f"| {name} | " + " | ".join(f"{value:,.2f}" for value in values) + " |"
        for name, values in rows.items()
    ]
    title = f"{variant}, {dtype}, {CAMERAS} cameras of {arm.IMAGE_SIZE[0]}x{arm.IMAGE_SIZE[1]}, {calls} requests, JAX {jax.__version__}"
    table = "\n".join(["| serving | p50, ms | p90 | p99 |", "|---|---|---|---|", *lines])
    record = {
        "variant": variant, "dtype": dtype, "cameras": CAMERAS, "requests": calls, "jax": jax.__version__,
        "ms": {name: dict(zip(("p50", "p90", "p99"), values, strict=True)) for name, values in rows.items()},
    }  # fmt: skip
    return Report(f"{title}\n\n{table}", record)


def benchmark_serving(checkpoint: Path, dtype: str, *, calls: int) -> Serving:
    """Measures calls in a process without a server, and then requests to a server.

    Each policy is in a process of its own, one after the other, because an accelerator has memory
    for only one.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        in_process = pool.apply(_in_process, (checkpoint, dtype, calls))
    with _serving(checkpoint, dtype) as address, Client(address, timeout=600.0) as client:
        request = to_message(arm.observation(CAMERAS), ROBOT.keys)
        client.infer(request)
        round_trips = [_round_trip(client, request) for _ in range(calls)]
        with _busy(address, request), Client(address) as other:
            pings = []
            for _ in range(calls):
                pings.append(1e3 * other.ping())
                time.sleep(_PING_PAUSE)
    return Serving(in_process, round_trips, pings)


def _in_process(checkpoint: Path, dtype: str, calls: int) -> list[float]:
    policy, seen = Policy.open(checkpoint, dtype=dtype), arm.observation(CAMERAS)
    policy(seen, robot=ROBOT.name)
    return [policy(seen, robot=ROBOT.name)["policy_timing"]["infer_ms"] for _ in range(calls)]


@contextlib.contextmanager
def _serving(checkpoint: Path, dtype: str) -> Iterator[str]:
    """Gives the address of a server that is warm, and ends the server afterwards."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(checkpoint, dtype, theirs))
    process.start()
    theirs.close()
    try:
        # `recv` raises an EOFError if the process ends before it is warm.
        yield f"127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(checkpoint: Path, dtype: str, pipe: Connection) -> None:
    def load() -> Service:
        policy = Policy.open(checkpoint, dtype=dtype)
        policy.act([arm.observation(CAMERAS)], robot=ROBOT.name)
        return Service(
            lambda *request: policy.finish(policy.prepare(*request, robot=ROBOT.name)),
            policy.robot(ROBOT.name).embodiment,
            horizon=policy.config.horizon,
        )

    def tell(state: str, port: int) -> None:
        if state == "warm":
            pipe.send(port)

    server.run(load, server.Options(port=0), tell)


def _round_trip(client: Client, request: dict[str, Any]) -> RoundTrip:
    total, reply = _timed(client.infer, request)
    told = reply["server_timing"]
    # The client packs and unpacks within `infer`. The same work is done once more by itself, to
    # time it.
    packing = told["unpack_ms"]
    for message in (request, reply):
        taken, packed = _timed(wire.pack, message)
        packing += taken
    packing += _timed(wire.unpack, packed)[0]
    return RoundTrip(
        total,
        told["infer_ms"],
        packing,
        told["queue_ms"],
        total - told["infer_ms"] - packing - told["queue_ms"],
    )


def _timed(function: Callable[[Any], Any], argument: Any) -> tuple[float, Any]:
    """Returns the milliseconds of a call, and its result."""
    start = time.perf_counter()
    result = function(argument)
    return 1e3 * (time.perf_counter() - start), result


@contextlib.contextmanager
def _busy(address: str, request: dict[str, Any]) -> Iterator[None]:
    """Has another client send one request after the other while the block runs."""
    stop = threading.Event()

    def ask() -> None:
        with Client(address, timeout=600.0) as client:
            while not stop.is_set():
                client.infer(request)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
