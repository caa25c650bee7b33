"""Batches made ahead hold what the order says, for any number of threads.

Errors reach the consumer, and threads stop.
"""

import contextlib
import copy
import shutil
import threading
import time

import numpy as np
import pytest

from pi0_jax.data.block_order import LocalOrder
from pi0_jax.data.index import Index
from pi0_jax.data.mixture import Mixture, UniformOrder
from pi0_jax.errors import InputError
from pi0_jax.preprocess import Layout, Robot, normalize
from pi0_jax.preprocess.tokenizer import Tokenizer
from pi0_jax.train.data import Batcher, canvases, train_batches
from tests.mixed_data import CountingIndex, Ledger, open_mixed, write_mixed

BATCH = 16
WEIGHTS = {"reach_arm3": 3.0, "reach_arm4": 1.0, "reach_arm5": 0.2}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_mixed(path)
    open_mixed(path)
    return path


@pytest.fixture(scope="module")
def indices(data_dir):
    return open_mixed(data_dir)


def make(kind, indices):
    mixture = Mixture(indices, WEIGHTS, split="train", horizon=4, seed=0)
    return (
        UniformOrder(mixture, BATCH)
        if kind == "uniform"
        else LocalOrder(mixture, BATCH, lanes=8, pool_bytes=120_000)
    )


def batcher(indices):
    """States and actions stay as they are, to a millionth."""
    unit = [normalize.accumulate([np.outer([-1.0, 1.0], np.ones(n))]) for n in (3, 4, 5)]
    robots = [
        Robot(index.embodiment, normalize.Statistics(one, one))
        for index, one in zip(indices, unit, strict=True)
    ]
    slots = ("base_0_rgb", "left_wrist_0_rgb")
    return Batcher(
        robots, Layout(slots, 32, 6, 12, "zscore", 0.0), Tokenizer.open("small"), canvases(indices)
    )


def batches(order, *, start=0, stop=20, threads=3, prefetch=2, rows=None):
    rows = range(BATCH) if rows is None else rows
    return train_batches(
        order,
        batcher(order.mixture.indices),
        rows=rows,
        start=start,
        stop=stop,
        threads=threads,
        prefetch=prefetch,
    )


def identities(stream):
    """Returns [(row, dataset, episode, step), ...]."""
    return [
        row
        for batch in stream
        for row in zip(
            batch.rows.tolist(), *(column.tolist() for column in batch.frames), strict=True
        )
    ]


@pytest.mark.parametrize("kind", ["uniform", "local"])
def test_a_thousand_steps_for_any_hosts_and_threads_and_resumed(kind, indices):
    order = make(kind, indices)
    expected = []
    for frames in order.frames(0, 1000, range(BATCH)):
        expected += zip(
            range(BATCH),
            *(column.tolist() for column in order.mixture.frame_ids(frames)),
            strict=True,
        )
    assert identities(batches(order, stop=1000, threads=4, prefetch=3)) == expected
    for hosts, threads, prefetch, start in (
        (1, 1, 1, 900),
        (2, 5, 1, 950),
        (4, 1, 4, 981),
        (8, 2, 2, 990),
    ):
        of_host = [identities(batches(make(kind, indices), start=start, stop=1000, threads=threads, prefetch=prefetch, rows=rows))
                   for rows in (order.rows(host, hosts) for host in range(hosts))]  # fmt: skip
        count = BATCH // hosts
        steps = [
            row
            for step in range(1000 - start)
            for rows in of_host
            for row in rows[step * count : (step + 1) * count]
        ]
        assert steps == expected[start * BATCH :]


@pytest.mark.parametrize("kind", ["uniform", "local"])
def test_rows_hold_what_they_name(kind, indices):
    for batch in batches(make(kind, indices), stop=3):
        np.testing.assert_allclose(
            batch.observation.state[:, 0], batch.frames.episode / 100, rtol=1e-5
        )
        np.testing.assert_allclose(
            batch.observation.state[:, 1], batch.frames.step / 100, rtol=1e-5
        )
        assert batch.targets.dims.sum(axis=1).tolist() == (batch.frames.dataset + 3).tolist()
        for episode, step, image in zip(
            batch.frames.episode,
            batch.frames.step,
            batch.observation.images["base_0_rgb"],
            strict=True,
        ):
            assert (
                np.abs(image[0, 0].astype(int) - (10 * episode % 256, 20 * step % 256, 200)).max()
                <= 3
            )


def running():
    return {
        thread.name for thread in threading.enumerate() if thread.name.startswith(("batch", "lane"))
    }


@pytest.mark.parametrize("kind", ["uniform", "local"])
def test_closing_stops_the_threads_and_little_is_made_ahead(kind, indices, data_dir):
    ledger = Ledger()
    order = make(
        kind, [CountingIndex(index, index.path.parent.parent, ledger) for index in indices]
    )
    with contextlib.closing(batches(order, stop=10**9, prefetch=2)) as stream:
        for _ in range(5):
            next(stream)
        assert running()
    assert not running()
    if kind == "uniform":
        assert 5 * BATCH * 2 <= ledger.images <= (5 + 2) * BATCH * 2  # two cameras
    else:
        assert ledger.images == 0 and ledger.held == 0


@pytest.mark.parametrize("kind", ["uniform", "local"])
def test_a_failing_read_reaches_the_consumer(kind, data_dir, tmp_path):
    """A shard that is cut short after it was indexed is named in one line, and nothing hangs.

    The steps before it are handed out.
    """
    shutil.copytree(data_dir, tmp_path / "data")
    indices = [
        Index(index.row, tmp_path / "data" / index.name / "1.0.0", index.path)
        for index in open_mixed(data_dir)
    ]
    shard = sorted((tmp_path / "data" / "reach_arm4" / "1.0.0").glob("*.tfrecord-*"))[0]
    with open(shard, "r+b") as file:
        file.truncate(10_000)
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"^{shard}: expected \d+ bytes .*found \d+: .*changed"):
        for _ in batches(make(kind, indices), stop=1000):
            pass
    assert time.monotonic() - began < 20 and not running()


def test_wrong_rows_are_refused_at_the_first_batch(indices):
    with pytest.raises(InputError, match=r"rows \[0\]: expected whole lanes of 2 rows"):
        next(batches(make("local", indices), rows=range(1)))


def test_each_slot_has_a_canvas_of_its_own(indices):
    """Base images have 16 x 24 pixels; wrist images of one dataset need a larger canvas."""
    other = copy.copy(indices[1])
    other.image_sizes = other.image_sizes | {
        "steps/observation/wrist": {"min": [16, 24], "max": [250, 330]}
    }
    assert canvases([indices[0], indices[1]]) == {
        "base_0_rgb": (64, 64),
        "left_wrist_0_rgb": (64, 64),
    }
    assert canvases([indices[0], other]) == {"base_0_rgb": (64, 64), "left_wrist_0_rgb": (256, 480)}
