"""The server and our client talk over real sockets, with the server in a process of its own.

Its policy is arithmetic: see numpy_server.py.
"""

import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from pi0_jax.embodiments import EMBODIMENTS, Embodiment
from pi0_jax.errors import InputError
from pi0_jax.serve import wire
from pi0_jax.serve.client import Client, ServerError
from tests import numpy_server
from tests.numpy_server import answer, message, observation, resident, running
from tests.own_process import python

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@contextmanager
def conversation(address, **headers):
    """Opens a bare websocket after the greeting, as any client sees it."""
    with connect(
        f"ws://{address}", compression=None, additional_headers=headers, open_timeout=30
    ) as connection:
        wire.unpack(connection.recv())
        yield connection


def ask(connection, request, timeout=30):
    """Returns a reply: a map of arrays, or text."""
    connection.send(request if isinstance(request, bytes | str) else wire.pack(request))
    reply = connection.recv(timeout=timeout)
    return reply if isinstance(reply, str) else wire.unpack(reply)


def works(connection, number=0):
    """Checks that a connection, or a client, still gets the right answer."""
    request, expected = message(number), answer(observation(number))
    reply = (
        connection.infer(request) if isinstance(connection, Client) else ask(connection, request)
    )
    np.testing.assert_array_equal(reply["actions"], expected)


def refusal(address, **headers):
    """Returns the answer of a server that does not let a client in."""
    with pytest.raises(InvalidStatus) as refused, conversation(address, **headers):
        pass
    return refused.value.response


def health(address):
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", "/healthz")
    return connection.getresponse().status


@pytest.fixture(scope="module")
def server():
    with running(batch_sizes=(1, 4)) as (address, _):
        yield address


# ---- the protocol


def test_metadata_come_first_then_an_answer_for_every_observation(server):
    with connect(f"ws://{server}", compression=None) as connection:
        metadata = wire.unpack(connection.recv())
        facts = {"robot": "droid", "control_hz": 15.0, "execute_steps": 8, "horizon": 10}
        facts |= {"batch_sizes": [1, 4], "image_rotation": 0}
        assert facts.items() <= metadata.items() and metadata["actions"][-1] == "gripper"
        assert Embodiment.from_json(metadata["embodiment"]) == EMBODIMENTS["droid"]
        for seed in range(3):
            reply = ask(connection, message(seed))
            np.testing.assert_array_equal(reply["actions"], answer(observation(seed)))
            assert set(reply["server_timing"]) == {"queue_ms", "unpack_ms", "infer_ms"}
            assert reply["policy_timing"]["infer_ms"] > 0


def test_seeds_and_batches(server):
    with conversation(server) as connection:
        reply = ask(connection, message(1, seed=5))
        np.testing.assert_array_equal(reply["actions"], answer(observation(1), 5))
        request = {"batch": [message(i) for i in range(3)], "seeds": np.array([7, 8, 9])}
        # the policy gets 4 rows, one of them for nothing
        actions = ask(connection, request)["actions"]
        np.testing.assert_array_equal(
            actions, [answer(observation(i), 7 + i) for i in range(3)], strict=True
        )


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("text", "expected a binary frame"),
        (b"\xc1\x00", "message of 2 bytes: expected msgpack"),
        (b"\x91" * 5000 + b"\xc0", "message of 5001 bytes: expected msgpack"),
        (wire.pack(message())[:-50], "incomplete input"),
        (wire.pack({"prompt": "x"}), "'observation/exterior_image_1_left' is missing"),
        (wire.pack(message(seed=-1)), "'seed': expected a whole number in [0, 2^32), found -1"),
        (wire.pack({"batch": [], "seeds": []}), "'batch': expected a list of 1 to 4"),
        (wire.pack({"batch": [message()] * 5}), "1 to 4 observations, found 5"),
        (wire.pack({"batch": [message(), 3]}), "'batch', observation 1: expected an observation"),
        (wire.pack({"batch": [message()], "seeds": [1, 2]}), "'seeds': expected 1, one for each"),
        (wire.pack({"batch": [message()], "prompt": "x"}), "'prompt' is not expected"),
        (wire.pack({"batch": [message()], "seeds": np.zeros(10**6, np.uint8)}), "found [0 0 0 ..."),
        (wire.pack([]), "expected an observation, a map, found list"),
    ],
)
def test_a_bad_message_is_answered_and_the_connection_stays(server, request_, said):
    with conversation(server) as connection:
        reply = ask(connection, request_)
        assert isinstance(reply, str) and said in reply
        works(connection, 2)


def test_nothing_of_the_server_leaks():
    """An unforeseen error is told to the log, with its traceback, and not to the client."""
    with running() as (address, process):
        with conversation(address) as connection:
            assert ask(connection, message(prompt="fail")).startswith("internal error: ")
            works(connection)
        process.terminate()
        log = process.communicate()[1]
    assert "RuntimeError: secret in /home/robot/secret.txt" in log


def test_a_robot_gets_no_action_that_is_no_number(server):
    with conversation(server) as connection:
        assert "not finite" in ask(connection, message(prompt="nan"))
        works(connection)


def test_a_server_that_answers_nothing_is_not_healthy():
    """A client's mistakes do not count, and one answer makes it healthy again."""
    with running() as (address, _), conversation(address) as connection:
        for _ in range(6):
            assert "map" in ask(connection, wire.pack([]))
        assert health(address) == 200
        for _ in range(5):
            ask(connection, message(prompt="nan"))
        assert health(address) == 503
        ask(connection, message())
        assert health(address) == 200


def test_a_message_over_the_limit_closes_only_its_own_connection():
    with running(max_message_bytes=20_000) as (address, _), conversation(address) as other:
        with conversation(address) as connection, pytest.raises(ConnectionClosed) as closed:
            ask(connection, bytes(20_001))
        assert closed.value.rcvd.code == 1009
        works(other)
        with (
            Client(address) as client,
            pytest.raises(ServerError, match="request of .* bytes is over the server's limit"),
        ):
            client.infer({"a": np.zeros(30_000, np.uint8)})


def test_a_message_of_too_many_fragments_closes_only_its_own_connection(server):
    """Empty fragments are nothing to the limit in bytes, and yet each takes memory."""
    with conversation(server) as other, conversation(server) as flooding:
        with suppress(ConnectionClosed):  # which may come while they are being sent
            flooding.send([b""] * 5000)
        with pytest.raises(ConnectionClosed) as closed:
            flooding.recv(timeout=30)
        assert closed.value.rcvd.code == 1009
        works(other)


# ---- who may connect, and when


def test_an_api_key_is_asked_for():
    with running(api_key="s3cret") as (address, _):
        for headers in (
            {},
            {"Authorization": "Api-Key wrong"},
            {"Authorization": "Api-Key s3cret\u00e9"},
            {"Authorization": "s3cret"},
        ):
            assert refusal(address, **headers).status_code == 401
        with (
            pytest.raises(InputError, match="the server refuses the API key"),
            Client(address, api_key="wrong") as client,
        ):
            client.infer(message())
        with Client(address, api_key="s3cret") as client:
            works(client)
        assert health(address) == 200


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "nothing"), (" \n", "nothing"), ("one\ntwo\n", "something else"), ("cl\u00e9", "something else")],
)  # fmt: skip
def test_a_file_without_a_key_is_refused(text, found, tmp_path):
    (tmp_path / "key").write_text(text)
    with pytest.raises(InputError, match=f"--api_key_file: .*key: expected .*, found {found}"):
        wire.read_api_key(str(tmp_path / "key"))


def test_a_web_page_may_not_connect(server):
    assert refusal(server, Origin="https://example.com").status_code == 403


def test_health_and_answers_begin_when_the_policy_is_warm():
    with running(warm_seconds=1.5, wait=False) as (address, process):
        assert health(address) == 503
        with Client(address) as client:  # waits for the metadata
            works(client)
        assert numpy_server.wait_for(process, "warm") == address
        assert health(address) == 200


def test_a_client_too_many_is_told_and_takes_the_place_of_one_that_leaves():
    with running(max_connections=2) as (address, _), conversation(address) as first:
        with conversation(address):
            refused = refusal(address)
            assert refused.status_code == 503 and b"2 are connected" in refused.body
            with (
                Client(address, start_timeout=0.3) as client,
                pytest.raises(TimeoutError, match="cannot connect: 503: too many clients: 2"),
            ):
                client.infer(message())
            assert health(address) == 200
            works(first)
        with Client(address, start_timeout=5) as client:
            works(client, 1)


def dropped(connection) -> bool:
    """Returns whether the server has ended the connection within a second."""
    try:
        connection.recv(timeout=1)
    except TimeoutError:
        return False
    except ConnectionClosed:
        return True
    raise AssertionError("it was answered")


def test_who_has_asked_nothing_makes_room_and_who_was_answered_never_does():
    with (
        running(max_connections=2) as (address, _),
        conversation(address) as good,
        conversation(address) as idle,
    ):
        ask(good, message())
        refusal(address)  # who is new has a second to ask
        time.sleep(1.1)
        begin = time.monotonic()
        with conversation(address) as late:
            works(late)
            assert time.monotonic() - begin < 1
            assert dropped(idle)
            time.sleep(1.1)
            refusal(address)  # both were answered: nobody makes room
            assert not dropped(good)
            works(good)


@contextmanager
def half_a_message(address, size, of):
    """Opens a client that has sent `size` bytes of a message of `of` bytes."""
    with conversation(address) as connection:
        with suppress(OSError):  # dropped meanwhile
            connection.socket.sendall(b"\x82\xff" + of.to_bytes(8) + bytes(4) + bytes(size))
        yield connection
        with suppress(OSError):
            connection.socket.shutdown(socket.SHUT_RDWR)


def test_who_holds_most_is_dropped_when_all_hold_too_much():
    with (
        running(max_in_flight_bytes=10**6) as (address, _),
        conversation(address) as good,
        half_a_message(address, 300_000, of=10**7) as small,
        half_a_message(address, 500_000, of=10**7) as large,
    ):
        ask(good, message())
        assert not dropped(large)
        with half_a_message(address, 400_000, of=10**7) as last:
            assert [dropped(each) for each in (large, small, last)] == [True, False, False]
            works(good)


def test_what_is_sent_ahead_counts_after_an_answer():
    with (
        running(max_in_flight_bytes=10**6) as (address, _),
        conversation(address) as ahead,
        half_a_message(address, 300_000, of=10**7) as other,
    ):
        large = b"\x82\xff" + (10**7).to_bytes(8) + bytes(4) + bytes(900_000)
        with suppress(OSError):  # dropped meanwhile
            ahead.socket.sendall(b"\x81\x81" + bytes(4) + b"a" + large)
        with suppress(ConnectionClosed):
            assert ahead.recv(timeout=10).startswith("expected a binary frame")
        assert [dropped(each) for each in (ahead, other)] == [True, False]


@pytest.mark.slow
def test_memory_comes_back_after_an_attack():
    with running() as (address, process), conversation(address) as good:
        ask(good, message())
        start = resident(process.pid)
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(half_a_message(address, 14 * 2**20, of=15 * 2**20))
            works(good)
            assert resident(process.pid) < start + (128 + 64) * 2**10
        deadline = time.monotonic() + 60
        while resident(process.pid) > start + 64 * 2**10:
            assert time.monotonic() < deadline, resident(process.pid) - start
            time.sleep(1)


def ended(*arguments):
    """Returns a process that ends by itself, and its lines on standard error."""
    done = python("-m", *arguments, status=None)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("host", "warned"), [("0.0.0.0", True), ("::", True), ("localhost", False)]
)
def test_a_public_address_without_a_key_is_warned_of_first(host, warned):
    _, (first, *_) = ended("launch.serve", "--checkpoint=/nowhere", f"--host={host}", "--port=0")
    assert first.startswith(f"warning: anyone who reaches {host}:0 ") == warned


def test_what_is_no_websocket_puts_no_traceback_in_the_log():
    with running() as (address, process):
        host, port = address.split(":")
        for sent in (b"\x00\xff not http\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
            with socket.create_connection((host, int(port)), timeout=10) as raw:
                raw.sendall(sent)
                assert raw.recv(100).startswith(b"HTTP/1.1 4") or raw.recv(1) == b""
        assert health(address) == 200
        process.terminate()
        assert "Traceback" not in process.communicate()[1]


def test_two_servers_on_one_port(server):
    """The second one is told so at once, and not when it is warm."""
    options = {"port": int(server.split(":")[1])}
    given = {"robot": "droid", "warm_seconds": 600, "batch_sizes": [1], "options": options}
    _, lines = ended("tests.numpy_server", json.dumps(given))
    assert lines[-1].endswith(f"cannot listen on {server}: Address already in use")


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--batch_sizes=1,\u00b2", "--batch_sizes: expected positive numbers, found 1,\u00b2"),
        ("--default_prompt= ", "--default_prompt: expected an instruction, found empty text"),
        ("--num_steps=0", "--num_steps"),
        ("--max_connections=-1", "--max_connections"),
        ("--image_sizes=", "--image_sizes: expected sizes like 224x224, found"),
        ("--image_sizes=224x0", "--image_sizes: expected sizes like 224x224, found 224x0"),
        (f"--api_key_file={sys.executable}", f"--api_key_file: {sys.executable}: 'utf-8'"),
    ],
)
def test_a_flag_that_is_wrong_is_named(flag, said):
    status, lines = ended("launch.serve", "--checkpoint=/nowhere", flag)
    assert status == 2 and said in lines[-1]


# ---- several clients


def test_pings_and_health_checks_pass_while_a_slow_inference_runs(server):
    with conversation(server) as slow, conversation(server) as other:
        slow.send(wire.pack(message(prompt="work 1.5")))  # keeps the interpreter busy
        time.sleep(0.1)
        waits = []
        for _ in range(20):
            start = time.perf_counter()
            assert other.ping().wait(timeout=5)
            waits.append(time.perf_counter() - start)
        start = time.perf_counter()
        assert health(server) == 200
        waits.append(time.perf_counter() - start)
        with pytest.raises(TimeoutError):
            slow.recv(timeout=0)
        assert wire.unpack(slow.recv())["server_timing"]["infer_ms"] > 1400
        assert np.median(waits) < 0.05


def test_clients_take_turns(server):
    """A client that always has the next request ready waits for the others.

    They are not served after all of its requests.
    """
    order = []

    def converse(name, requests):
        with conversation(server) as connection:
            started.wait()
            for _ in range(requests):
                ask(connection, message(prompt="sleep 0.05"))
                order.append(name)

    started = threading.Barrier(3)
    threads = [threading.Thread(target=converse, args=(name, 6)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for done in range(len(order)):
        counts = [order[:done].count(name) for name in "abc"]
        assert max(counts) - min(counts) <= 2, order  # the threads of this process may be late


def test_a_client_that_vanishes_harms_nobody(server):
    for _ in range(3):
        with conversation(server) as vanishing:
            vanishing.send(wire.pack(message(prompt="sleep 0.3")))
            time.sleep(0.05)
            vanishing.socket.shutdown(socket.SHUT_RDWR)
    with conversation(server) as connection:
        start = time.perf_counter()
        works(connection, 4)
        assert time.perf_counter() - start < 1.5


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_not_warm_ends_at_once(signal_):
    with (
        running(warm_seconds=60, wait=False) as (address, process),
        Client(address, start_timeout=0.5) as client,
    ):
        with pytest.raises(TimeoutError):
            client.infer(message())  # waits for the metadata
        process.send_signal(signal_)
        assert process.wait(timeout=10) == -signal_


def test_a_client_that_never_reads_is_dropped():
    """It would keep its connection for ever, and keep the server from stopping."""
    request = wire.pack({"batch": [message()] * 128})  # a long answer
    frame = b"\x82\xff" + len(request).to_bytes(8, "big") + bytes(4) + request
    with (
        running(send_seconds=0.5, batch_sizes=(1, 128)) as (address, process),
        conversation(address) as other,
    ):
        files = len(os.listdir(f"/proc/{process.pid}/fd"))
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            deaf.sendall(HANDSHAKE)
            deaf.settimeout(30.0)
            with pytest.raises(ConnectionError):
                deaf.sendall(frame * 2000)
            assert len(os.listdir(f"/proc/{process.pid}/fd")) == files
            works(other)
        process.terminate()
        assert process.wait(timeout=10) == 0
        assert "dropped: did not take its answer within 0.5 s" in process.stderr.read()


def test_a_client_that_pings_and_never_reads_is_dropped():
    """A pong for every ping would pile up in the server's memory."""
    pings = (b"\x89\xfd" + bytes(4) + bytes(125)) * 1000
    with running() as (address, process), conversation(address) as other:
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=30.0) as deaf:
            deaf.sendall(HANDSHAKE)
            with pytest.raises(ConnectionError):
                deaf.sendall(pings * 200)  # 25 MB of pongs
        works(other)
        process.terminate()
        assert "dropped: does not read" in process.communicate()[1]


def test_sigterm_finishes_the_request_in_flight():
    with (
        running() as (address, process),
        conversation(address) as idle,
        conversation(address) as busy,
    ):
        busy.send(wire.pack(message(3, prompt="sleep 0.7")))
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        np.testing.assert_array_equal(
            wire.unpack(busy.recv(timeout=10))["actions"], answer(observation(3))
        )
        for connection in (busy, idle):
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=10)
            assert closed.value.rcvd.code == 1001
        with pytest.raises(OSError):
            connect(f"ws://{address}", open_timeout=5)
        assert process.wait(timeout=10) == 0
