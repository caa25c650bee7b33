"""Our client talks to a server in a process of its own.

The server's policy is arithmetic: see numpy_server.py.
"""

import os
import signal
import socket
import threading
import time

import numpy as np
import pytest

from pi0_jax.errors import InputError
from pi0_jax.execution import TemporalEnsemble
from pi0_jax.serve.client import Client, Controller, ServerError
from tests import faulty_server
from tests.numpy_server import answer, message, observation, running


@pytest.fixture(scope="module")
def server():
    with running(batch_sizes=(1, 4)) as (address, _):
        yield address


def test_our_client_acts_like_a_policy(server):
    with Client(server) as client:
        seen = [observation(i) for i in range(6)]  # more than the server takes at once
        np.testing.assert_array_equal(
            client.act(seen, np.arange(6)), [answer(o, i) for i, o in enumerate(seen)]
        )
        np.testing.assert_array_equal(client.act(seen[:1]), [answer(seen[0])])
        with pytest.raises(ServerError, match="'prompt': expected .*, found empty text"):
            client.act([observation(prompt="")])
        with pytest.raises(InputError, match="no observations: expected at least one"):
            client.act([])
        with pytest.raises(InputError, match="3 seeds for 1 observations; expected one each"):
            client.act(seen[:1], [1, 2, 3])
        np.testing.assert_array_equal(client.act(seen[:1]), [answer(seen[0])])


def test_our_client_reconnects():
    """The server is killed, and another one comes to its place while the client tries."""
    with running() as (address, process), Client(address, timeout=60) as client:
        client.infer(message())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(client.infer(message(1))["actions"])
        )
        thread.start()
        time.sleep(0.5)
        assert not answers
        with running(port=int(address.split(":")[1])):
            thread.join(timeout=60)
    np.testing.assert_array_equal(answers, [answer(observation(1))])


def test_a_call_has_a_timeout_and_a_late_answer_is_not_taken_for_another():
    with running() as (address, process), Client(address) as client:
        client.infer(message())
        process.send_signal(signal.SIGSTOP)
        start = time.perf_counter()
        with pytest.raises(TimeoutError, match="no answer in time"):
            client.infer(message(1), timeout=0.3)
        assert time.perf_counter() - start < 2
        process.send_signal(signal.SIGCONT)
        np.testing.assert_array_equal(client.infer(message(2))["actions"], answer(observation(2)))


def test_an_address_without_a_policy_server(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        Client(f"127.0.0.1:{port}", start_timeout=0.3) as client,
        pytest.raises(TimeoutError, match="cannot connect"),
    ):
        client.infer(message())
    with (
        faulty_server.serving(tmp_path) as files,
        Client(files.url.replace("http", "ws")) as client,
        pytest.raises(InputError, match="expected a policy server, found one that answers 404"),
    ):
        client.infer(message())
    with (
        Client("http://nowhere") as client,
        pytest.raises(InputError, match="expected an address like ws://host:port"),
    ):
        client.infer(message())


def test_a_controller_asks_as_often_as_the_robot_executes(server):
    asked = []

    def observe():
        asked.append(observation(len(asked)))
        return asked[-1]

    with Client(server) as client:
        controller = Controller(client)
        actions = [controller.action(observe) for _ in range(20)]
        assert len(asked) == 3  # DROID executes 8 steps
        np.testing.assert_array_equal(actions[9], answer(asked[1])[1])
        controller.reset()
        np.testing.assert_array_equal(controller.action(observe), answer(asked[3])[0])

        asked.clear()
        controller = Controller(client, TemporalEnsemble())
        controller.action(observe)
        weights = np.array([1, np.exp(-0.01)])
        expected = (
            weights
            @ np.stack([answer(observation(0))[1], answer(observation(1))[0]])
            / weights.sum()
        )
        np.testing.assert_allclose(controller.action(observe), expected, rtol=1e-6)


def test_a_record_that_executes_more_than_a_chunk_has_needs_an_execution():
    # 16 steps; chunks have 10
    with (
        running("franka_osc") as (address, _),
        Client(address) as client,
    ):
        with pytest.raises(InputError, match="executes 16 steps of a chunk, which has 10"):
            Controller(client)
        Controller(client, TemporalEnsemble())
