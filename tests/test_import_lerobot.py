"""LeRobot datasets of both layouts become RLDS: every frame, number and word as it was.

What is wrong with them is told in one line, and what is done of an import is kept.
"""

import ast
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from pi0_jax.data.datasets import find_row
from pi0_jax.data.index import build_or_open
from pi0_jax.data.lerobot import importer, steps
from pi0_jax.data.lerobot.declared import read_declared
from pi0_jax.data.lerobot.draft import draft
from pi0_jax.data.lerobot.importer import import_lerobot
from pi0_jax.data.lerobot.steps import Encoding
from pi0_jax.data.records.serialise import serialise_example
from pi0_jax.data.write import encode_jpeg
from pi0_jax.errors import InputError
from tests import lerobot_data as made
from tests import own_process
from tests.training import ROOT, environment

LAYOUTS = [(version, kind) for version in ("v2.1", "v3.0") for kind in ("video", "image")]
PNG = Encoding("png")
TOP = made.CAMERAS[0]


@pytest.fixture(params=LAYOUTS, ids=" ".join)
def dataset(request, tmp_path):
    """Returns a folder and what its episodes hold."""
    folder = tmp_path / "my-Robot.1"
    return folder, made.write(folder, *request.param)


def digests(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


# What is imported. -------------------------------------------------------------------------------


def test_every_frame_and_number_is_as_it_was(dataset, tmp_path):
    folder, episodes = dataset
    imported = import_lerobot(folder, tmp_path / "out", encoding=PNG)
    assert imported.folder == tmp_path / "out" / "my_robot_1" / "1.0.0" and imported.written
    assert (imported.episodes, imported.frames) == ({"train": 3}, sum(made.LENGTHS))
    found = list(made.steps_of(imported.folder))
    assert [episode["number"] for episode in found] == [0, 1, 2]
    for expected, stored in zip(episodes, found, strict=True):
        length = len(expected["index"])
        for name in (*made.CAMERAS, *made.VECTORS, "next.reward", "next.done", "index", "timestamp",
                     "frame_index", "task_index", "observation.effort"):  # fmt: skip
            values = made.at(stored, name)
            np.testing.assert_array_equal(values, expected[name], err_msg=name)
            wanted = "float32" if name == "observation.effort" else expected[name].dtype
            assert values.dtype == wanted, name
        assert [text.decode() for text in stored["language_instruction"]] == [
            made.TASKS[task] for task in expected["task_index"]
        ]
        assert stored["note"].tolist() == [f"frame {i}".encode() for i in range(length)]
        assert stored["is_first"].tolist() == [True] + [False] * (length - 1)
        assert stored["is_last"].tolist() == [False] * (length - 1) + [True]
    settings = json.loads((imported.folder / "metadata.json").read_text())
    assert settings["info"] == json.loads((folder / "meta/info.json").read_text())
    assert settings["images"] == "png" and settings["skipped_episodes"] == []


def test_jpeg_is_of_the_stated_quality(dataset, tmp_path):
    folder, episodes = dataset
    imported = import_lerobot(folder, tmp_path / "out", encoding=Encoding(quality=80))
    pixels = [image for episode in episodes for image in episode[TOP]]
    assert made.files_of(imported.folder, TOP) == [encode_jpeg(image, 80) for image in pixels]


def test_files_of_the_wanted_kind_are_kept_as_they_are(tmp_path):
    """PNG files of a table are not encoded again; as JPEG they are."""
    made.write(tmp_path / "in", "v3.0", "image")
    imported = import_lerobot(tmp_path / "in", tmp_path / "out", encoding=PNG)
    files = made.files_of(imported.folder, TOP)
    assert files[: made.LENGTHS[0]] == [
        made.png(made.picture(0, 0, i)) for i in range(made.LENGTHS[0])
    ]


def test_bytes_do_not_depend_on_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "_LEAST_FRAMES", 9)  # two shards
    made.write(tmp_path / "in", "v3.0", "video")
    one = import_lerobot(tmp_path / "in", tmp_path / "one", workers=1).folder
    two = import_lerobot(tmp_path / "in", tmp_path / "two", workers=2).folder
    assert len(list(one.glob("*tfrecord*"))) == 2 and digests(one) == digests(two)


def test_records_are_those_of_tfds():
    rng = np.random.default_rng(0)
    arrays = {
        "float": rng.normal(size=(3, 2)).astype(np.float32),
        "int": np.array([[0, -1], [1 << 40, 127], [128, -(1 << 63)]]),
        "flag": np.array([True, False, True]),
        "byte": np.array([0, 127, 255], np.uint8),
    }
    texts = ["a", "", "ü" * 200]
    steps = tfds.features.FeaturesDict(
        {
            **{name: tfds.features.Tensor(shape=it.shape[1:], dtype=it.dtype) for name, it in arrays.items()},
            "text": tfds.features.Text(),
        }
    )  # fmt: skip
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps)})
    rows = [{**{name: it[i] for name, it in arrays.items()}, "text": texts[i]} for i in range(3)]

    theirs = tf.train.Example.FromString(features.serialize_example({"steps": rows}))
    ours = serialise_example(
        {
            **{f"steps/{name}": it for name, it in arrays.items()},
            "steps/text": [text.encode() for text in texts],
        }
    )
    assert ours == theirs.SerializeToString(deterministic=True)


def test_splits_of_the_dataset_are_kept(tmp_path):
    made.write(tmp_path / "in", "v2.1", "image")
    made.edit_json(tmp_path / "in/meta/info.json", splits={"val": "2:3", "train": "0:2"})
    imported = import_lerobot(tmp_path / "in", tmp_path / "out")
    assert imported.episodes == {"train": 2, "val": 1}
    assert [episode["number"] for episode in made.steps_of(imported.folder, "val")] == [2]


def test_features_and_episodes_are_left_out(tmp_path):
    made.write(tmp_path / "in", "v3.0", "video")
    imported = import_lerobot(
        tmp_path / "in", tmp_path / "out", without=[TOP, "note"], skip_episodes=[0]
    )
    found = list(made.steps_of(imported.folder))
    assert [episode["number"] for episode in found] == [1, 2]
    assert list(found[0]["observation"]["images"]) == ["wrist"] and "note" not in found[0]


# What a killed import leaves. --------------------------------------------------------------------


def read_episodes(monkeypatch):
    """Returns a list to which the number of each episode that is read is added."""
    numbers, read = [], steps.EpisodeReader.read

    def counted(self, episode):
        numbers.append(episode.number)
        return read(self, episode)

    monkeypatch.setattr(steps.EpisodeReader, "read", counted)
    return numbers


def test_an_import_goes_on_behind_the_last_whole_episode(tmp_path, monkeypatch):
    """A broken video ends it; when it is mended, what is done is not done again."""
    made.write(tmp_path / "in", "v2.1", "video")
    whole = import_lerobot(tmp_path / "in", tmp_path / "whole", name="data").folder
    video = tmp_path / f"in/videos/chunk-000/{TOP}/episode_000002.mp4"
    good = video.read_bytes()
    video.write_bytes(good[:100])
    numbers = read_episodes(monkeypatch)
    with pytest.raises(InputError, match=r"episode_000002.mp4.*\n2 episodes are written and kept"):
        import_lerobot(tmp_path / "in", tmp_path / "out", name="data")
    assert not (tmp_path / "out/data/1.0.0").exists() and numbers == [0, 1, 2]
    video.write_bytes(good)
    numbers.clear()
    folder = import_lerobot(tmp_path / "in", tmp_path / "out", name="data").folder
    assert numbers == [2] and digests(folder) == digests(whole)
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    assert not import_lerobot(tmp_path / "in", tmp_path / "out", name="data").written


@pytest.mark.parametrize("cut", [1, 3, 10, 2000, -1])
def test_half_a_record_is_cut_off(cut, tmp_path, monkeypatch):
    """A kill leaves a record without its end; after a crash of the machine it may have zeros."""
    made.write(tmp_path / "in", "v3.0", "image")
    whole = import_lerobot(tmp_path / "in", tmp_path / "whole", name="data").folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importer, "write_info", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            import_lerobot(tmp_path / "in", tmp_path / "out", name="data")
    (shard,) = (tmp_path / "out").rglob("*tfrecord*")
    content = shard.read_bytes()
    shard.write_bytes(content[:-cut] if cut > 0 else content[:-50] + bytes(50))
    numbers = read_episodes(monkeypatch)
    folder = import_lerobot(tmp_path / "in", tmp_path / "out", name="data").folder
    assert numbers == [2] and digests(folder) == digests(whole)


@pytest.mark.parametrize("skipped", [[2], [3], [2, 3]])
def test_leaving_out_an_episode_moves_no_other_one(skipped, tmp_path, monkeypatch):
    """What is done is kept, in the same four shards. The index takes one without episodes, too."""
    monkeypatch.setattr(importer, "_LEAST_FRAMES", 10)  # two episodes a shard
    made.write(tmp_path / "in", "v2.1", "image", [6] * 7)
    for number in skipped:
        file = f"data/chunk-000/episode_{number:06d}.parquet"
        made.edit_table(tmp_path / "in" / file, "index", np.negative)
    with pytest.raises(InputError, match=f"episode {skipped[0]}: frame 0: index"):
        import_lerobot(tmp_path / "in", tmp_path / "out", name="data")
    numbers = read_episodes(monkeypatch)
    again = import_lerobot(tmp_path / "in", tmp_path / "out", name="data", skip_episodes=skipped)
    assert numbers == ([3] if skipped == [2] else [])
    kept = [number for number in range(7) if number not in skipped]
    assert [episode["number"] for episode in made.steps_of(again.folder)] == kept
    assert (again.episodes, again.frames) == ({"train": len(kept)}, 6 * len(kept))
    sizes = [file.stat().st_size for file in sorted(again.folder.glob("*tfrecord*"))]
    assert [size > 0 for size in sizes] == [True, skipped != [2, 3], True, True]
    fresh = import_lerobot(tmp_path / "in", tmp_path / "new", name="data", skip_episodes=skipped)
    assert digests(again.folder) == digests(fresh.folder)
    config = {}
    exec(answered(draft(tmp_path / "in", again.declared, again.folder)), config)
    record = config["get_config"]().own_datasets["data"].to_dict()
    index = build_or_open(find_row("data", {"data": record}), tmp_path / "out", None, workers=1)
    assert len(index.state) == again.frames


def test_an_episode_that_is_taken_in_again_is_not_put_behind_a_later_one(tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "_LEAST_FRAMES", 10)  # two episodes a shard
    made.write(tmp_path / "in", "v2.1", "image", [6] * 5)
    made.edit_table(tmp_path / "in/data/chunk-000/episode_000004.parquet", "index", np.negative)
    with pytest.raises(InputError, match="episode 4: frame 0: index"):
        import_lerobot(tmp_path / "in", tmp_path / "out", name="data", skip_episodes=[2])
    with pytest.raises(InputError, match=r"00001-of-00003: expected .* 2 to 3.*found \[3\]"):
        import_lerobot(tmp_path / "in", tmp_path / "out", name="data", skip_episodes=[4])
    with pytest.raises(InputError, match=r"00001-of-00003: expected no episode.*found \[3\]"):
        import_lerobot(tmp_path / "in", tmp_path / "out", name="data", skip_episodes=[2, 3])
    numbers = read_episodes(monkeypatch)
    next((tmp_path / "out").rglob("*-00001-of-00003")).unlink()
    import_lerobot(tmp_path / "in", tmp_path / "out", name="data", skip_episodes=[4])
    assert numbers == [2, 3]


def test_an_episode_is_left_out_in_the_middle_of_a_video(tmp_path):
    """The next one is found, and what is damaged before it is not decoded."""
    episodes = made.write(tmp_path / "in", "v3.0", "video", episodes_per_file=3)
    file = tmp_path / f"in/videos/{TOP}/chunk-000/file-000.mp4"
    with av.open(str(file)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        times = [round(float(packet.pts * packet.time_base) * made.FPS) for packet in packets]
        bad = packets[times.index(12)]
        place, size = bad.pos, bad.size
    assert bad.is_keyframe and made.LENGTHS[0] <= 12 < sum(made.LENGTHS[:2]) - 4
    content = bytearray(file.read_bytes())
    content[place : place + size] = bytes(size)
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"file-000.mp4: episode 1: .*frame \d+: does not decode"):
        import_lerobot(tmp_path / "in", tmp_path / "broken", encoding=PNG)
    imported = import_lerobot(tmp_path / "in", tmp_path / "out", encoding=PNG, skip_episodes=[1])
    first, last = made.steps_of(imported.folder)
    for camera in made.CAMERAS:
        np.testing.assert_array_equal(made.at(first, camera), episodes[0][camera])
        np.testing.assert_array_equal(made.at(last, camera), episodes[2][camera])


def command(*flags):
    return [sys.executable, "-m", "launch.import_lerobot", *flags]


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path):
    made.write(tmp_path / "in", "v3.0", "video", [20] * 120, episodes_per_file=30)
    flags = (f"--input={tmp_path / 'in'}", "--name=data", "--workers=2", "--images=png")
    how = dict(cwd=ROOT, env=environment(1), stdout=subprocess.DEVNULL)
    subprocess.run(command(*flags, f"--output={tmp_path / 'whole'}"), check=True, **how)
    kills = 0

    def shards():
        return sum(file.stat().st_size for file in tmp_path.glob("out/data/*/dataset/*"))

    for _ in range(3):
        process = subprocess.Popen(command(*flags, f"--output={tmp_path / 'out'}"), **how)
        before = shards()
        while process.poll() is None and shards() <= before:
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    subprocess.run(command(*flags, f"--output={tmp_path / 'out'}"), check=True, **how)
    assert kills and digests(tmp_path / "out/data/1.0.0") == digests(tmp_path / "whole/data/1.0.0")


def test_other_settings_are_refused(tmp_path):
    made.write(tmp_path / "in", "v3.0", "image")
    import_lerobot(tmp_path / "in", tmp_path / "out", name="data")
    with pytest.raises(InputError, match="made in another way is here already"):
        import_lerobot(tmp_path / "in", tmp_path / "out", name="data", encoding=PNG)
    made.edit_table(tmp_path / "in/data/chunk-000/file-001.parquet", "index", np.negative)
    with pytest.raises(InputError, match="file-001.parquet: episode 2: frame 0: index"):
        import_lerobot(tmp_path / "in", tmp_path / "out", name="other")
    with pytest.raises(InputError, match="other settings has begun: images"):
        import_lerobot(tmp_path / "in", tmp_path / "out", name="other", encoding=PNG)
    with pytest.raises(InputError, match="leave out the same episodes"):
        import_lerobot(tmp_path / "in", tmp_path / "out", name="other", skip_episodes=[0])
    # What is wrong may be left out.
    imported = import_lerobot(tmp_path / "in", tmp_path / "out", name="other", skip_episodes=[2])
    assert imported.episodes == {"train": 2}


def test_two_imports_do_not_write_at_once(tmp_path):
    made.write(tmp_path / "in", "v3.0", "image")
    work = tmp_path / "out/data/1.0.0.incomplete-import"
    work.mkdir(parents=True)
    with open(work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another import is writing there"):
            import_lerobot(tmp_path / "in", tmp_path / "out", name="data")
    assert import_lerobot(tmp_path / "in", tmp_path / "out", name="data").written


# What is refused. --------------------------------------------------------------------------------


def feature(name, **changes):
    """Changes a feature of info.json."""

    def change(folder):
        features = json.loads((folder / "meta/info.json").read_text())["features"]
        features[name] |= changes
        made.edit_json(folder / "meta/info.json", features=features)

    return change


def about(**changes):
    return lambda folder: made.edit_json(folder / "meta/info.json", **changes)


def column(file, name, change):
    return lambda folder: made.edit_table(folder / file, name, change)


def as_texts(name):
    """Makes texts of a column of meta/episodes."""

    def change(folder):
        with pq.ParquetFile(folder / EPISODES) as parquet:
            rows = parquet.read()
        place = rows.schema.get_field_index(name)
        pq.write_table(
            rows.set_column(place, name, rows.column(name).cast("string")), folder / EPISODES
        )

    return change


def without(file):
    return lambda folder: (folder / file).unlink()


def jump(times):
    return [seconds + 0.05 * (frame >= 4) for frame, seconds in enumerate(times)]


def drift(times):
    return [1.02 * seconds for seconds in times]


def video(number, frames=11, fps=made.FPS):
    """Writes the video of a v2.1 episode again."""

    def change(folder):
        file = folder / f"videos/chunk-000/{TOP}/episode_00000{number}.mp4"
        made.write_video(file, [made.picture(0, number, i) for i in range(frames)], fps)

    return change


def damaged(folder):
    """Zeros lie in the middle of a video's pictures; its header is whole."""
    file = folder / f"videos/chunk-000/{TOP}/episode_000001.mp4"
    content = bytearray(file.read_bytes())
    start = content.index(b"mdat")
    middle = start + (content.index(b"moov") - start) * 2 // 3
    content[middle : middle + 60] = bytes(60)
    file.write_bytes(content)


ONE = "data/chunk-000/episode_000001.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
REFUSED = {
    "newer": ("v3.0", about(codebase_version="v3.1"), r"info.json: codebase_version: .*v3\.1.*newer"),
    "older": ("v2.1", about(codebase_version="v2.0"), r"codebase_version: .*v2\.0.*older"),
    "no rate": ("v2.1", about(fps=0), r"info.json: fps: .*found 0"),
    "counts": ("v2.1", about(total_frames=29), r"total_frames: expected 28.*found 29"),
    "splits": ("v2.1", about(splits={"train": "0:2"}), r"splits: .*3 episodes once"),
    "names": ("v3.0", feature("action", names=["a", "b"]), r"feature action: names: expected 3.*found 2"),
    "names twice": ("v3.0", feature("action", names=["a", "b", "a"]), r"action: names: .*'a' several"),
    "depth": ("v3.0", feature(TOP, info={"video.is_depth_map": True}), r"top: .*depth map.*--without"),
    "dtype": ("v3.0", feature("note", dtype="complex64"), r"note: expected dtype.*complex64.*--without"),
    "shape": ("v2.1", feature("action", shape=[4], names=None), r"episode 0: action: expected float32 of shape \[4\]"),
    "size": ("v2.1", feature(TOP, shape=[32, 64, 3]), r"episode_000000.mp4.*frame 0: expected 32x64.*32x32"),
    "no tasks": ("v3.0", without("meta/tasks.parquet"), r"tasks.parquet: expected a parquet file"),
    "no table": ("v2.1", without(ONE), r"episode_000001.parquet: expected a file, found none"),
    "no video": ("v2.1", without(f"videos/chunk-000/{TOP}/episode_000002.mp4"), r"episode_000002.mp4: expected a file"),
    "task": ("v2.1", column(ONE, "task_index", lambda x: [7] * len(x)), r"episode 1: frame 0: task_index: .*found 7"),
    "frame": ("v2.1", column(ONE, "frame_index", lambda x: x[::-1]), r"episode 1: frame 0: frame_index: expected 0, found 10"),
    "jump": ("v2.1", column(ONE, "timestamp", jump), r"episode 1: frame 4: timestamp: expected 0.1.*found 0.15"),
    "drift": ("v2.1", column(ONE, "timestamp", drift), r"episode 1: frame 1: timestamp"),
    "gap": ("v2.1", column(ONE, "action", lambda x: [None, *x[1:]]), r"000001.parquet: (episode 1: action: .*1 without|does not read)"),
    "float64": ("v2.1", column(ONE, "observation.effort", lambda x: [[[0.1, 0], [0, 0]]] * len(x)),
                r"episode 1: observation.effort: .*float32.*--round_float64"),
    "counter": ("v2.1", feature("timestamp", dtype="foo"), r"info.json: feature timestamp: expected dtype float32.*found 'foo'"),
    "lists": ("v2.1", column(ONE, "observation.effort", lambda x: [*x[:3], [*x[3], x[4][0]], x[4][1:], *x[5:]]),
              r"episode 1: observation.effort: expected float64 of shape \[2, 2\].*found a list of 3 in frame 3"),
    "inner lists": ("v2.1", column(ONE, "observation.effort", lambda x: [*x[:5], [[1], [2, 3, 4]], *x[6:]]),
                    r"episode 1: observation.effort: expected float64 of shape \[2, 2\].*found a list of 1 in frame 5"),
    "no number": ("v3.0", column(EPISODES, "data/file_index", lambda x: [None, *x[1:]]), r"episode 0: data/file_index: .*found None"),
    "text": ("v3.0", as_texts("dataset_from_index"), r"file-000.parquet: episode 0: dataset_from_index: expected a number, found '0'"),
    "text number": ("v3.0", as_texts("episode_index"), r"file-000.parquet: .*episode_index: expected a number, found '0'"),
    "text time": ("v3.0", as_texts(f"videos/{TOP}/from_timestamp"), r"episode 0: .*top/from_timestamp: expected a number, found '0"),
    "overlap": ("v3.0", column(EPISODES, "dataset_from_index", lambda x: [x[0], x[1] - 1, x[2]]), r"episode 1: expected 11 frames"),
    "begins": ("v3.0", column(EPISODES, f"videos/{TOP}/from_timestamp", lambda x: [0, 0, 0]), r"episode 1: .*expected 1.1.* s of video"),
    "longer": ("v2.1", video(1, frames=12), r"episode_000001.mp4: expected 11 frames.*found 12"),
    "shorter": ("v2.1", video(1, frames=10), r"episode_000001.mp4: expected 11 frames.*found 10"),
    "rate": ("v2.1", video(1, fps=12), r"episode_000001.mp4: .*, frame 1: expected a frame within .* of 0.1.*found one at 0.08"),
    "broken": ("v2.1", damaged, r"episode_000001.mp4: episode 1: .*top, frame \d+: does not decode"),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, (_, _, message) in REFUSED.items() if message])
def test_what_is_wrong_is_told_in_one_line(name, tmp_path):
    version, change, message = REFUSED[name]
    made.write(tmp_path / "in", version, "video")
    change(tmp_path / "in")
    with pytest.raises(InputError, match=message) as told:
        import_lerobot(tmp_path / "in", tmp_path / "out", name="data")
    assert all("\n" not in line for line in told.value.args)
    assert not (tmp_path / "out/data/1.0.0").exists()


def test_rows_that_a_file_lacks(tmp_path):
    made.write(tmp_path / "in", "v3.0", "video")
    file = tmp_path / "in/data/chunk-000/file-000.parquet"
    with pq.ParquetFile(file) as parquet:
        rows = parquet.read()
    pq.write_table(rows.slice(0, 18), file)
    with pytest.raises(InputError, match="file-000.parquet: expected 19 rows.*found 18"):
        import_lerobot(tmp_path / "in", tmp_path / "out")
    file.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="file-000.parquet: expected a parquet file"):
        import_lerobot(tmp_path / "in", tmp_path / "out")


def test_an_image_that_does_not_decode(tmp_path):
    made.write(tmp_path / "in", "v2.1", "image")

    def cut(cells):
        cells[4]["bytes"] = cells[4]["bytes"][:80]
        return cells

    made.edit_table(tmp_path / "in" / ONE, TOP, cut)
    with pytest.raises(InputError, match=r"000001.parquet: episode 1: .*top, frame 4: .*PNG"):
        import_lerobot(tmp_path / "in", tmp_path / "out")


def test_numbers_are_rounded_where_that_is_asked_for(tmp_path):
    made.write(tmp_path / "in", "v2.1", "image")
    REFUSED["float64"][1](tmp_path / "in")
    imported = import_lerobot(
        tmp_path / "in", tmp_path / "out", encoding=Encoding(round_float64=True)
    )
    effort = list(made.steps_of(imported.folder))[1]["observation"]["effort"]
    assert effort[0, 0, 0] == np.float32(0.1)


def test_two_features_at_one_place(tmp_path):
    made.write(tmp_path / "in", "v2.1", "image")
    features = json.loads((tmp_path / "in/meta/info.json").read_text())["features"]
    features |= {"next_reward": features["next.reward"], "is_last": features["next.done"]}
    made.edit_json(tmp_path / "in/meta/info.json", features=features)
    with pytest.raises(InputError) as told:
        read_declared(tmp_path / "in")
    assert len(told.value.args) == 2
    assert read_declared(tmp_path / "in", ["next_reward", "is_last"]).features


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b", "c"], ("a", "b", "c")),
        ({"motors": ["a", "b", "c"]}, ("a", "b", "c")),
        ([["a", "b", "c"]], ("a", "b", "c")),
        ({"b": 1, "a": 0, "c": 2}, ("a", "b", "c")),
        (["motors"], ()),
        (None, ()),
    ],
)
def test_names_of_every_form_are_kept(names, expected, tmp_path):
    made.write(tmp_path / "in", "v2.1", "image")
    feature("action", names=names)(tmp_path / "in")
    (action,) = (it for it in read_declared(tmp_path / "in").features if it.name == "action")
    assert action.names == expected


# What a person completes. ------------------------------------------------------------------------


def answered(text):
    """Returns a draft with an answer in the place of each question."""
    for old, new in made.ANSWERS:
        assert old in text, f"expected {old!r} in\n{text}"
        text = text.replace(old, new)
    return text


def test_the_draft_asks_what_cannot_be_known(dataset, tmp_path):
    folder, episodes = dataset
    imported = import_lerobot(folder, tmp_path / "out", encoding=PNG)
    text = draft(folder, imported.declared, imported.folder)
    asked = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name) and node.id == "ASK"]  # fmt: skip
    # A slot for each camera, a unit for each number, kind and delta, three of the gripper's action
    # and two of its state, and the steps.
    assert len(asked) == 2 + 6 + 2 + 3 + 2 + 1
    with pytest.raises(NameError, match="ASK"):
        exec(text, {})
    config = {}
    exec(answered(text), config)
    record = config["get_config"]().own_datasets["my_robot_1"].to_dict()
    row = find_row("my_robot_1", {"my_robot_1": record})
    assert [dim.name for dim in row.embodiment.actions] == made.JOINTS
    assert row.embodiment.control_hz == made.FPS
    index = build_or_open(row, tmp_path / "out", None, workers=1)
    state = np.concatenate([episode["observation.state"] for episode in episodes])
    np.testing.assert_array_equal(np.sort(index.state, 0), np.sort(state, 0))


def test_the_draft_of_numbers_without_names(tmp_path):
    made.write(tmp_path / "in", "v2.1", "image")
    feature("action", names=None)(tmp_path / "in")
    feature("observation.state", names=["motors"], units=None)(tmp_path / "in")
    text = draft(tmp_path / "in", read_declared(tmp_path / "in"), Path("DATA/mine/1.0.0"))
    assert text.count("The dataset names none of these") == 2 and "action_2" in text


def test_the_draft_says_what_was_recorded_and_units_that_are_given(tmp_path):
    made.write(tmp_path / "in", "v2.1", "image")
    feature("action", units=["rad", "rad", "m"])(tmp_path / "in")
    stats = [{"action": {"min": [0, low, 0], "max": [1, 2, 3]}} for low in (-4, -5)]
    lines = [json.dumps({"episode_index": i, "stats": it}) for i, it in enumerate(stats)]
    (tmp_path / "in/meta/episodes_stats.jsonl").write_text("\n".join(lines))
    text = draft(tmp_path / "in", read_declared(tmp_path / "in"), Path("DATA/mine/1.0.0"))
    assert re.search(r'"elbow.pos", unit="rad", .*# recorded: -5 to 2', text), text


@pytest.mark.parametrize(
    ("version", "file"), [("v2.1", "episodes_stats.jsonl"), ("v3.0", "stats.json")]
)
@pytest.mark.parametrize("content", ['{"action"', "5", '{"stats": 5, "action": {}}'])
def test_the_draft_refuses_statistics_that_are_broken(version, file, content, tmp_path):
    made.write(tmp_path / "in", version, "image")
    (tmp_path / "in/meta" / file).write_text(content)
    with pytest.raises(InputError, match=f"{file}: .*expected .*, found") as told:
        draft(tmp_path / "in", read_declared(tmp_path / "in"), Path("DATA/mine/1.0.0"))
    assert len(told.value.args) == 1 and "\n" not in told.value.args[0]


def test_the_command_prints_the_draft_and_refuses_in_one_line(tmp_path):
    made.write(tmp_path / "in", "v3.0", "video")

    def run(*flags):
        given = (f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", *flags)
        return own_process.run(command(*given), status=None, env=environment(1))

    first, again = run("--workers=1"), run("--workers=1")
    assert first.returncode == again.returncode == 0, first.stderr
    assert "in/1.0.0: written; episodes 3 train; 28 frames" in first.stderr
    assert "there already" in again.stderr and again.stdout == first.stdout
    (tmp_path / "asked.py").write_text(first.stdout)
    index = ("-m", "launch.index", f"--config={tmp_path / 'asked.py'}")
    asked = own_process.python(*index, status=2, env=environment(1))
    line = 1 + first.stdout.splitlines().index("ACTION = dict(kind=ASK, delta=ASK)")
    assert "Traceback" not in asked.stderr
    assert f"error: {tmp_path / 'asked.py'}, line {line}: " in asked.stderr
    shutil.rmtree(tmp_path / "in/videos")
    refused = run("--name=other")
    errors = [line for line in refused.stderr.splitlines() if "error:" in line]
    assert refused.returncode == 2 and len(errors) == 4 and ".mp4" in errors[0], refused.stderr
    wrong = run("--skip_episodes=one")
    assert wrong.returncode == 2 and "expected numbers, found 'one'" in wrong.stderr
