"""Writes small LeRobot datasets in both layouts, with pyarrow and PyAV, and says what they hold."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS, SIDE, CODEC = 10, 32, "libx264"
TASKS = ("put the cup on the plate", "open the drawer")
JOINTS = ["shoulder.pos", "elbow.pos", "gripper.pos"]
CAMERAS = ("observation.images.top", "observation.images.wrist")
VECTORS = ("observation.state", "action")
LENGTHS = (8, 11, 9)
# The questions of a draft, in the order in which they are answered.
ANSWERS = (
    ('{ASK: "top", ASK: "wrist"}', '{"base_0_rgb": "top", "left_wrist_0_rgb": "wrist"}'),
    ("kind=ASK, delta=ASK", 'kind="absolute", delta=True'),
    ("kind=ASK", 'kind="absolute"'),
    ("unit=ASK", 'unit="1"'),
    ("open=ASK, closed=ASK", "open=9.0, closed=-9.0"),
    ("execute_steps=ASK", "execute_steps=5"),
)


def picture(camera: int, episode: int, frame: int, side: int = SIDE) -> np.ndarray:
    """Returns uint8[side, side, 3], another one for each frame."""
    y, x = np.mgrid[:side, :side]
    planes = (8 * x + 9 * frame, 8 * y + 40 * episode, 128 * camera + 4 * (x + y))
    return np.stack(planes, -1).astype(np.uint8)


def info(version: str, kind: str, lengths: Sequence[int], side: int = SIDE) -> dict[str, Any]:
    """Returns what info.json holds."""
    vector = {"dtype": "float32", "shape": [3], "names": JOINTS}
    camera = {"dtype": kind, "shape": [side, side, 3], "names": ["height", "width", "channels"]}
    counter = {"dtype": "int64", "shape": [1], "names": None}
    paths = {
        "v2.1": (
            "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        ),
        "v3.0": (
            "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        ),
    }[version]
    return {
        "codebase_version": version,
        "robot_type": "three_joints",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": paths[0],
        "video_path": paths[1],
        "features": {
            **dict.fromkeys(VECTORS, vector),
            "next.reward": {"dtype": "float32", "shape": [1], "names": None},
            "next.done": {"dtype": "bool", "shape": [1], "names": None},
            "observation.effort": {"dtype": "float64", "shape": [2, 2], "names": None},
            "note": {"dtype": "string", "shape": [1], "names": None},
            **dict.fromkeys(CAMERAS, camera),
            "timestamp": {**counter, "dtype": "float32"},
            **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), counter),
        },
    }


def numbers(lengths: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Returns the numbers of each episode, by feature."""
    rng = np.random.default_rng(0)
    episodes, first = [], 0
    for episode, length in enumerate(lengths):
        frames = np.arange(length)
        episodes.append(
            {
                **{name: rng.normal(size=(length, 3)).astype(np.float32) for name in VECTORS},
                "next.reward": rng.normal(size=(length, 1)).astype(np.float32),
                "next.done": (frames == length - 1)[:, None],
                "observation.effort": rng.integers(0, 99, (length, 2, 2)) / 8,
                "timestamp": (frames / FPS).astype(np.float32),
                "frame_index": frames,
                "episode_index": np.full(length, episode),
                "index": first + frames,
                # The second episode changes its task half-way.
                "task_index": np.where((episode == 1) & (frames >= 5), 1, episode % 2),
            }
        )
        first += length
    return episodes


def table(episode: int, values: dict[str, np.ndarray], kind: str) -> pa.Table:
    """Returns one episode's rows."""
    columns: dict[str, pa.Array] = {
        name: pa.array(array[:, 0] if array.shape[1:] == (1,) else array.tolist())
        if array.ndim != 2 or array.shape[1] == 1
        else pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
        for name, array in values.items()
    }
    columns["timestamp"] = pa.array(values["timestamp"])
    columns["note"] = pa.array([f"frame {i}" for i in range(len(values["index"]))])
    for camera, name in enumerate(CAMERAS if kind == "image" else ()):
        cells = [
            {"bytes": png(picture(camera, episode, i)), "path": f"frame-{i:06d}.png"}
            for i in range(len(values["index"]))
        ]
        columns[name] = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return pa.table(columns)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_video(
    file: Path, pixels: Iterable[np.ndarray], fps: int = FPS, side: int = SIDE, codec: str = CODEC
) -> None:
    """Writes a video with a key frame in every four."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, fps, {"crf": "20", "g": "4"})
        stream.height = stream.width = side
        stream.pix_fmt = "yuv420p"
        for image in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def decoded(file: Path) -> list[np.ndarray]:
    """Returns all frames of a video, read from its beginning."""
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def write(
    folder: Path,
    version: str,
    kind: str,
    lengths: Sequence[int] = LENGTHS,
    *,
    episodes_per_file: int = 2,
    side: int = SIDE,
    codec: str = CODEC,
) -> list[dict[str, Any]]:
    """Writes a dataset and returns what its episodes hold, images as they decode.

    Args:
        folder: where it goes.
        version: "v2.1" or "v3.0".
        kind: "video" or "image".
        lengths: the episodes' frames.
        episodes_per_file: of a file in v3.0.
        side: height and width of its images, in pixels.
        codec: of its videos.
    """
    meta = folder / "meta"
    meta.mkdir(parents=True)
    about = info(version, kind, lengths, side)
    (meta / "info.json").write_text(json.dumps(about))
    values = numbers(lengths)
    per_file = 1 if version == "v2.1" else episodes_per_file
    records = []
    for number in range(0, len(lengths), per_file):
        group = range(number, min(number + per_file, len(lengths)))
        places = {"chunk_index": 0, "file_index": number // per_file}
        if version == "v2.1":
            places = {"episode_chunk": 0, "episode_index": number}
        file = folder / about["data_path"].format(**places)
        file.parent.mkdir(parents=True, exist_ok=True)
        tables = [table(episode, values[episode], kind) for episode in group]
        with pq.ParquetWriter(file, tables[0].schema) as writer:
            for rows in tables:
                writer.write_table(rows)
        start = 0
        for episode in group:
            records.append(record_v30(episode, lengths, number // per_file, start, kind))
            start += lengths[episode]
        for camera, name in enumerate(CAMERAS):
            pixels = [
                picture(camera, episode, i, side)
                for episode in group
                for i in range(lengths[episode])
            ]
            if kind == "video":
                file = folder / about["video_path"].format(video_key=name, **places)
                write_video(file, pixels, side=side, codec=codec)
                pixels = decoded(file)
            images = iter(pixels)
            for episode in group:
                values[episode][name] = np.stack([next(images) for _ in range(lengths[episode])])
    write_meta(meta, version, lengths, records)
    return values


def record_v30(
    episode: int, lengths: Sequence[int], file: int, start: int, kind: str
) -> dict[str, Any]:
    """Returns the record of one episode in v3.0, which begins at frame `start` of its files."""
    first = sum(lengths[:episode])
    record = {
        "episode_index": episode,
        "tasks": list(TASKS),
        "length": lengths[episode],
        "data/chunk_index": 0,
        "data/file_index": file,
        "dataset_from_index": first,
        "dataset_to_index": first + lengths[episode],
    }
    for name in CAMERAS if kind == "video" else ():
        record |= {
            f"videos/{name}/chunk_index": 0,
            f"videos/{name}/file_index": file,
            f"videos/{name}/from_timestamp": start / FPS,
            f"videos/{name}/to_timestamp": (start + lengths[episode]) / FPS,
        }
    return record


def write_meta(
    meta: Path, version: str, lengths: Sequence[int], records: Sequence[dict[str, Any]]
) -> None:
    """Writes the tables of tasks and episodes."""
    if version == "v2.1":
        tasks = [{"task_index": i, "task": text} for i, text in enumerate(TASKS)]
        episodes = [
            {"episode_index": i, "tasks": list(TASKS), "length": length}
            for i, length in enumerate(lengths)
        ]
        for name, lines in (("tasks", tasks), ("episodes", episodes)):
            (meta / f"{name}.jsonl").write_text("".join(f"{json.dumps(it)}\n" for it in lines))
        return
    file = meta / "episodes" / "chunk-000" / "file-000.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(records)), file)
    tasks = pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)})
    pq.write_table(tasks, meta / "tasks.parquet")


def edit_json(file: Path, **changes: Any) -> None:
    """Changes keys of a JSON object."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_table(file: Path, name: str, change: Any) -> None:
    """Replaces a column of a parquet file by what `change` makes of its values."""
    with pq.ParquetFile(file) as parquet:
        rows = parquet.read()
    place = rows.schema.get_field_index(name)
    kind = rows.schema.field(place).type
    values = pa.array(change(rows.column(name).to_pylist()), kind)
    pq.write_table(rows.set_column(place, name, values), file)


def steps_of(folder: Path, split: str = "train") -> Iterator[dict[str, Any]]:
    """Yields the episodes of an RLDS dataset as TFDS reads them: nested dicts of stacked arrays."""
    import tensorflow_datasets as tfds

    dataset = tfds.builder_from_directory(folder).as_dataset(split=split, shuffle_files=False)
    for episode in tfds.as_numpy(dataset):
        yield {
            "number": episode["episode_metadata"]["episode_index"],
            **stacked(list(episode["steps"])),
        }


def files_of(folder: Path, camera: str) -> list[bytes]:
    """Returns a camera's image files in an RLDS dataset, all episodes behind each other."""
    import tensorflow_datasets as tfds

    skip = {"observation": {"images": {camera.split(".")[-1]: tfds.decode.SkipDecoding()}}}
    dataset = tfds.builder_from_directory(folder).as_dataset(
        split="train", shuffle_files=False, decoders={"steps": skip}
    )
    return [
        step["observation"]["images"][camera.split(".")[-1]]
        for episode in tfds.as_numpy(dataset)
        for step in episode["steps"]
    ]


def stacked(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: stacked([step[name] for step in steps])
        if isinstance(value, dict)
        else np.stack([step[name] for step in steps])
        for name, value in steps[0].items()
    }


def at(steps: dict[str, Any], name: str) -> np.ndarray:
    """Returns what the import made of a feature."""
    if name.startswith("observation.images."):
        return steps["observation"]["images"][name.removeprefix("observation.images.")]
    if name.startswith("observation."):
        return steps["observation"][name.removeprefix("observation.")]
    return steps[name.replace(".", "_")]
