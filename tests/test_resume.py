"""Never lose a run: killed, stopped, out of space or numbers, the same command goes on, to the bit, or says why not."""

import json
import random
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests import training
from tests.small_disk import grow, small_disk
from tests.training import (
    arrays,
    assert_same,
    finish,
    losses,
    overflowing_data,
    saved_steps,
    start,
    validations,
)

data_dir = training.data_dir


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory) -> Path:
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("run") / "finished"
    finish(start(data_dir, workdir))
    return workdir


def test_killed_while_compiling_saving_and_training(data_dir, finished, tmp_path):
    workdir = tmp_path / "run"
    process = start(data_dir, workdir, cached=False)  # compiles anew
    process.wait_for(lambda: "mesh" in process.text)
    time.sleep(2)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not workdir.exists() or not saved_steps(workdir)

    for moment in (
        lambda: list(workdir.glob("checkpoints/4.orbax*")),
        lambda: max(losses(workdir), default=0) >= 9,
    ):
        process = start(data_dir, workdir)
        process.wait_for(moment)
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert max(saved_steps(workdir)) < 12
    finish(start(data_dir, workdir))
    assert list(losses(workdir)) == list(range(1, 13))
    assert_same(workdir, finished, 12)
    assert [path.name for path in (workdir / "checkpoints").iterdir() if "tmp" in path.name] == []


@pytest.mark.slow
def test_killed_at_ten_random_moments(data_dir, tmp_path):
    """Of a longer run: while it starts, or in the midst of one of its next steps, of which every second is saved."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    longer = dict(steps=60, save_every=2, validate_every=10)
    finish(start(data_dir, whole, **longer))
    rng = random.Random(0)
    saved = [0]
    for life in range(10):
        process = start(data_dir, killed, log=tmp_path / f"{life}.log", **longer)
        if rng.random() < 0.7:
            process.wait_for(lambda process=process: "train:" in process.text)
            reached = saved[-1] + rng.randrange(2, 9)
            process.wait_for(lambda reached=reached: max(losses(killed), default=0) >= reached)
            time.sleep(rng.uniform(0, 0.3))
        else:
            time.sleep(rng.uniform(0, 4))
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        saved.append(
            max(saved_steps(killed), default=0) if (killed / "checkpoints").exists() else 0
        )
    finish(start(data_dir, killed, log=tmp_path / "last.log", **longer))
    assert saved == sorted(saved) and 10 <= saved[-1] < 60
    assert list(losses(killed)) == list(range(1, 61))
    assert_same(killed, whole, 60)


def test_sigterm_saves_and_ends(data_dir, finished, tmp_path):
    """At a step that is neither saved nor validated otherwise, and at one that is to be validated: that is made up for."""
    workdir = tmp_path / "run"
    process = start(data_dir, workdir)
    process.wait_for((workdir / "metrics.jsonl").exists)
    process.wait_for(lambda: bool(losses(workdir)))
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    stopped = max(saved_steps(workdir))
    assert 1 <= stopped < 12 and list(losses(workdir)) == list(range(1, stopped + 1))
    assert (
        process.last_line
        == f"SIGTERM: stopped after step {stopped}, which is saved; the same command goes on from there"
    )
    metrics = workdir / "metrics.jsonl"
    lines = [line for line in metrics.read_text().splitlines() if "validation/loss" not in line]
    metrics.write_text("\n".join(lines) + "\n")
    finish(start(data_dir, workdir))
    made_up = validations(finished)[1:] if stopped > 6 else validations(finished)
    assert validations(workdir) == made_up
    assert losses(workdir) == losses(finished)
    ours, theirs = arrays(workdir, 12, "ema"), arrays(finished, 12, "ema")
    assert all(np.array_equal(ours[path], theirs[path]) for path in theirs)


def test_a_second_sigterm_ends_at_once(data_dir, tmp_path):
    """Even while XLA compiles, which a signal does not interrupt."""
    process = start(data_dir, tmp_path / "run", cached=False)
    # just before the step is compiled
    process.wait_for((tmp_path / "run" / "metrics.jsonl").exists)
    time.sleep(0.5)
    process.send(signal.SIGTERM)
    time.sleep(1)
    assert not process.ended()
    process.send(signal.SIGTERM)
    assert process.wait(timeout=5) == 128 + signal.SIGTERM


def test_a_loss_that_is_not_finite_changes_nothing(tmp_path):
    """One frame has an action so large that its loss is not finite. The batch's frames are named, it first."""
    workdir = tmp_path / "run"
    run = partial(start, tmp_path, workdir, **overflowing_data(tmp_path))
    process = run()
    assert process.wait() == 2
    found = re.fullmatch(
        r"error: batch (\d+): loss (nan|inf), gradient norm \S+, after 0 such batches .* Look .*: head (\S+)",
        process.last_line,
    )
    assert found, process.last_line
    number = int(found[1])
    assert saved_steps(workdir)[-1] == number
    assert list(losses(workdir)) == list(range(1, number + 1))
    lines = [json.loads(line) for line in Path(found[3]).read_text().splitlines()]
    assert len(lines) == 8 and sorted(line["row"] for line in lines) == list(range(8))
    assert (
        lines[0]["loss"] is None and lines[0]["dataset"] == "unchecked" and lines[0]["episode"] == 2
    )
    assert (
        lines[0]["prompt"] == "reach block 0"
        and lines[0]["record"] == 0
        and "train.tfrecord-00001-of-00004" in lines[0]["file"]
    )
    assert lines[0]["step"] == 0 and lines[0]["actions"][0][0] == pytest.approx(3e38)

    again = run()  # comes to the same batch, and leaves the same behind
    assert again.wait() == 2 and again.last_line == process.last_line
    assert saved_steps(workdir)[-1] == number

    finish(run(skip_nonfinite=12))
    assert number + 1 not in losses(workdir) and max(losses(workdir)) <= 12
    assert all(np.isfinite(leaf).all() for leaf in arrays(workdir, 12, "params").values())

    fewer = run()  # it would halt at once, at a batch that has nothing wrong
    assert fewer.wait() == 2
    assert re.fullmatch(
        r"error: config.skip_nonfinite is 0; expected at least \d+, the batches that this run has passed over already",
        fewer.last_line,
    ), fewer.last_line


def test_no_space_left(data_dir, finished, tmp_path):
    """A file system that holds one checkpoint and a half. What is whole stays; with more space the run goes on."""
    size = sum(
        file.stat().st_size
        for file in (finished / "checkpoints" / "12").rglob("*")
        if file.is_file()
    )
    with small_disk(tmp_path / "disk", int(1.5 * size)) as disk:
        workdir = disk / "run"
        process = start(data_dir, workdir, log=tmp_path / "log")
        assert process.wait() == 2, process.text
        saving = "/checkpoints: saving step 8 failed, the checkpoint of step 4 is whole; found: "
        metrics = ": expected to write metrics there, found: "  # whichever comes first
        assert re.fullmatch(
            rf"error: {workdir}({saving}|{metrics})No space left on device", process.last_line
        )
        assert saved_steps(workdir) == [4]
        grow(disk, 10 * size)
        finish(start(data_dir, workdir, log=tmp_path / "log"))
        assert_same(workdir, finished, 12)
        shutil.rmtree(workdir)


def test_a_trace_of_some_steps(data_dir, tmp_path):
    workdir = tmp_path / "run"
    finish(start(data_dir, workdir, "--profile=1:2", steps=4))
    assert list(workdir.glob("profile/**/*.xplane.pb"))
    wrong = start(data_dir, tmp_path / "wrong", "--profile=3")
    assert (
        wrong.wait() == 2
        and wrong.last_line == "error: --profile=3: expected START:STEPS, as in 20:5"
    )
