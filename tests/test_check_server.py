"""A running server is checked, in a process of its own; wrong answers are found."""

import dataclasses
import re
import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from websockets.sync.server import serve

from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.embodiments.keys import to_message, to_observation
from pi0_jax.serve import wire
from pi0_jax.serve.check import random_observation
from tests import policies
from tests.numpy_server import DIMS, HORIZON, running, serving
from tests.own_process import python

DROID = {"embodiment": EMBODIMENTS["droid"].to_json(), "horizon": HORIZON}


def acting(actions):
    """Returns a server's reply."""
    return {"actions": actions, "policy_timing": {"infer_ms": 1.5}}


def check(address, *flags):
    """Returns the status, the facts by name, and the errors' text of the command."""
    command = ("-m", "launch.check_server", f"--server={address}", "--calls=3", *flags)
    done = python(*command, status=None)
    facts = dict(re.split(r" +", line, maxsplit=1) for line in done.stdout.splitlines())
    return done.returncode, facts, done.stderr


@contextmanager
def stub(metadata, reply):
    """Gives the address of a server with one greeting and one answer to whatever it is asked."""

    def converse(connection):
        connection.send(wire.pack(metadata))
        for _ in connection:
            connection.send(reply if isinstance(reply, str) else wire.pack(reply))

    with serve(converse, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("robot", EMBODIMENTS)
def test_a_random_observation_is_what_the_robots_clients_send(robot):
    embodiment = EMBODIMENTS[robot]
    observation = random_observation(embodiment, np.random.default_rng(0), (5, 7))
    assert {image.shape for image in observation["images"].values()} <= {(5, 7, 3)}
    back = to_observation(to_message(observation, embodiment.keys), embodiment)
    np.testing.assert_array_equal(back["state"], observation["state"])
    for value, dim in zip(observation["state"], embodiment.state, strict=True):
        assert dim.low is None or value >= np.float32(dim.low)
        assert dim.high is None or value <= np.float32(dim.high)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (None, None, (-1, 1)),
        (2.0, None, (2, 3)),
        (-5.0, None, (-5, -4)),
        (None, -2.0, (-3, -2)),
        (None, 5.0, (4, 5)),
        (2.0, 7.0, (2, 7)),
    ],
)
def test_a_random_state_keeps_one_limit_and_both(low, high, expected):
    arm = EMBODIMENTS["reach_arm3"]
    joint = dataclasses.replace(arm.state[0], periodic=False, low=low, high=high)
    arm = dataclasses.replace(arm, state=(joint, *arm.state[1:]))
    rng = np.random.default_rng(0)
    values = [random_observation(arm, rng, (1, 1))["state"][0] for _ in range(100)]
    np.testing.assert_allclose((min(values), max(values)), expected, atol=0.3)
    assert expected[0] <= min(values) and max(values) <= expected[1]


def test_a_served_policy_passes(tmp_path):
    checkpoint = policies.write_checkpoint(tmp_path / "run", ["droid"])
    with serving(checkpoint, "--image_sizes=48x48") as address:
        status, facts, errors = check(address, "--image_side=48")
    assert (status, errors) == (0, "")
    assert facts["robot"].startswith("droid: ")
    assert facts["cameras"] == "exterior, wrist; sent as 48 x 48 pixels"
    dims = ", ".join(f"joint_{i} [rad]" for i in range(7))
    assert facts["state"] == facts["actions"] == f"8: {dims}, gripper [1]"
    assert facts["chunk"] == "10 steps, of which 8 are executed, 15 a second"
    times = [
        [float(number) for number in re.findall(r"([\d.]+) ms", facts[name])]
        for name in ("latency", "policy")
    ]
    assert all(0 < p50 <= p99 for p50, p99 in times)
    assert times[0][0] > times[1][0]  # the network and the messages are in the first


def test_a_server_with_a_key(tmp_path):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("secret")
    wrong.write_text("guess")
    with running(api_key="secret") as (address, _):
        assert check(address, f"--api_key_file={right}")[0] == 0
        for flags in ([], [f"--api_key_file={wrong}"]):
            refused = f"error: ws://{address}: the server refuses the API key\n"
            assert check(address, *flags) == (2, {}, refused)


def test_no_server():
    with socket.socket() as taken:  # which does not listen
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, facts, errors = check(address, "--timeout=0.2")
    assert (status, facts, errors.count("\n")) == (2, {}, 1)
    assert errors.startswith(f"error: ws://{address}: cannot connect: ")


def test_a_server_that_is_not_ready_in_time():
    with running(warm_seconds=60, wait=False) as (address, _):
        status, facts, errors = check(address, "--timeout=0.5")
    assert (status, facts, errors.count("\n")) == (2, {}, 1)


@pytest.mark.parametrize(
    ("metadata", "reply", "found"),
    [
        ({"name": "pi0"}, {}, "expected its robot's record .* found {'name': 'pi0'}"),
        ({"embodiment": {}, "horizon": 10}, {}, "embodiment: name, .* missing"),
        (DROID, "no such key", "no such key"),
        (DROID, {}, "expected actions and policy_timing/infer_ms, found {}"),
        (DROID, acting(np.zeros((HORIZON, DIMS - 1), np.float32)), r"found float32\[10, 7\]"),
        (DROID, acting(np.zeros((HORIZON, DIMS))), r"float32\[10, 8\], found float64\[10, 8\]"),
        (DROID, acting(np.full((HORIZON, DIMS), np.nan, np.float32)), "found 80 of 80 others"),
    ],
    ids=["no record", "half a record", "error", "nothing", "dimensions", "dtype", "not finite"],
)
def test_a_wrong_server_is_named_in_one_line(metadata, reply, found):
    with stub(metadata, reply) as address:
        status, _, errors = check(address)
    assert status == 2 and errors.count("\n") == 1
    assert errors.startswith("error: ") and re.search(found, errors), errors
