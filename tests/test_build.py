"""An index is built by one process or several, killed and continued, or twice at once.

The tests also check which episodes may be left out.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build as build_module
from pi0_jax.data.index import build_or_open, open_index, shards
from pi0_jax.data.index.columns import ColumnWriters
from pi0_jax.errors import InputError
from tests.own_process import python, run
from tests.small_disk import grow, small_disk
from tests.tiny_data import assert_in_order, reach_episodes, shard_files, write_reach

ROW = ROWS["reach_arm3"]
SHARDS = 4  # of two episodes each
LENGTHS = (3, 5, 4, 6, 2, 7, 3, 4)
COMMAND = (sys.executable, "-m", "launch.index", "--datasets=reach_arm3")


def build(data_dir, index_dir=None, row=ROW, **options):
    return build_or_open(row, data_dir, index_dir, progress=False, **options)


def contents(index):
    return {file.name: file.read_bytes() for file in index.path.iterdir()}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Writes eight episodes in four shards."""
    folder = tmp_path_factory.mktemp("data")
    write_reach(folder, LENGTHS)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    return contents(build(data_dir, tmp_path_factory.mktemp("undisturbed")))


def root(index_dir):
    return index_dir / "reach_arm3" / "1.0.0"


# ---- several workers

USERS_FILE = """
import os, pathlib, signal, sys
from pi0_jax.data.rows import Standardised

OFFSET = 1.0

def offset(values):
    return values + OFFSET

def rule(columns):
    state = columns["steps/observation/state"]
    return Standardised(offset(state), columns["steps/action"], state[:, 0] >= 0, len(state))

def light_rule(columns):
    assert not {"tensorflow", "jax"} & set(sys.modules), "a worker needs neither"
    return rule(columns)

def deadly_rule(columns):
    flag = pathlib.Path(FLAG)
    if flag.exists():
        victim = {"parent": os.getppid(), "worker": os.getpid()}[flag.read_text()]
        os.kill(victim, signal.SIGKILL)
        os._exit(1)
    return rule(columns)
"""


def test_workers_build_the_index_that_one_process_builds(data_dir, undisturbed, tmp_path):
    assert contents(build(data_dir, tmp_path, workers=2)) == undisturbed
    # no parts are left
    (path,) = root(tmp_path).iterdir()
    assert path == build(data_dir, tmp_path).path


def users_row(tmp_path, rule):
    """Returns a row whose rule is in a file without an importable name, as config flags load it."""
    file, name = tmp_path / "users_config.py", "users_config_without_a_place"
    file.write_text(f"FLAG = {str(tmp_path / 'flag')!r}\n{USERS_FILE}")
    spec = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dataclasses.replace(ROW, standardise=vars(module)[rule])


def test_a_rule_of_a_users_file_runs_in_workers_without_tensorflow_and_jax(data_dir, tmp_path):
    index = build(data_dir, tmp_path, users_row(tmp_path, "light_rule"), workers=2)
    np.testing.assert_array_equal(index.state[:3, 1], [1, 2, 3])


def test_a_worker_that_is_killed_is_named_and_the_next_build_goes_on(data_dir, tmp_path):
    row = users_row(tmp_path, "deadly_rule")
    (tmp_path / "flag").write_text("worker")
    with pytest.raises(InputError, match="dataset reach_arm3: a worker process was killed"):
        build(data_dir, tmp_path, row, workers=2)
    (tmp_path / "flag").unlink()
    assert contents(build(data_dir, tmp_path, row, workers=2)) == contents(
        build(data_dir, tmp_path / "alone", row)
    )


# ---- killed builds

KILLED = """
import os, signal, sys
from pi0_jax.data.index import build, shards
from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build_or_open

def dies(module, name, call):
    "Kills the process when the function is called for the so-manieth time."
    function, calls = getattr(module, name), []
    def wrapped(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    setattr(module, name, wrapped)

module, name, call = sys.argv[3:]
dies({"build": build, "shards": shards, "os": os}[module], name, int(call))
build_or_open(ROWS["reach_arm3"], sys.argv[1], sys.argv[2], progress=False)
"""


@pytest.mark.parametrize(
    ("moment", "module", "name", "call", "left"),
    [
        ("in the middle of the first shard", "shards", "index_episode", 2, [0, 1, 2, 3]),
        ("in the middle of the third shard", "shards", "index_episode", 6, [2, 3]),
        ("before the second part has its name", "os", "replace", 2, [1, 2, 3]),
        ("between two shards", "shards", "index_shard", 4, [3]),
        ("in the middle of the merge", "build", "load_part", 3, []),
        ("before the index has its name", "build", "_publish", 1, []),
    ],
)
def test_a_killed_build_goes_on_where_it_was(
    data_dir, undisturbed, tmp_path, monkeypatch, moment, module, name, call, left
):
    python("-c", KILLED, data_dir, tmp_path, module, name, call, status=-9)
    with pytest.raises(InputError, match="found none"):
        open_index(ROW, data_dir, tmp_path)
    read = []
    index_shard = shards.index_shard
    monkeypatch.setattr(
        shards,
        "index_shard",
        lambda row, shard, **options: (
            read.append(shard.first // 2) or index_shard(row, shard, **options)
        ),
    )
    assert contents(build(data_dir, tmp_path)) == undisturbed
    assert read == left


def test_a_build_whose_workers_outlive_it_goes_on(data_dir, tmp_path):
    """Its parent is killed by a worker; what orphans still write is right, or not there."""
    row = users_row(tmp_path, "deadly_rule")
    program = (
        "import dataclasses, sys; from pathlib import Path; from tests.test_build import build, users_row\n"
        "build(sys.argv[1], sys.argv[2], users_row(Path(sys.argv[2]), 'deadly_rule'), workers=2)"
    )
    (tmp_path / "flag").write_text("parent")
    # What outlives it would keep a pipe open.
    python("-c", program, data_dir, tmp_path, status=-9, capture_output=False)
    (tmp_path / "flag").unlink()
    assert contents(build(data_dir, tmp_path, row, workers=2)) == contents(
        build(data_dir, tmp_path / "alone", row)
    )


def test_what_was_abandoned_long_ago_goes(data_dir, tmp_path):
    folder = root(tmp_path)
    old, recent = ([folder / f".parts-{i}", folder / f".building-{i}"] for i in (1, 2))
    for path in (*old, *recent):
        path.mkdir(parents=True)
        (path / "00000.npz").write_text("something")
    for path in old:
        for file in (path / "00000.npz", path):
            os.utime(file, (0, 0))
    build(data_dir, tmp_path)
    assert not any(path.exists() for path in old) and all(path.exists() for path in recent)


def test_parts_of_a_row_with_its_cameras_in_another_order_are_not_taken(
    data_dir, tmp_path, monkeypatch
):
    """The columns of the row's images are in the other order."""
    monkeypatch.setattr(build_module, "_merge", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(data_dir, tmp_path)
    monkeypatch.undo()
    index = build(
        data_dir, tmp_path, dataclasses.replace(ROW, cameras=dict(reversed(ROW.cameras.items())))
    )
    images, expected = (
        some.observation(0)["images"] for some in (index, build(data_dir, tmp_path / "alone"))
    )
    for camera in ROW.cameras:
        np.testing.assert_array_equal(images[camera], expected[camera])


def test_a_damaged_part_is_refused(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "_merge", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(data_dir, tmp_path)
    monkeypatch.undo()
    (part,) = root(tmp_path).glob(".parts-*/00002.npz")
    whole = part.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:-100], bytes(flipped)):
        part.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{part}: expected a part .*, found: .*delete"):
            build(data_dir, tmp_path)


# ---- builds at once


def test_processes_may_build_at_once(data_dir, undisturbed, tmp_path):
    command = [*COMMAND, f"--data_dir={data_dir}", f"--index_dir={tmp_path}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    builders = [
        subprocess.Popen([*command, f"--workers={workers}"], **pipes) for workers in (1, 1, 2)
    ]
    for builder in builders:
        output, bars = builder.communicate(timeout=200)
        assert builder.returncode == 0, bars
        assert output.startswith("reach_arm3: 8 episodes, 34 steps, kept frames ")
        # the last may find the index there
        assert "index reach_arm3: " in bars or "index reach_arm3" not in bars
    (path,) = root(tmp_path).iterdir()
    index = open_index(ROW, data_dir, tmp_path)
    assert contents(index) == undisturbed and index.path == path


@pytest.mark.parametrize(
    ("moment", "module", "name"),
    [
        ("while it reads", shards, "index_shard"),
        ("while it merges", build_module, "load_part"),
    ],
)
def test_a_build_that_another_overtakes_takes_its_index(
    data_dir, undisturbed, tmp_path, monkeypatch, moment, module, name
):
    function = {"index_shard": shards.index_shard, "load_part": build_module.load_part}[name]

    def overtaken(*arguments, **options):
        monkeypatch.undo()
        build(data_dir, tmp_path)  # the other process, from start to end; removes the parts
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, overtaken)
    assert contents(build(data_dir, tmp_path)) == undisturbed
    (path,) = root(tmp_path).iterdir()
    assert not path.name.startswith(".")


# ---- episodes that are left out


@pytest.fixture
def bad_data(tmp_path):
    """Writes a NaN into episode 1 and a corrupted payload into episode 4."""
    episodes = reach_episodes(LENGTHS)
    episodes[1]["steps"][2]["action"][0] = np.nan
    directory = write_reach(tmp_path / "bad", episodes=episodes)
    third = list(shard_files(directory))[2]
    damaged = bytearray(third.read_bytes())
    damaged[100] ^= 1  # in the payload of its first record
    third.write_bytes(damaged)
    return tmp_path / "bad"


NAN = r"train episode 1 \(reach_arm3-train.tfrecord-00000-of-00004 record 1\): step 2: field steps/action dimension 0: expected a finite"
PAYLOAD = r"dataset reach_arm3: split train episode 4: .*00002-of-00004: record 0 at byte 0: corrupted payload: expected checksum"


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_episodes_may_be_left_out(bad_data, data_dir, tmp_path, workers):
    options = {"workers": workers}
    with pytest.raises(InputError, match=f"{NAN}|{PAYLOAD}"):
        build(bad_data, tmp_path, **options)
    with pytest.raises(InputError, match=rf"({NAN}|{PAYLOAD}).* 1 more bad .*; 1 may be left out"):
        build(bad_data, tmp_path, skip_bad_episodes=1, **options)
    index = build(bad_data, tmp_path, skip_bad_episodes=2, **options)
    whole = build(data_dir, tmp_path / "whole")

    first, second = index.skipped
    assert index.skipped == json.loads((index.path / "index.json").read_text())["skipped"]
    with pytest.raises(InputError, match="leaves out at most 1 bad episodes, found 2 left out in"):
        build(bad_data, tmp_path, skip_bad_episodes=1)
    assert build(bad_data, tmp_path, skip_bad_episodes=5).skipped == [first, second]
    assert open_index(ROW, bad_data, tmp_path).skipped == [first, second]

    # and every one is where it was: its record, and on its side of the split
    left = [0, 2, 3, 5, 6, 7]
    assert index.steps == sum(LENGTHS[i] for i in left)
    assert index.episodes["length"].tolist() == [LENGTHS[i] for i in left]
    for name in ("shard", "record", "offset", "bytes", "split"):
        np.testing.assert_array_equal(index.episodes[name], whole.episodes[name][left])
    assert index.state[index.episodes["start"], 0].tolist() == left
    assert index.observation(int(index.episodes["start"][1]))["state"].tolist() == [2, 0, 0]


def test_the_command_lists_what_it_leaves_out(bad_data):
    done = run([*COMMAND, f"--data_dir={bad_data}", "--skip_bad_episodes=2"])
    first, second, counts, *_ = done.stdout.splitlines()
    assert_in_order(first, "left out", "reach_arm3", "split train", "episode 1")
    assert_in_order(second, "left out", "reach_arm3", "split train", "episode 4")
    assert counts.startswith("reach_arm3: 6 episodes, 27 steps")


def test_a_corrupted_length_cannot_be_left_out(tmp_path):
    directory = write_reach(tmp_path, LENGTHS)
    shard = next(shard_files(directory))
    damaged = bytearray(shard.read_bytes())
    damaged[3] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(InputError, match=f"{shard}: record 0 at byte 0: corrupted length: "):
        build(tmp_path, skip_bad_episodes=8)


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    directory = write_reach(tmp_path, LENGTHS)
    shard = next(shard_files(directory))
    index_episode = shards.index_episode

    def change(*arguments, **options):
        os.truncate(shard, shard.stat().st_size)
        with open(shard, "ab") as file:
            file.write(b"more")
        monkeypatch.undo()
        return index_episode(*arguments, **options)

    monkeypatch.setattr(shards, "index_episode", change)
    with pytest.raises(InputError, match=f"dataset reach_arm3: {shard} changed while"):
        build(tmp_path)


# ---- size


def test_an_index_is_small(tmp_path):
    """An index takes at most 64 bytes a frame and camera, beside its columns.

    The columns are states and actions; every episode has an instruction.
    """
    episodes = reach_episodes((10,) * 12)
    for number, episode in enumerate(episodes):
        for step in episode["steps"]:
            step["language_instruction"] = (
                f"put the blue block number {number} on top of the red one in the corner"
            )
    write_reach(tmp_path, episodes=episodes)
    index = build(tmp_path)
    headers = 128 * len(list(index.path.glob("*.npy")))
    columns = index.state.nbytes + index.action.nbytes
    beside = index.size_bytes - columns - headers - (index.path / "index.json").stat().st_size
    assert beside / index.steps / len(index.views) <= 64


def test_a_column_that_the_disk_cannot_take_says_so(tmp_path):
    (tmp_path / "state.npy").symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match="No space left"),
        ColumnWriters(tmp_path, {"state": ("float32", (3,))}) as columns,
    ):
        columns.append(state=np.zeros((100_000, 3)))


def test_a_full_disk_keeps_the_shards_that_are_done(data_dir, undisturbed, tmp_path):
    with small_disk(tmp_path / "disk", 24 << 10) as disk:
        with pytest.raises(InputError, match=f"reach_arm3: no space left .* {root(disk)}"):
            build(data_dir, disk)
        grow(disk, 10 << 20)
        assert contents(build(data_dir, disk)) == undisturbed
