"""Metrics files: what is written is read back, and a resumed run writes no step twice."""

import json
import time
from typing import ClassVar

import fsspec
import pytest
from etils import epath
from etils.epath import gpath
from fsspec.implementations.memory import MemoryFileSystem
from tensorboardX.proto.event_pb2 import Event, SessionLog

from pi0_jax.data.records.tfrecord import read_records
from pi0_jax.train.metrics import METRICS_FILE, MetricsWriter, read_metrics


def write(workdir, steps, *, start: int) -> None:
    writer = MetricsWriter(workdir, start=start)
    for step in steps:
        writer.write(step, {"loss": 1.0 / step})
    writer.close()


def events(workdir) -> list[Event]:
    return [
        Event.FromString(record.payload)
        for file in sorted(workdir.glob("tensorboard/*"))
        for record in read_records(file)
    ]


def test_one_json_line_for_each_write(tmp_path):
    before = time.time()
    write(tmp_path, [1, 2, 4], start=0)
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert read_metrics(tmp_path) == lines
    times = [before, *(line.pop("time") for line in lines), time.time()]
    assert times == sorted(times)
    assert lines == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 4, "loss": 0.25},
    ]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    writer = MetricsWriter(tmp_path, start=0)
    writer.write(1, {"loss": 3.0})
    (line,) = read_metrics(tmp_path)
    assert (line["step"], line["loss"]) == (1, 3.0)
    writer.close()


def test_tensorboard_gets_the_same_numbers(tmp_path):
    write(tmp_path, [1, 2], start=0)
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in events(tmp_path)
        for value in event.summary.value
    ]
    assert scalars == [(1, "loss", 1.0), (2, "loss", 0.5)]


def test_a_resumed_run_takes_off_what_it_will_do_again(tmp_path):
    """The run saved step 2, went on to step 4, was killed; the next one starts from the save."""
    write(tmp_path, [1, 2, 3, 4], start=0)
    write(tmp_path, [3, 4, 5], start=2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_tensorboard_is_told_to_drop_what_is_done_again(tmp_path):
    """TensorBoard purges everything from the step of a START on."""
    write(tmp_path, [1, 2, 3], start=0)
    write(tmp_path, [3], start=2)
    starts = [
        event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START
    ]
    assert starts == [1, 3]


def test_values_that_are_not_finite_are_left_out(tmp_path):
    """So every line is JSON for every reader."""
    writer = MetricsWriter(tmp_path, start=0)
    writer.write(1, {"loss": float("nan"), "gradient_norm": float("inf"), "skipped": 1.0})
    writer.close()
    assert json.loads((tmp_path / METRICS_FILE).read_text()).keys() == {"step", "time", "skipped"}


class Bucket(MemoryFileSystem):
    """Is an object store as Google's: objects are written whole, and none is appended to."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").removeprefix("gcs://").strip("/")

    def _open(self, path, mode="rb", **kwargs):
        assert mode in ("rb", "wb"), f"an object store cannot open with mode {mode}"
        return super()._open(path, mode, **kwargs)


def test_a_workdir_behind_a_url(monkeypatch):
    """What is flushed with a checkpoint is there for a run that goes on, on another machine."""
    # else it reads gs:// with TensorFlow, not with fsspec
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    url = "gs://bucket/run"
    first = MetricsWriter(url, start=0)
    for step in (1, 2, 3):
        first.write(step, {"loss": 1.0 / step})
    assert not epath.Path(url, METRICS_FILE).exists()
    first.flush()
    first.write(4, {"loss": 0.25})  # lost with the machine
    assert [line["step"] for line in read_metrics(url)] == [1, 2, 3]
    second = MetricsWriter(url, start=2)
    second.write(3, {"loss": 0.5})
    second.close()
    losses = [(line["step"], line["loss"]) for line in read_metrics(url)]
    assert losses == [(1, 1.0), (2, 0.5), (3, 0.5)]
    assert len(list(epath.Path(url, "tensorboard").iterdir())) == 2


def test_a_line_that_a_killed_run_left_unfinished_is_dropped(tmp_path):
    write(tmp_path, [1, 2], start=0)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 3, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    write(tmp_path, [3], start=2)
    last = read_metrics(tmp_path)[-1]
    assert (last["step"], last["loss"]) == (3, pytest.approx(1 / 3))
