"""Several processes on loopback run the real command.

They agree with one process, go on from each other's checkpoints, and end together.
"""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests import training
from tests.tiny_data import write_reach
from tests.training import (
    arrays,
    finish,
    losses,
    overflowing_data,
    saved_steps,
    start,
    start_two,
    validations,
)

data_dir = training.data_dir

# With its usual eps Adam divides the rounding noise of small gradients by itself. With this eps it
# is nearly linear in the gradient.
LONGER = dict(steps=20, save_every=10, validate_every=10, eps=1.0, learning_rate=0.02)


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory) -> Path:
    """Returns the workdir of one process with one device."""
    workdir = tmp_path_factory.mktemp("run") / "alone"
    finish(start(data_dir, workdir, **LONGER))
    return workdir


def assert_close(workdir: Path, other: Path) -> None:
    """Losses, parameters and EMA after 20 steps agree to 1e-5 of the largest in each array.

    A key bias has no gradient in exact arithmetic, because a softmax does not see what is added to
    all keys. So Adam walks it along the rounding.
    """
    ours, theirs = losses(workdir), losses(other)
    assert list(ours) == list(theirs) == list(range(1, 21))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    for item in ("params", "ema"):
        a, b = arrays(workdir, 20, item), arrays(other, 20, item)
        assert a.keys() == b.keys()
        far = [
            path for path in b if np.max(np.abs(a[path] - b[path])) > 1e-5 * np.max(np.abs(b[path]))
        ]
        assert [path for path in far if not path.endswith("key/bias")] == []
    for a, b in zip(validations(workdir), validations(other), strict=True):
        assert a.keys() == b.keys() and list(a.values()) == pytest.approx(
            list(b.values()), rel=1e-4, abs=1e-5
        )


def test_two_processes_agree_with_one(data_dir, alone, tmp_path):
    """Each process prepares half of every batch; the first one writes metrics, once.

    What a run left that was killed as it began is gone.
    """
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / ".shared_0123").write_text("")
    processes = start_two([data_dir, data_dir], workdir, devices=1, **LONGER)
    finish(*processes)
    assert_close(workdir, alone)
    assert "2 processes" in processes[0].text
    assert [line for line in processes[1].text.splitlines() if "Gloo" not in line] == []
    assert len(list(workdir.glob("tensorboard/*"))) == 1
    assert {path.name for path in workdir.iterdir()} == {
        "checkpoints", "config.json", "metrics.jsonl", "tensorboard"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        dict(data=1, fsdp=8, tensor=1),
        dict(data=4, fsdp=1, tensor=2),
        dict(data=1, fsdp=1, tensor=8),
    ],
    ids=str,
)
def test_two_processes_of_four_devices_agree_with_one(data_dir, alone, tmp_path, mesh):
    """In the last mesh both processes hold and prepare all rows."""
    workdir = tmp_path / "run"
    axes = {f"mesh.{axis}": size for axis, size in mesh.items()}
    finish(*start_two([data_dir, data_dir], workdir, devices=4, **LONGER, **axes))
    assert_close(workdir, alone)


@pytest.mark.slow
def test_from_two_processes_to_one_and_back(data_dir, alone, tmp_path):
    """SIGTERM to one of two processes makes both save and end at the same step.

    Then one process goes on, and then two again.
    """
    workdir = tmp_path / "run"

    def stop(processes) -> int:
        before = max(saved_steps(workdir), default=0) if (workdir / "checkpoints").exists() else 0
        processes[0].wait_for(
            lambda: (
                (workdir / "metrics.jsonl").exists() and max(losses(workdir), default=0) > before
            )
        )
        processes[-1].send(signal.SIGTERM)
        finish(*processes)
        return max(saved_steps(workdir))

    stops = [stop(start_two([data_dir, data_dir], workdir, devices=4, **LONGER))]
    stops += [stop([start(data_dir, workdir, **LONGER)])]
    finish(*start_two([data_dir, data_dir], workdir, devices=4, **LONGER))
    assert 1 <= stops[0] < stops[1] < 20
    assert_close(workdir, alone)


def test_what_one_host_finds_wrong_ends_both(data_dir, tmp_path):
    """Both end within seconds with the same line, and not when a timeout comes."""
    empty = tmp_path / "empty"
    empty.mkdir()
    processes = start_two([data_dir, empty], tmp_path / "run", devices=1)
    assert [process.wait(60) for process in processes] == [2, 2]
    found = processes[1].last_line.removeprefix("error: ")
    assert f"{empty}/reach_arm3, found: No such file or directory" in found
    assert processes[0].last_line.startswith("error: process 1 (")
    assert processes[0].last_line.endswith(f"): {found}")


def test_a_host_whose_data_differ_is_named(data_dir, tmp_path):
    write_reach(tmp_path, lengths=(7,) * 8)
    processes = start_two([data_dir, tmp_path], tmp_path / "run", devices=1)
    assert [process.wait(60) for process in processes] == [2, 2]
    for process in processes:
        assert "process 1 (" in process.last_line and "of process 0" in process.last_line
        assert "dataset reach_arm3: digest of the index is" in process.last_line
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_two_pass_over_a_damaged_checkpoint(data_dir, alone, tmp_path):
    """Each process verifies half of the files; what either finds, both pass over.

    A second run of two is refused.
    """
    workdir = shutil.copytree(alone, tmp_path / "run")
    for item in ("params", "ema", "optimizer"):
        for file in (workdir / "checkpoints" / "20" / item).rglob("d/*"):
            file.write_bytes(file.read_bytes()[:-1] + b"?")
    processes = start_two([data_dir, data_dir], workdir, devices=1, **LONGER)
    processes[0].wait_for(lambda: "going on from step 10" in processes[0].text)
    log = tmp_path / "others"
    others = start_two([data_dir, data_dir], workdir, devices=1, log=log, **LONGER)
    assert [process.wait(60) for process in others] == [2, 2]
    assert "another run trains there" in others[1].last_line
    finish(*processes)
    assert_close(workdir, alone)
    assert [path.name for path in (workdir / "set_aside").iterdir()] == ["step_20"]


@pytest.mark.slow
@pytest.mark.parametrize("dead", [1, 0])
def test_a_dead_process_ends_the_other_within_a_minute(data_dir, tmp_path, dead):
    workdir = tmp_path / "run"
    patience = "--silence_seconds=25"
    processes = start_two([data_dir, data_dir], workdir, patience, devices=1, steps=10_000)
    processes[0].wait_for(lambda: (workdir / "checkpoints" / "4" / "params").exists())
    processes[dead].send(signal.SIGKILL)
    began = time.monotonic()
    other = processes[1 - dead]
    assert other.wait(timeout=60) != 0
    assert time.monotonic() - began < 60
    # who has the key-value store is missed by JAX, and at once
    named = "error: process 1 (" if dead == 1 else "the leader"
    assert named in other.text, other.text
    assert 4 in saved_steps(workdir) or max(saved_steps(workdir)) > 4


def test_flags_that_do_not_fit_together(data_dir, tmp_path):
    for flags, message in [
        ("--process_id=0", "coordinator_address: expected coordinator_address, num_processes and"),
        ("--process_id=2 --coordinator_address=localhost:1", "process_id is 2; expected a number"),
    ]:
        flags = ["--num_processes=2", *flags.split()]
        process = start(data_dir, tmp_path / "run", *flags, cached=False)
        assert process.wait() == 2 and process.last_line.startswith(f"error: {message}")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_both(tmp_path):
    """Its frames, which the second process may have read, are gathered and written once."""
    workdir = tmp_path / "run"
    processes = start_two([tmp_path, tmp_path], workdir, devices=1, **overflowing_data(tmp_path))
    assert [process.wait() for process in processes] == [2, 2]
    (path,) = (workdir / "nonfinite").iterdir()
    for process in processes:
        assert "error: " in process.last_line and process.last_line.endswith(
            f"the most suspicious first: head {path}"
        )
    first, *others = [json.loads(line) for line in path.read_text().splitlines()]
    assert (first["episode"], first["step"], first["loss"]) == (2, 0, None)
    assert sorted([first["row"], *(line["row"] for line in others)]) == list(range(8))
    assert path.name == f"step_{max(saved_steps(workdir))}.jsonl"
