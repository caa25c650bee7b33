"""Eight clients send one malformed message in ten, and disconnect suddenly.

Every good request is answered right, and nothing grows. The long version:

PI0_JAX_SOAK_REQUESTS=20000 python -m pytest tests/test_serve_soak.py
"""

import os
import random
import socket
import threading
import time

import hypothesis
import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
from hypothesis.extra import numpy as st_numpy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.embodiments.keys import to_message
from pi0_jax.errors import InputError
from pi0_jax.policy import Policy
from pi0_jax.serve import wire
from pi0_jax.serve.service import Service
from tests import numpy_server, policies
from tests.numpy_server import resident, serving

ROBOT = "reach_arm3"
REQUESTS = (
    int(os.environ["PI0_JAX_SOAK_REQUESTS"]) if "PI0_JAX_SOAK_REQUESTS" in os.environ else 1000
)
EXAMPLES = REQUESTS // 4  # of the fuzzer alone
CLIENTS, DISTINCT = 8, 16
MALFORMED, VANISH = 0.1, 0.02  # shares of the requests

# ---- messages that are nearly right

GOOD = to_message(policies.observation(ROBOT), EMBODIMENTS[ROBOT].keys)
KEYS = sorted(GOOD)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
arrays = st_numpy.arrays(
    st.sampled_from(["|u1", "<f4", ">f8", "<i8", "|b1"]),
    st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
array_records = st.fixed_dictionaries(
    {b"__ndarray__": scalars},
    optional={
        b"data": st.binary(max_size=64) | scalars,
        b"dtype": st.sampled_from(["|O", "<U8", "<f4", "|u1", "<M8[s]", "V8", ""]) | scalars,
        b"shape": st.lists(st.integers(-2, 2**40), max_size=12) | scalars,
    },
)
values = st.recursive(
    scalars | arrays.map(lambda x: msgpack.unpackb(wire.pack(x))) | array_records,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=6,
)


@st.composite
def malformed(draw) -> bytes | str:
    """Returns a good message with something replaced, missing, added, cut or turned.

    Or it returns something quite different.
    """
    packed = msgpack.unpackb(wire.pack(GOOD))
    kind = draw(st.sampled_from("replace remove add batch cut flip noise anything text".split()))
    if kind == "replace":
        packed[draw(st.sampled_from(KEYS))] = draw(values)
    elif kind == "remove":
        del packed[draw(st.sampled_from(KEYS))]
    elif kind == "add":
        packed[draw(st.text(min_size=1, max_size=30) | st.binary(max_size=9))] = draw(values)
    elif kind == "batch":
        packed = {"batch": draw(st.lists(values, max_size=3) | values), "seeds": draw(values)}
    elif kind == "anything":
        packed = draw(values)
    elif kind == "text":
        return draw(st.text(max_size=50))
    message = msgpack.packb(packed)
    if kind == "cut":
        return message[: draw(st.integers(0, len(message) - 1))]
    if kind == "flip":
        # where the structure is, rather than pixels
        place = draw(st.integers(0, min(len(message), 400) - 1))
        return message[:place] + bytes([draw(st.integers(0, 255))]) + message[place + 1 :]
    return draw(st.binary(max_size=200)) if kind == "noise" else message


@hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(malformed())
def test_whatever_comes_is_answered_or_refused_in_one_line(message):
    service = Service(numpy_server.act, EMBODIMENTS[ROBOT], horizon=10, batch_sizes=(1, 4))
    refusal = ""
    if isinstance(message, bytes):
        try:
            service.answer(message, time.perf_counter())
        except InputError as error:
            refusal = str(error)
    assert "\n" not in refusal and len(refusal) < 600
    refusal.encode()  # can be sent


def corpus(count: int) -> list[bytes | str]:
    found: list[bytes | str] = []

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(malformed())
    def collect(message):
        found.append(message)

    collect()
    return found


# ---- the soak


class Soaked:
    """Holds what all clients saw."""

    def __init__(self) -> None:
        self.right = self.refused = self.vanished = self.done = 0
        self.problems: list[str] = []
        self.lock = threading.Lock()

    def count(self, what: str) -> None:
        with self.lock:
            self.done += 1
            if what == "right":
                self.right += 1
            elif what == "refused":
                self.refused += 1
            else:
                self.vanished += 1


def converse(address, seed, requests, good, bad, soaked):
    rng = random.Random(seed)
    left = requests
    while left > 0:
        with connect(
            f"ws://{address}", compression=None, max_size=None, open_timeout=60
        ) as connection:
            connection.recv(timeout=60)
            while left > 0:
                left -= 1
                draw = rng.random()
                if draw < VANISH:
                    connection.send(good[0][0])
                    time.sleep(rng.random() * 0.01)
                    connection.socket.shutdown(socket.SHUT_RDWR)
                    soaked.count("vanished")
                    break
                if draw < VANISH + MALFORMED:
                    connection.send(rng.choice(bad))
                    connection.recv(timeout=60)
                    soaked.count("refused")
                    continue
                request, expected = rng.choice(good)
                connection.send(request)
                reply = connection.recv(timeout=60)
                if isinstance(reply, str) or not np.array_equal(
                    wire.unpack(reply)["actions"], expected
                ):
                    soaked.problems.append(f"client {seed}: a good request got {reply[:200]!r}")
                soaked.count("right")


def guarded(*arguments):
    try:
        converse(*arguments)
    # A stuck or lost client is what the test looks for.
    except (TimeoutError, ConnectionClosed, OSError) as error:
        arguments[-1].problems.append(f"client {arguments[1]}: {error!r}")


@pytest.mark.slow
def test_eight_clients_with_malformed_messages_and_disconnections(tmp_path):
    checkpoint = policies.write_checkpoint(
        tmp_path / "run", [ROBOT], variant="nano", action_dim=8, max_tokens=16, sampling_steps=3
    )
    policy = Policy.open(checkpoint)
    seen = [policies.observation(ROBOT, i) for i in range(DISTINCT)]
    good = [(wire.pack(to_message(o, EMBODIMENTS[ROBOT].keys)), policy(o)["actions"]) for o in seen]
    bad, soaked = corpus(500), Soaked()
    server = serving(checkpoint, "--image_sizes=48x64")
    with server as address:
        arguments = [(address, i, REQUESTS // CLIENTS, good, bad, soaked) for i in range(CLIENTS)]
        threads = [threading.Thread(target=guarded, args=each) for each in arguments]
        for thread in threads:
            thread.start()
        memory = []  # (requests done, KiB)
        while any(thread.is_alive() for thread in threads):
            memory.append((soaked.done, resident(server.pid)))
            time.sleep(0.2)
        memory.append((soaked.done, resident(server.pid)))
    print(
        f"{soaked.right} right, {soaked.refused} malformed, {soaked.vanished} vanished; KiB {memory[:: max(len(memory) // 10, 1)]}"
    )
    assert soaked.problems == []
    assert (
        soaked.done
        == soaked.right + soaked.refused + soaked.vanished
        == REQUESTS // CLIENTS * CLIENTS
    )
    settled = next(kib for done, kib in memory if done > REQUESTS / 5)
    assert memory[-1][1] < 1.05 * settled + 4096
