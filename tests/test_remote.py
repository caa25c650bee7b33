"""Datasets behind a URL give the same index and the same samples as from a disk, faults or not.

They need nothing but plain files.
"""

import dataclasses
import json
import shutil

import fsspec
import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build_or_open, open_index
from pi0_jax.data.index.version import index_version
from pi0_jax.data.records.episodes import open_shards
from pi0_jax.data.records.metadata import dataset_directory, list_shards, read_metadata
from pi0_jax.errors import InputError
from pi0_jax.files import cache_folder
from tests.faulty_server import DROP, SHORT, serving
from tests.own_process import loaded_by
from tests.tiny_data import shard_files, write_reach

ROW = ROWS["reach_arm3"]
FOLDER = "reach_arm3/1.0.0"
FIRST, SECOND = (f"reach_arm3-train.tfrecord-0000{i}-of-00002" for i in (0, 1))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pi0_jax"


@pytest.fixture
def data_dir(tmp_path):
    """Episodes of 3, 5 and 4 steps in two shards."""
    write_reach(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def server(data_dir):
    with serving(data_dir) as running:
        yield running


def build(data_dir, row=ROW, index_dir=None):
    return build_or_open(row, data_dir, index_dir, progress=False)


def contents(index):
    return {file.name: file.read_bytes() for file in index.path.iterdir()}


def assert_same_samples(index, other):
    assert index.steps == other.steps
    for frame in range(index.steps):
        ours, theirs = index.observation(frame), other.observation(frame)
        assert ours["prompt"] == theirs["prompt"]
        np.testing.assert_array_equal(ours["state"], theirs["state"])
        for camera in ("base", "wrist"):
            np.testing.assert_array_equal(ours["images"][camera], theirs["images"][camera])
    for ours, theirs in zip(
        index.chunks(np.arange(index.steps), 4),
        other.chunks(np.arange(index.steps), 4),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_the_same_index_and_samples_as_from_disk(server, data_dir, cache):
    remote = build(server.url)
    assert (
        remote.path.parent == cache / "index" / "reach_arm3" / "1.0.0" and cache == cache_folder()
    )
    assert [str(shard) for shard in remote.shards] == [
        f"{server.url}/{FOLDER}/{name}" for name in (FIRST, SECOND)
    ]
    local = build(data_dir)
    assert contents(remote) == contents(local) and remote.digest == local.digest == local.path.name
    assert_same_samples(remote, local)
    assert remote.read_record(1) == local.read_record(1)
    assert {request.path.rpartition("/")[2] for request in server.requests} == {
        "dataset_info.json",
        "features.json",
        FIRST,
        SECOND,
    }


def test_an_index_folder_of_ones_own(server, tmp_path):
    built = build(server.url, index_dir=tmp_path / "indices")
    assert built.path.parent == tmp_path / "indices" / "reach_arm3" / "1.0.0"
    before = len(server.asked("GET", FIRST))
    assert open_index(ROW, server.url, tmp_path / "indices").path == built.path
    assert len(server.asked("GET", FIRST)) == before + 2  # both ends
    with pytest.raises(InputError, match="expected a local folder .*, found s3://bucket/x"):
        open_index(ROW, server.url, "s3://bucket/x")


def test_opening_needs_no_tensorflow(server):
    build(server.url)
    program = (
        "from pi0_jax.data.index import open_index; from pi0_jax.data.datasets import ROWS\n"
        f"open_index(ROWS['reach_arm3'], {server.url!r}).observation(4)"
    )
    assert loaded_by(program, "tensorflow", "tensorflow_datasets", "jax") == []


def test_faults_while_building_and_reading_change_nothing(server, data_dir):
    server.fail("features.json", DROP)
    server.fail(FIRST, None, 503, DROP, SHORT)
    server.fail(SECOND, 429, method="HEAD")
    remote, local = build(server.url), build(data_dir)
    assert contents(remote) == contents(local)
    server.fail(FIRST, DROP, None, 500)
    server.fail(SECOND, SHORT)
    assert_same_samples(remote, local)


def test_a_missing_shard_is_named_at_once(server, data_dir):
    index = build(server.url)
    (data_dir / FOLDER / SECOND).rename(data_dir / "away")
    missing = f"{server.url}/{FOLDER}/{SECOND}"
    for act in (build, lambda url: open_index(ROW, url)):
        with pytest.raises(InputError, match=f"reach_arm3: .*expected .*{missing}, found none$"):
            act(server.url)
    before = len(server.asked("GET", SECOND))
    with pytest.raises(InputError, match=rf"^{missing}: expected \d+ bytes at .*, found none"):
        index.observation(11)
    assert len(server.asked("GET", SECOND)) == before + 1


def test_versions_are_tried_in_order(server, data_dir):
    row = dataclasses.replace(ROW, versions=("3.0.0", "2.0.0", "1.0.0"))
    assert str(dataset_directory(row, server.url)) == f"{server.url}/{FOLDER}"
    shutil.copytree(data_dir / FOLDER, data_dir / "reach_arm3" / "2.0.0")
    assert dataset_directory(row, f"{server.url}/").name == "2.0.0"
    with pytest.raises(InputError, match=f"4.0.0/.* in {server.url}/reach_arm3, found none"):
        dataset_directory(dataclasses.replace(ROW, versions=("4.0.0",)), server.url)
    server.fail("dataset_info.json", 403, method="HEAD")
    server.fail("dataset_info.json", 403)
    with pytest.raises(InputError, match="3.0.0/dataset_info.json: expected a file, found .*403"):
        dataset_directory(row, server.url)


def test_changed_files_are_noticed_and_metadata_copied_anew(server, data_dir, cache):
    old = build(server.url)
    shutil.rmtree(data_dir / FOLDER)
    write_reach(data_dir, (3, 5, 7))
    with pytest.raises(InputError, match="a stale one: file dataset_info.json changed"):
        open_index(ROW, server.url)
    new = build(server.url)
    assert (old.steps, new.steps) == (12, 15) and old.digest != new.digest
    newest = max((cache / "metadata").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    for name in ("dataset_info.json", "features.json"):
        assert (newest / name).read_bytes() == (data_dir / FOLDER / name).read_bytes()
    server.etags[SECOND] = '"another"'
    with pytest.raises(InputError, match=f"found a stale one: file {SECOND} changed since"):
        open_index(ROW, server.url)


def test_damaged_copies_of_metadata_are_replaced(server, cache):
    directory = dataset_directory(ROW, server.url)
    shards = open_shards(ROW, directory)
    (folder,) = (cache / "metadata").iterdir()
    (folder / "features.json").write_text("{")
    (folder / "dataset_info.json").unlink()
    assert open_shards(ROW, directory) == shards
    assert [(shard.split, shard.path.name, shard.episodes, shard.first) for shard in shards] == [
        ("train", FIRST, 2, 0),
        ("train", SECOND, 1, 2),
    ]


def test_metadata_that_names_no_shards(server, data_dir):
    file = data_dir / FOLDER / "dataset_info.json"
    info = json.loads(file.read_text())
    for splits, found in (
        ([], "found none"),
        ([{"name": "train"}], "found none"),
        (
            [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "{WHAT}"}],
            "found none of 'WHAT'",
        ),
        (
            [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "{SPLIT}/a"}],
            "a shard in a folder of its own: train/a",
        ),
    ):
        file.write_text(json.dumps({**info, "splits": splits}))
        with pytest.raises(InputError, match=f"{FOLDER}/dataset_info.json: expected .*{found}"):
            build(server.url)


def test_shards_are_named_as_tfds_names_them(data_dir):
    import tensorflow_datasets as tfds

    directory = data_dir / FOLDER
    info = json.loads((directory / "dataset_info.json").read_text())
    templates = {
        "train": "",
        "val": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "test": "{SPLIT}_{SHARD_INDEX}_{NUM_SHARDS}.{FILEFORMAT}",
    }
    lengths = {"train": ["2", "1"] * 50_001, "val": ["3"], "test": ["4"] * 12}
    info["splits"] = [
        {"name": split, "shardLengths": lengths[split], "filepathTemplate": templates[split]}
        for split in templates
    ]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    shards = list_shards(ROW, directory, read_metadata(ROW, directory))
    for split, theirs in tfds.builder_from_directory(directory).info.splits.items():
        ours = [shard for shard in shards if shard.split == split]
        assert [shard.episodes for shard in ours] == theirs.shard_lengths
        for i in {0, len(ours) // 2, len(ours) - 1}:
            assert (
                ours[i].path
                == directory
                / theirs.filename_template.sharded_filepath(
                    shard_index=i, num_shards=len(ours)
                ).name
            )
            assert ours[i].first == sum(theirs.shard_lengths[:i])


def test_many_shards_are_checked_at_once(server, data_dir):
    directory = data_dir / FOLDER
    info = json.loads((directory / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["1"] * 256
    (directory / "dataset_info.json").write_text(json.dumps(info))
    for i in range(256):
        (directory / f"reach_arm3-train.tfrecord-{i:05}-of-00256").write_bytes(b"%d" % i)
    server.latency_s = 0.02
    files = index_version(ROW, dataset_directory(ROW, server.url))["files"]
    assert len(files) == 258 and files["reach_arm3-train.tfrecord-00200-of-00256"][0] == 3
    assert server.most_at_once > 8


def test_a_dataset_in_memory(data_dir):
    files = fsspec.filesystem("memory")
    files.put(str(data_dir / "reach_arm3"), "/remote_test/reach_arm3", recursive=True)
    assert_same_samples(build("memory://remote_test"), build(f"file://{data_dir}"))
    (shard,) = [file for file in files.find("/remote_test") if file.endswith(SECOND)]
    files.rm(shard)
    with pytest.raises(InputError, match=f"shard file memory://remote_test/{FOLDER}/{SECOND}"):
        build("memory://remote_test")
    files.rm("/remote_test", recursive=True)


def test_no_secret_of_a_url_is_written_or_shown(server, data_dir, tmp_path):
    url = f"{server.url.replace('//', '//someone:pass-word@')}?token=abc-def"
    index = build(url)
    assert index.observation(11)["prompt"] == "reach block 0"
    assert {request.path.partition("?")[2] for request in server.requests} == {"token=abc-def"}
    (data_dir / FOLDER / SECOND).write_bytes(b"damaged")
    with pytest.raises(InputError) as stale:
        open_index(ROW, url)
    with pytest.raises(InputError) as damaged:
        build(url)
    assert f"{server.url}/{FOLDER}/{SECOND}: record 0 at byte 0: truncated" in str(damaged.value)
    written = "".join(str(file) for file in tmp_path.rglob("*"))
    written += "".join(
        file.read_text(errors="replace")
        for file in (tmp_path / "cache").rglob("*")
        if file.is_file()
    )
    for text in (str(stale.value), str(damaged.value), written):
        assert "pass-word" not in text and "abc-def" not in text


def test_a_cache_that_cannot_be_written(server, tmp_path, cache):
    cache.parent.write_text("in the way")
    with pytest.raises(InputError, match=rf"{cache}/metadata/\w+: expected a folder .*XDG_CACHE"):
        build(server.url, index_dir=tmp_path / "indices")
    assert not list(shard_files(tmp_path))
