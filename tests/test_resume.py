"""A run is never lost: after a kill, a stop, or a full disk the same command goes on, to the bit.

So it does after numbers that are not finite. Or it says why it does not.
"""

import json
import os
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pi0_jax.checkpoints import locate
from pi0_jax.errors import InputError
from pi0_jax.train.distributed import Processes
from pi0_jax.train.workdir import choose_step
from tests import kill_soak, training
from tests.small_disk import grow, small_disk
from tests.training import (
    Process,
    arrays,
    assert_same,
    command,
    environment,
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
    """Returns the workdir of an uninterrupted run."""
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
@pytest.mark.parametrize(("kind", "kills"), [("one", 3), ("four", 2), ("two", 1)])
def test_killed_at_random_moments(tmp_path, kind, kills):
    """The command python -m tests.kill_soak --kills=60 kills more often."""
    assert kill_soak.soak(kills, seed=1, folder=tmp_path, kinds=[kind]) == []


def test_sigterm_saves_and_ends(data_dir, finished, tmp_path):
    """A run stops at a step that is neither saved nor validated, and at one to be validated.

    The validation that was missed is made up for.
    """
    workdir = tmp_path / "run"
    process = start(data_dir, workdir)
    process.wait_for((workdir / "metrics.jsonl").exists)
    process.wait_for(lambda: bool(losses(workdir)))
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    stopped = max(saved_steps(workdir))
    assert 1 <= stopped < 12 and list(losses(workdir)) == list(range(1, stopped + 1))
    assert process.last_line.startswith(f"SIGTERM: stopped after step {stopped}")
    metrics = workdir / "metrics.jsonl"
    lines = [line for line in metrics.read_text().splitlines() if "validation/loss" not in line]
    metrics.write_text("\n".join(lines) + "\n")
    finish(start(data_dir, workdir))
    made_up = validations(finished)[1:] if stopped > 6 else validations(finished)
    assert validations(workdir) == made_up
    assert losses(workdir) == losses(finished)
    ours, theirs = arrays(workdir, 12, "ema"), arrays(finished, 12, "ema")
    assert all(np.array_equal(ours[path], theirs[path]) for path in theirs)


def test_before_the_first_step_there_is_nothing_to_save(data_dir, tmp_path):
    """A run stops while XLA compiles or while data are prepared, and the workdir is free again.

    A signal does not interrupt XLA.
    """
    for said, number in (("train step: compiling", signal.SIGTERM), ("config", signal.SIGINT)):
        process = start(data_dir, tmp_path / "run", cached=False, log=tmp_path / said)
        process.wait_for(lambda process=process, said=said: said in process.text)
        process.send(number)
        assert process.wait(timeout=60) == 0  # an import may hold it up
        name = signal.Signals(number).name
        assert process.last_line.startswith(f"{name}: stopped before the first step")
        assert not (tmp_path / "run" / "running").exists()
        assert not (tmp_path / "run" / "checkpoints").exists() or not saved_steps(tmp_path / "run")
    finish(start(data_dir, tmp_path / "run", steps=1, warmup_steps=0))


LONG = dict(steps=100_000, save_every=100_000, validate_every=100_000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_save_too(data_dir, tmp_path, number):
    workdir = tmp_path / "run"
    process = start(data_dir, workdir, **LONG)
    process.wait_for(lambda: (workdir / "metrics.jsonl").exists() and bool(losses(workdir)))
    process.send(number)
    assert process.wait() == 0
    name, saved = signal.Signals(number).name, max(saved_steps(workdir))
    assert process.last_line.startswith(f"{name}: stopped after step {saved}")


def test_an_ignored_sighup_stays_ignored_and_a_second_signal_ends_at_once(data_dir, tmp_path):
    workdir = tmp_path / "run"
    process = Process(
        ["nohup", *command(data_dir, workdir, **LONG)], environment(1), tmp_path / "log"
    )
    process.wait_for(lambda: (workdir / "metrics.jsonl").exists() and bool(losses(workdir)))
    process.send(signal.SIGHUP)
    before = max(losses(workdir))
    process.wait_for(lambda: max(losses(workdir)) > before + 5)
    for _ in range(2):
        process.send(signal.SIGTERM)
    assert process.wait(timeout=30) in (0, 128 + signal.SIGTERM)  # 0: it had saved by then
    assert "Traceback" not in process.text


def test_a_second_run_is_refused_and_the_first_goes_on(data_dir, finished, tmp_path):
    """Two start at once, ten times: one always finishes, as if it had been alone."""
    for life in range(10 if os.environ.get("PI0_JAX_RACES") else 2):
        workdir = tmp_path / str(life)
        both = [start(data_dir, workdir, log=tmp_path / f"{life}.{i}.log") for i in range(2)]
        statuses = [process.wait() for process in both]
        assert sorted(statuses) == [0, 2], [process.text for process in both]
        refused = both[statuses.index(2)]
        assert re.fullmatch(rf"error: workdir {workdir}: .* process \d+ on .*", refused.last_line)
        assert "Traceback" not in refused.text
        assert_same(workdir, finished, 12)


def test_a_damaged_checkpoint_is_passed_over(data_dir, finished, tmp_path):
    """A damaged step is told and moved aside, and the run goes on from the one before.

    It comes to the same end. With --step it goes on from the step that is given.
    """
    workdir = shutil.copytree(finished, tmp_path / "run")
    kept = saved_steps(workdir)
    assert kept == [8, 12]
    file = next((workdir / "checkpoints" / "12" / "optimizer").rglob("d/*"))
    file.write_bytes(file.read_bytes()[:-1])
    process = start(data_dir, workdir)
    finish(process)
    aside = workdir / "set_aside"
    lines = process.text.splitlines()
    assert re.fullmatch(rf"{file}: expected .*; moved aside to {aside}/step_12", lines[0])
    assert "step 8" in lines[1]
    assert_same(workdir, finished, 12)

    process = start(data_dir, workdir, "--step=8", log=tmp_path / "log")
    finish(process)
    assert re.search(rf"after step 8, .*; moved aside to {aside}/step_12_2", process.text)
    assert_same(workdir, finished, 12)
    wrong = start(data_dir, workdir, "--step=7", log=tmp_path / "wrong")
    assert wrong.wait() == 2
    assert re.fullmatch(r"error: --step=7: .*; expected one of 8, 12", wrong.last_line)
    for step in (8, 12):
        (workdir / "checkpoints" / str(step) / "description" / "metadata").unlink()
    none = start(data_dir, workdir, log=tmp_path / "none")
    assert none.wait() == 2
    assert re.fullmatch(
        rf"error: no checkpoint of {workdir} is whole; .*/12/description/metadata: .* found nothing",
        none.last_line,
    )
    assert saved_steps(workdir) == [8, 12]


def test_nothing_is_moved_aside_for_a_run_that_cannot_go_on(tmp_path):
    for step in (4, 8):
        (tmp_path / f"checkpoints/{step}/description").mkdir(parents=True)
        (tmp_path / f"checkpoints/{step}/description/metadata").write_text("{}")

    def refuse(step: int) -> None:
        raise InputError(f"step {step} is of another config")

    lines: list[str] = []
    place = locate(tmp_path)
    with pytest.raises(InputError, match="step 4 is of another config"):
        choose_step(place, Processes(), 4, lines.append, refuse)
    assert lines == [] and saved_steps(tmp_path) == [4, 8]
    assert choose_step(place, Processes(), 4, lines.append, str) == (4, "4")
    assert len(lines) == 1 and saved_steps(tmp_path) == [4]


def test_a_loss_that_is_not_finite_changes_nothing(tmp_path):
    """One frame has an action so large that its loss is not finite.

    The batch's frames are named, and this one comes first.
    """
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
    worst = lines[0]
    assert worst["loss"] is None and "train.tfrecord-00001-of-00004" in worst["file"]
    assert [worst[name] for name in ("dataset", "episode", "step", "record", "prompt")] == [
        "unchecked", 2, 0, 0, "reach block 0"
    ]  # fmt: skip
    assert worst["actions"][0][0] == pytest.approx(3e38)

    again = run()  # comes to the same batch, and leaves the same behind
    assert again.wait() == 2 and again.last_line == process.last_line
    assert saved_steps(workdir)[-1] == number

    finish(run(skip_nonfinite=12))
    assert number + 1 not in losses(workdir) and max(losses(workdir)) <= 12
    assert all(np.isfinite(leaf).all() for leaf in arrays(workdir, 12, "params").values())

    fewer = run()  # it would halt at once, at a batch that has nothing wrong
    assert fewer.wait() == 2
    assert re.match(r"error: config.skip_nonfinite is 0; expected at least \d+", fewer.last_line)


def test_no_space_left(data_dir, finished, tmp_path):
    """A file system holds one checkpoint and a half.

    What is whole stays, and with more space the run goes on.
    """
    files = (finished / "checkpoints" / "12").rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    with small_disk(tmp_path / "disk", int(1.5 * size)) as disk:
        workdir = disk / "run"
        process = start(data_dir, workdir, log=tmp_path / "log")
        assert process.wait() == 2, process.text
        # Whichever comes first.
        either = "/checkpoints: saving step 8 failed, .*|: expected to write metrics .*"
        assert re.fullmatch(
            rf"error: {workdir}({either})found: No space left on device", process.last_line
        )
        assert "Traceback" not in process.text
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
    assert wrong.wait() == 2
    assert wrong.last_line.startswith("error: --profile=3: expected START:STEPS")
