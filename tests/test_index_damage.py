"""Random damage to an index's own files is refused in one line that names the file.

Or the index is as it was. PI0_JAX_INDEX_MUTATIONS=300 tries so many; the suite tries a few dozen.
"""

import json
import os
import shutil

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build_or_open, open_index, read
from pi0_jax.data.index.findings import index_findings
from pi0_jax.data.statistics import index_statistics
from pi0_jax.errors import InputError
from tests.tiny_data import write_reach

ROW = ROWS["reach_arm3"]
MUTATIONS = int(os.environ.get("PI0_JAX_INDEX_MUTATIONS", "40"))


def content(index):
    """Returns all that training reads of an index, to the bit."""
    frames = np.arange(index.steps)
    columns = [index.state, index.action, *index.episodes.values()]
    columns += [index.frames(split) for split in ("train", "val")]
    columns += [
        np.array([index.image_range(frame, view) for frame in frames for view in index.views])
    ]
    said = [index.prompts_at(frame) for frame in frames]
    about = [index.skipped, index.image_sizes, index.told, [str(shard) for shard in index.shards]]
    statistics = np.concatenate(
        [np.ravel(part) for part in index_statistics(index, 4, progress=False)]
    )
    return [column.tobytes() for column in (*columns, statistics)], said, about


def flip(data, rng):
    data = bytearray(data)
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return bytes(data)


def cut(data, rng):
    return data[: rng.integers(len(data))]


def delete_some(data, rng):
    start = rng.integers(len(data))
    return data[:start] + data[start + rng.integers(1, 64) :]


def repeat_some(data, rng):
    start = rng.integers(len(data))
    return data[:start] + data[max(0, start - rng.integers(1, 64)) :]


def zeros(data, rng):
    start = rng.integers(len(data))
    stop = min(len(data), start + rng.integers(1, 512))
    return data[:start] + bytes(stop - start) + data[stop:]


def mutate(folder, rng):
    """Changes one file, removes it, or exchanges it with another; says what was done."""
    files = sorted(folder.iterdir())
    file = files[rng.integers(len(files))]
    way = rng.integers(7)
    if way == 5:
        file.unlink()
        return f"{file.name} removed"
    if way == 6:
        other = files[rng.integers(len(files))]
        one, two = file.read_bytes(), other.read_bytes()
        file.write_bytes(two)
        other.write_bytes(one)
        return f"{file.name} and {other.name} exchanged"
    change = (flip, cut, delete_some, repeat_some, zeros)[way]
    if data := file.read_bytes():
        file.write_bytes(change(data, rng))
    return f"{file.name}: {change.__name__}"


def opened(data_dir, expected):
    """Returns what opening the index is refused with, or "" if the index is as it was.

    It is as it was, for example, after the loss of statistics, which are computed again.
    """
    try:
        found = content(open_index(ROW, data_dir))
    except InputError as error:
        return str(error)
    assert found == expected
    return ""


@pytest.fixture
def dataset(tmp_path):
    """Returns (data_dir, the folder of its index, what that holds)."""
    write_reach(tmp_path, (3, 5, 4, 6))
    index = build_or_open(ROW, tmp_path, progress=False)
    return tmp_path, index.path, content(index)


def test_random_damage(dataset):
    data_dir, folder, expected = dataset
    sound = folder.with_name("sound")
    shutil.copytree(folder, sound)
    rng, refused = np.random.default_rng(0), 0
    for number in range(MUTATIONS):
        shutil.rmtree(folder)
        shutil.copytree(sound, folder)
        done = f"mutation {number}: {mutate(folder, rng)}"
        said = opened(data_dir, expected)
        assert "\n" not in said, f"{done}: {said}"
        refused += bool(said)
    print(f"{MUTATIONS} mutations: {refused} refused, {MUTATIONS - refused} of no consequence")
    assert refused > MUTATIONS / 2


def test_columns_of_the_same_shape_that_were_exchanged(dataset):
    data_dir, folder, _ = dataset
    state, action = ((folder / f"{name}.npy") for name in ("state", "action"))
    one, two = state.read_bytes(), action.read_bytes()
    state.write_bytes(two)
    action.write_bytes(one)
    for reopen in (open_index, lambda *args: build_or_open(*args, progress=False)):
        with pytest.raises(InputError, match=r"(state|action)\.npy: expected .*checksum .* found"):
            reopen(ROW, data_dir)


def test_large_columns_are_verified_when_that_is_asked_for(dataset, monkeypatch):
    data_dir, folder, _ = dataset
    column = bytearray((folder / "action.npy").read_bytes())
    column[-1] ^= 1
    (folder / "action.npy").write_bytes(column)
    monkeypatch.setattr(read, "_VERIFIED_BYTES", 100)
    assert open_index(ROW, data_dir).steps == 18
    with pytest.raises(InputError, match=r"action\.npy: expected rows and checksum"):
        build_or_open(ROW, data_dir, progress=False, check=True)


def test_a_description_that_was_edited(dataset):
    data_dir, folder, _ = dataset
    record = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(record | {"skipped": ["nothing"]}))
    with pytest.raises(InputError, match=r"index\.json: expected .*, found another checksum"):
        open_index(ROW, data_dir)
    del (
        record["steps"],
        record["sha256"],
        record["checksums"],
        record["told"],
        record["declared_sizes"],
    )
    (folder / "index.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"index\.json: expected .*, found no steps"):
        open_index(ROW, data_dir)


def test_an_index_of_before_there_were_checksums_opens_and_says_so(dataset):
    data_dir, folder, expected = dataset
    record = json.loads((folder / "index.json").read_text())
    for name in ("sha256", "checksums", "told", "declared_sizes"):
        del record[name]
    (folder / "index.json").write_text(json.dumps(record))
    index = open_index(ROW, data_dir)
    assert content(index)[0] == expected[0]
    assert [f.text for f in index_findings(index) if "checksums" in f.text] == [
        "its index has no checksums and tells no oddities, since an older version built it;"
        f" delete {folder} and build it again to have them"
    ]


def test_the_index_of_another_dataset_in_its_place(dataset, tmp_path):
    data_dir, folder, _ = dataset
    write_reach(tmp_path / "other", (3, 5, 4, 7))
    other = build_or_open(ROW, tmp_path / "other", progress=False).path
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    with pytest.raises(InputError, match=f"{folder}: expected the index .*that of {other.name}"):
        open_index(ROW, data_dir)
