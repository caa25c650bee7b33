"""Only one run at a time has a workdir."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import tensorstore as ts
from etils import epath

from pi0_jax.errors import InputError
from pi0_jax.train import workdir as lock
from pi0_jax.train.workdir import WorkdirLock, this_process

ELSEWHERE = {"host": "node7", "machine": "another", "process": 1, "started": "5"}


def silent(line: str) -> None:
    raise AssertionError(line)


def holder(workdir) -> dict:
    return json.loads((workdir / lock.FILE).read_text())


def test_the_second_is_refused_and_the_first_goes_on(tmp_path):
    workdir = epath.Path(tmp_path)
    with WorkdirLock(workdir, silent) as first:
        start = time.monotonic()
        with (
            pytest.raises(
                InputError,
                match=f"^workdir {tmp_path}: another run trains there, process {os.getpid()} on ",
            ),
            WorkdirLock(workdir, silent),
        ):
            pass
        assert time.monotonic() - start < 5
        first.check()
        assert holder(tmp_path)["process"] == os.getpid()
    assert not (tmp_path / lock.FILE).exists()
    with WorkdirLock(workdir, silent):
        pass


def test_what_is_no_other_runs_is_kept(tmp_path, monkeypatch):
    """A write that took place although its storage said it had not; a file that somebody has removed. Another run's is not."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    file = tmp_path / lock.FILE

    def put(who) -> None:
        (tmp_path / "new").write_text(json.dumps(who | {"beat": 0}))
        (tmp_path / "new").rename(file)

    def wait_for(happened) -> None:
        deadline = time.monotonic() + 20
        while not happened():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with WorkdirLock(epath.Path(tmp_path), silent) as held:
        for change in (lambda: put(this_process()), file.unlink):
            change()
            wait_for(lambda: file.exists() and holder(tmp_path)["beat"] > 1)
            held.check()
        put(ELSEWHERE)
        wait_for(lambda: not held._beating.is_alive())
        with pytest.raises(InputError, match="another run has taken the workdir"):
            held.check()
    assert holder(tmp_path)["host"] == "node7"


def test_of_two_at_once_one_gets_it(tmp_path):
    workdir = epath.Path(tmp_path)
    for _ in range(10):
        together = Barrier(2)

        def attempt(workdir=workdir, together=together) -> bool:
            together.wait()
            try:
                with WorkdirLock(workdir, silent):
                    together.wait()  # both have tried
                    return True
            except InputError:
                together.wait()
                return False

        with ThreadPoolExecutor() as threads:
            assert sorted(threads.map(lambda attempt: attempt(), [attempt] * 2)) == [False, True]


def test_a_dead_process_of_this_machine_leaves_it_at_once(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = this_process() | {"process": process.pid, "started": lock._started(process.pid)}
    (tmp_path / lock.FILE).write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"process {process.pid} on"):
        WorkdirLock(epath.Path(tmp_path), silent).__enter__()
    process.kill()
    with WorkdirLock(epath.Path(tmp_path), silent):  # a zombie, which nobody has waited for
        pass
    process.communicate()
    (tmp_path / lock.FILE).write_text(json.dumps(record))
    with WorkdirLock(epath.Path(tmp_path), silent):
        pass
    # the number belongs to another process now
    (tmp_path / lock.FILE).write_text(json.dumps(this_process() | {"started": "1"}))
    with WorkdirLock(epath.Path(tmp_path), silent):
        pass


def test_a_dead_machine_is_waited_for_and_told(tmp_path, monkeypatch):
    assert lock.SILENCE_SECONDS <= 90
    monkeypatch.setattr(lock, "SILENCE_SECONDS", 2.0)
    (tmp_path / lock.FILE).write_text(json.dumps(ELSEWHERE))
    said: list[str] = []
    start = time.monotonic()
    with WorkdirLock(epath.Path(tmp_path), said.append):
        assert 2 <= time.monotonic() - start < 10
    assert len(said) == 1 and "left by process 1 on node7; waiting for up to 2 s" in said[0]


def test_a_run_on_another_machine_is_heard(tmp_path, monkeypatch):
    """A run that had been silent ends when it finds another in its place."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.5)
    monkeypatch.setattr(lock, "SILENCE_SECONDS", 20.0)
    workdir = epath.Path(tmp_path)
    with WorkdirLock(workdir, silent, who=ELSEWHERE) as first:
        said: list[str] = []
        with pytest.raises(InputError, match="another run trains there, process 1 on node7"):
            WorkdirLock(workdir, said.append).__enter__()
        assert len(said) == 1
        store = ts.KvStore.open(f"file://{tmp_path}/").result()
        other = json.dumps(this_process() | {"beat": 1})
        store.write(lock.FILE, other).result()
        deadline = time.monotonic() + 20
        while not first._lost and time.monotonic() < deadline:
            time.sleep(0.1)
        with pytest.raises(InputError, match="another run has taken the workdir"):
            first.check()
    assert (tmp_path / lock.FILE).read_text() == other  # it is not ours to remove


def test_an_object_store_has_the_same_operations(monkeypatch):
    """A lock is created only where there is nothing, and replaced only as it was read.

    TensorStore's store in memory stands for a bucket.
    """
    bucket = ts.KvStore.open("memory://").result()
    monkeypatch.setattr(lock.ts.KvStore, "open", lambda url: _Done(bucket))
    monkeypatch.setattr(lock, "SILENCE_SECONDS", 1.0)
    workdir = _Remote("gs://bucket/run")
    with WorkdirLock(workdir, silent):
        assert json.loads(bucket[lock.FILE])["process"] == os.getpid()
        with pytest.raises(InputError, match="^workdir gs://bucket/run: another run trains there"):
            WorkdirLock(workdir, silent).__enter__()
    assert lock.FILE.encode() not in bucket.list().result()
    bucket[lock.FILE] = json.dumps(ELSEWHERE)
    said: list[str] = []
    with WorkdirLock(workdir, said.append):
        assert len(said) == 1


class _Done:
    def __init__(self, value) -> None:
        self._value = value

    def result(self):
        return self._value


class _Remote:
    """Is as much of a path behind a URL as a lock needs."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __truediv__(self, name: str) -> "_Remote":
        return _Remote(f"{self._url}/{name}")

    def __fspath__(self) -> str:
        return self._url

    __str__ = __fspath__

    @property
    def parent(self) -> "_Remote":
        return _Remote(self._url.rpartition("/")[0])

    def mkdir(self, **how) -> None:
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"^workdir {tmp_path}/file/run: expected a folder"):
        WorkdirLock(epath.Path(tmp_path / "file" / "run"), silent).__enter__()
