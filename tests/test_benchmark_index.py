"""Indices of any size for measurements, and the measurements of building and opening an index."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.index import KINDS, benchmark_index, benchmark_opening, table
from benchmarks.synthetic_index import synthetic_index
from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build_or_open
from tests.tiny_data import write_reach

ROW = ROWS["reach_arm3"]


def test_a_synthetic_index_repeats_a_real_one(tmp_path):
    directory = write_reach(tmp_path, (3, 5, 4))
    template = build_or_open(ROW, tmp_path, progress=False)
    index = synthetic_index(template, directory, tmp_path / "large", 1000, sparse=False)
    assert index.steps == 84 * 12 and len(index.frames("train")) == 84 * len(
        template.frames("train")
    )
    frame = 12 * 20 + 4  # of the 21st copy: step 1 of its second episode
    assert index.episode_of(np.array(frame)) == 3 * 20 + 1 and index.step_of(np.array(frame)) == 1
    ours, theirs = index.observation(frame), template.observation(4)
    np.testing.assert_array_equal(ours["images"]["base"], theirs["images"]["base"])
    np.testing.assert_array_equal(ours["state"], [1, 1, 0])
    assert ours["prompt"] == "reach block 1"


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux's /proc"
)
@pytest.mark.slow
def test_a_hundred_million_frames_take_no_memory(tmp_path):
    opening = benchmark_opening(tmp_path, 100_000_000)
    assert opening.frames >= 100_000_000
    assert opening.anonymous_bytes < 100e6
    # it takes a hundredth of one; how fast it is, is for the benchmark to say
    assert opening.seconds < 60


def test_the_speed_of_building_is_measured_for_each_kind_of_file(tmp_path):
    results = benchmark_index(tmp_path, megabytes=1, repeats=1)
    assert [result.kind for result in results] == [kind.name for kind in KINDS]
    assert all(result.frames > 0 and result.bytes > 1e6 and result.ratio > 0 for result in results)
    assert len(table(results).splitlines()) == 4
