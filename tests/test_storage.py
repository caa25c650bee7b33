"""Bytes from disks and URLs: real sockets, a server that does wrong, and what a user is told."""

import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

from pi0_jax.data import remote, storage
from pi0_jax.data.remote import MissingFileError, Patience, RemotePath
from pi0_jax.errors import InputError
from tests.faulty_server import DROP, ELSEWHERE, SHORT, STALL, WHOLE, serving

CONTENT = np.random.default_rng(0).bytes(3_000_000)
QUICK = Patience(tries=3, first_wait_s=0.01, try_s=0.5, total_s=5.0)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "data.bin").write_bytes(CONTENT)
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def path(server):
    return RemotePath(f"{server.url}/data.bin")


def test_ranges_by_many_threads_at_once(server, path):
    file = storage.RangeReader(path)
    places = np.random.default_rng(1).integers(0, len(CONTENT) - 5000, 640).tolist()
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda offset: file.read(offset, 5000), places))
    assert all(
        data == CONTENT[offset : offset + 5000] for offset, data in zip(places, found, strict=True)
    )
    assert server.most_at_once > 8
    assert file.read(len(CONTENT), 0) == b""


@pytest.mark.parametrize("fault", [DROP, SHORT, 408, 429, 500, 503])
def test_a_passing_fault_is_overcome(server, path, fault):
    server.fail("data.bin", fault, fault)
    assert remote.read_range(path, 1000, 2000, QUICK) == CONTENT[1000:3000]
    assert len(server.requests) == 3


def test_a_server_that_says_nothing_is_asked_again(server, path):
    server.fail("data.bin", STALL)
    assert remote.read_range(path, 1000, 2000, QUICK) == CONTENT[1000:3000]


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (DROP, "Response payload is not completed"),
        (SHORT, "1000: cut short, or the file has changed"),
        (503, "HTTP 503: Service Unavailable"),
        (STALL, "no answer in time"),
    ],
)
def test_a_lasting_fault_is_reported_with_url_range_and_reason(server, path, fault, found):
    server.fail("data.bin", *[fault] * 3)
    expected = (
        rf"^{path}: expected 2000 bytes at byte 1000, found {found}.* \(3 tries in [0-9.]+ s\)$"
    )
    with pytest.raises(InputError, match=expected):
        remote.read_range(path, 1000, 2000, QUICK)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (WHOLE, "HTTP 200, content range None: byte ranges are not served"),
        (ELSEWHERE, "HTTP 206, content range bytes 1100-3099/3000000: byte ranges are not served"),
        (403, "HTTP 403: Forbidden"),
        (416, "HTTP 416"),
    ],
)
def test_what_would_not_change_is_reported_at_once(server, path, fault, found):
    server.fail("data.bin", *[fault] * 3)
    with pytest.raises(InputError, match=rf"^{path}: expected 2000 bytes .*1000, found {found}"):
        remote.read_range(path, 1000, 2000)
    assert len(server.requests) == 1


def test_a_range_that_is_ignored_does_not_bring_the_whole_file(server, tmp_path):
    with open(tmp_path / "large.bin", "wb") as file:
        file.truncate(200_000_000)
    server.fail("large.bin", WHOLE)
    with pytest.raises(InputError, match="byte ranges are not served"):
        storage.RangeReader(f"{server.url}/large.bin").read(1000, 2000)
    assert server.bytes_sent < 20_000_000  # what the sockets hold


def test_a_missing_file_is_reported_at_once(server, tmp_path):
    gone = f"{server.url}/gone.bin"
    for act in (
        storage.size,
        storage.read_all,
        storage.open_stream,
        lambda path: storage.RangeReader(path).read(0, 1),
    ):
        with pytest.raises(MissingFileError, match=f"^{gone}: expected .*, found none$"):
            act(gone)
    assert not storage.exists(gone) and storage.exists(f"{server.url}/data.bin")
    assert not storage.exists(tmp_path / "gone.bin") and storage.exists(tmp_path / "data.bin")
    with pytest.raises(InputError, match="expected a readable file, found: No such file"):
        storage.open_stream(tmp_path / "gone.bin")


def test_no_server_at_all():
    with pytest.raises(InputError, match=r"^http://127.0.0.1:9/x: expected a file, .*\(3 tries in"):
        remote.file_info(RemotePath("http://127.0.0.1:9/x"), QUICK)


def test_a_failed_look_at_the_size_is_not_taken_for_a_missing_file(server, path):
    """fsspec asks by HEAD and then by GET, and calls every failure "not found"."""
    server.fail("data.bin", 503, DROP, method="HEAD")
    server.fail("data.bin", 503, method="GET")
    assert remote.file_info(path, QUICK)["size"] == len(CONTENT)


def test_a_stream_reads_ahead_a_little_and_overcomes_faults(server, path, monkeypatch):
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 400_000)  # 8 blocks
    server.fail("data.bin", None, DROP, None, 503, SHORT)
    with storage.open_stream(path) as file:
        start = file.read(10)
        assert start == CONTENT[:10]
        while len(server.asked("GET", "data.bin")) < 3:
            pass
        # the buffer's first megabyte, three blocks, and two on their way
        assert server.bytes_sent <= 2_100_000
        assert start + file.read() == CONTENT
        assert file.read() == b""
    assert len(server.asked("GET", "data.bin")) == 8 + 3


def test_a_stream_that_cannot_go_on_says_where(server, path, monkeypatch):
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 1_500_000)
    server.fail("data.bin", 403, 403)
    with (
        storage.open_stream(path) as file,
        pytest.raises(InputError, match="expected 1500000 bytes at byte 0, found HTTP 403"),
    ):
        file.read()


def test_secrets_reach_the_server_and_no_message(server):
    secret = RemotePath(
        f"http://someone:pass-word@127.0.0.1:{server.server_port}/folder/?token=abc-def"
    )
    with pytest.raises(InputError) as missing:
        storage.size(secret / "gone.bin")
    server.fail("data.bin", *[500] * 3)
    with pytest.raises(InputError) as failing:
        remote.read_range(RemotePath(secret.url.replace("folder/", "data.bin")), 0, 10, QUICK)
    assert server.requests[0].path == "/folder/gone.bin?token=abc-def"
    assert server.requests[0].authorization.startswith("Basic ")
    for caught in (missing, failing):
        shown = "".join(traceback.format_exception(caught.value, chain=True)) + repr(secret)
        assert "pass-word" not in shown and "abc-def" not in shown
    assert str(missing.value).startswith(
        f"{server.url}/folder/gone.bin: expected a file, found none"
    )


def test_other_protocols_and_local_urls(tmp_path):
    files = fsspec.filesystem("memory")
    files.pipe_file("/storage_test/data.bin", CONTENT)
    place = storage.locate("memory://storage_test") / "data.bin"
    assert (place.name, storage.size(place)) == ("data.bin", len(CONTENT))
    assert storage.RangeReader(place).read(7, 5) == CONTENT[7:12]
    with storage.open_stream(place) as file:
        assert file.read() == CONTENT
    with pytest.raises(MissingFileError, match="data.bin/more: expected a file, found none$"):
        storage.size(place / "more")
    with pytest.raises(MissingFileError, match="expected a file, found a directory$"):
        storage.size("memory://storage_test")
    files.rm("/storage_test", recursive=True)
    assert storage.locate(f"file://{tmp_path}") == storage.locate(str(tmp_path)) == tmp_path


def test_a_protocol_that_is_unknown_or_lacks_its_package(monkeypatch):
    with pytest.raises(InputError, match="^abc://bucket/x: expected a URL .*, found: .*abc$"):
        storage.size("abc://bucket/x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    with pytest.raises(InputError, match=r"^gs://bucket/x: .*'pi0_jax\[remote\]' .*gcsfs"):
        storage.size("gs://bucket/x")


def test_identity_is_the_storages_tag_or_else_that_of_a_local_copy(server, path, tmp_path):
    local = storage.identity(tmp_path / "data.bin")
    assert local[0] == len(CONTENT)
    assert storage.identity(path) == local  # both ends are read
    server.etags["data.bin"] = 'W/"v1"'
    assert storage.identity(path) == (len(CONTENT), 'ETag "v1"')
    (tmp_path / "data.bin").write_bytes(CONTENT[:-1] + b"?")
    assert storage.identity(tmp_path / "data.bin") not in (local, storage.identity(path))
