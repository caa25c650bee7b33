"""A server answers a good client, right and in time, while others send what it must refuse.

python -m tests.hostile_soak [--messages=100000] [--fragments=1000000] [--clients=4]

One client asks a real policy without a pause, first alone and then beside the others. These send
malformed messages, and then messages in fragments: empty ones without end, malformed ones, and good
ones in pieces. Printed are the good client's times and the server's memory, by phase.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.embodiments.keys import to_message
from pi0_jax.policy import Policy
from pi0_jax.serve import wire
from tests import policies
from tests.numpy_server import resident, serving

ROBOT = "reach_arm3"
ALONE = 300  # calls before anybody disturbs
DISTINCT = 16  # observations
LIMIT = 4096  # fragments of a message that the server takes


@contextmanager
def conversation(address: str) -> Iterator[ClientConnection]:
    with connect(f"ws://{address}", compression=None, max_size=None, open_timeout=60) as connection:
        connection.recv(timeout=60)
        yield connection


def send_malformed(address: str, seed: int, count: int, bad: list, done: Synchronized) -> None:
    """Sends messages, each of which gets one refusal, or one answer if it happens to be good."""
    rng = random.Random(seed)
    with conversation(address) as connection:
        for _ in range(count):
            connection.send(rng.choice(bad))
            connection.recv(timeout=60)
            done.value += 1


def send_fragments(
    address: str, seed: int, count: int, good: bytes, bad: bytes, done: Synchronized
) -> None:
    """Sends `count` fragments: too many empty ones, malformed messages and good ones in pieces."""
    rng = random.Random(seed)
    sent = 0
    while sent < count:
        with conversation(address) as connection:
            kind = rng.choice(["empty", "malformed", "good"])
            if kind == "empty":
                pieces = [b""] * (LIMIT + rng.randrange(1000))
            else:
                message = good if kind == "good" else bad
                size = max(-(-len(message) // rng.randrange(500, LIMIT - 100)), 1)
                pieces = [message[at : at + size] for at in range(0, len(message), size)]
            try:
                connection.send(pieces)
                answer = connection.recv(timeout=60)
            except ConnectionClosed:
                answer = None
            got = {None: "empty", str: "malformed", bytes: "good"}[answer and type(answer)]
            assert got == kind, f"{kind} in pieces was taken for {got}: {str(answer)[:200]}"
            sent += len(pieces)
            done.value += len(pieces)


class GoodClient(threading.Thread):
    """Asks without a pause, and notes (phase, seconds) of each call, and what was wrong."""

    def __init__(self, address: str, requests: list[tuple[bytes, np.ndarray]]) -> None:
        super().__init__(daemon=True)
        self._address, self._requests = address, requests
        self.phase, self.times, self.wrong = "alone", [], []
        self.stopping = False

    def run(self) -> None:
        with conversation(self._address) as connection:
            for number in range(sys.maxsize):
                if self.stopping:
                    return
                request, expected = self._requests[number % len(self._requests)]
                began = time.perf_counter()
                connection.send(request)
                reply = connection.recv(timeout=120)
                self.times.append((self.phase, time.perf_counter() - began))
                if isinstance(reply, str) or not np.array_equal(
                    wire.unpack(reply)["actions"], expected
                ):
                    self.wrong.append(f"{number}: {reply[:200]!r}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--fragments", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=4)
    flags = parser.parse_args()
    from tests.test_serve_soak import corpus

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = policies.write_checkpoint(
            Path(folder) / "run", [ROBOT], variant="nano", action_dim=8, max_tokens=16, sampling_steps=3
        )  # fmt: skip
        policy = Policy.open(checkpoint)
        seen = [policies.observation(ROBOT, i) for i in range(DISTINCT)]
        keys = EMBODIMENTS[ROBOT].keys
        good = [(wire.pack(to_message(one, keys)), policy(one)["actions"]) for one in seen]
        bad = corpus(1000)
        server = serving(checkpoint, "--image_sizes=48x64")
        with server as address:
            return soak(flags, server.pid, address, good, bad)


def soak(flags: argparse.Namespace, pid: int, address: str, good: list, bad: list) -> int:
    client = GoodClient(address, good)
    client.start()
    while len(client.times) < ALONE and client.is_alive():
        time.sleep(0.1)
    report = {"alone": {"memory_mb": resident(pid) / 1024}}
    context = multiprocessing.get_context("spawn")  # clients of other processes share no lock
    cut = good[0][0][:-1]
    failed = []
    for phase, count, target, sent in [
        ("messages", flags.messages, send_malformed, (bad,)),
        ("fragments", flags.fragments, send_fragments, (good[0][0], cut)),
    ]:
        client.phase = phase
        counters = [context.Value("q", 0) for _ in range(flags.clients)]
        others = [
            context.Process(
                target=target, args=(address, seed, count // flags.clients, *sent, counters[seed])
            )
            for seed in range(flags.clients)
        ]
        began, most, told = time.monotonic(), 0.0, 0.0
        for other in others:
            other.start()
        while any(other.is_alive() for other in others):
            most = max(most, resident(pid) / 1024)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"{phase}: {sum(c.value for c in counters)} of {count}", file=sys.stderr)
            time.sleep(0.2)
        failed += [f"{phase}: a client ended with {o.exitcode}" for o in others if o.exitcode]
        report[phase] = {
            "sent": sum(c.value for c in counters),
            "seconds": round(time.monotonic() - began),
            "most_memory_mb": most,
            "memory_mb": resident(pid) / 1024,
        }
    client.stopping = True
    client.join(120)
    for phase, count in Counter(phase for phase, _ in client.times).items():
        times = [seconds * 1000 for each, seconds in client.times if each == phase]
        p50, p99 = np.percentile(times, [50, 99])
        report[phase] |= {"good_calls": count, "p50_ms": p50, "p99_ms": p99, "max_ms": max(times)}
    for phase, values in report.items():
        print(phase, json.dumps({k: round(v, 1) for k, v in values.items()}))
    print(f"wrong answers: {len(client.wrong)}; {'; '.join(failed + client.wrong[:3]) or 'fine'}")
    return 1 if client.wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
