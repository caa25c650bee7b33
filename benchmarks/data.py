"""Measures frames per second and memory of reading training batches.

Ours is compared with a plain tf.data pipeline over the same files in the same run. Each contender
reads for the same time, in a process of its own. A frame is three 256x256 cameras decoded to uint8,
a state and a chunk of 50 actions. Ours also tokenises, and places images on canvases. Memory is the
growth of RssAnon since the imports were done. All files lie in the page cache. Frames per second
depend on what else the machine does; processor time for a frame hardly does.
"""

import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks import tfdata
from benchmarks.memory import PeakMemory
from benchmarks.synthetic_index import synthetic_index
from pi0_jax import preprocess
from pi0_jax.data.block_order import LocalOrder
from pi0_jax.data.index import Index, build_or_open
from pi0_jax.data.mixture import Mixture, Order, UniformOrder, mixing
from pi0_jax.data.records.metadata import dataset_directory
from pi0_jax.data.rows import row_from_mapping
from pi0_jax.data.statistics import index_statistics
from pi0_jax.data.write import ArrayFeature, ImageFeature, TextFeature, write_rlds
from pi0_jax.freed_memory import keep_freed_memory
from pi0_jax.preprocess import Layout, Robot
from pi0_jax.preprocess.tokenizer import Tokenizer
from pi0_jax.train.data import Batcher, canvases, train_batches

NAME = "benchmark_arm"
CAMERAS = {
    "base_0_rgb": "base",
    "left_wrist_0_rgb": "left_wrist",
    "right_wrist_0_rgb": "right_wrist",
}
SIDE = 256  # pixels
JOINTS = 7
HORIZON = 50
BATCH = 64
EPISODE_STEPS = 200
DISTINCT_IMAGES = 256

ROW = {
    "versions": ("1.0.0",),
    "embodiment": {
        "robot": "made up",
        "cameras": CAMERAS,
        "state": [{"name": f"joint_{i}", "unit": "rad"} for i in range(JOINTS)],
        "actions": [
            {"name": f"joint_{i}", "unit": "rad", "kind": "absolute", "delta": True}
            for i in range(JOINTS)
        ],
        "control_hz": 15.0,
        "execute_steps": 8,
    },
    "cameras": {camera: {"path": f"steps/observation/{camera}"} for camera in CAMERAS.values()},
    "fields": [
        {"path": path, "shape": (JOINTS,), "dtype": "float32"}
        for path in ("steps/observation/state", "steps/action")
    ],
    "language": {"paths": ("steps/language_instruction",)},
}


BUFFER_FRAMES = 100_000  # of the pipeline that ours is compared with
LANES, LANE_MEGABYTES = 8, 64
THREADS = 4
SMALL, LARGE = 100_000, 100_000_000  # frames of the synthetic indices


class Measurement(NamedTuple):
    """Holds what was measured of one contender.

    Attributes:
        contender: its name.
        frames_per_second: how fast it reads.
        processor_us: microseconds of processor time for a frame, over all threads.
        first_batch_s: seconds from the call to the first batch. A shuffle buffer has to be filled
            in this time.
        memory_mb: the growth of RssAnon in MB.
    """

    contender: str
    frames_per_second: float
    processor_us: float
    first_batch_s: float
    memory_mb: float


def benchmark_data(folder: Path, *, frames: int, seconds: float) -> list[Measurement]:
    """Measures every contender over a dataset, which is made first if it is not there.

    Args:
        folder: where the dataset is.
        frames: how many frames it has.
        seconds: how long each contender reads.
    """
    write_dataset(folder, frames)
    # This builds the index and its statistics once, for all contenders.
    _open(folder)
    for size in (SMALL, LARGE):
        _synthetic(folder, size)
    contenders: dict[str, Callable[[Path], Iterator[Any]]] = {
        f"tf.data, buffer of {BUFFER_FRAMES:,}": _tfdata,
        "uniform order": _uniform,
        f"local order, {LANES} lanes of {LANE_MEGABYTES} MB": _local,
        f"uniform order, {SMALL:,} synthetic frames": _uniform_small,
        f"uniform order, {LARGE:,} synthetic frames": _uniform_large,
    }
    return [_measured(name, contender, folder, seconds) for name, contender in contenders.items()]


def table(measurements: list[Measurement]) -> str:
    """Returns a Markdown table; speeds and memory also as a ratio to the first contender's."""
    first = measurements[0]
    lines = [
        "| reading | frames/s | ratio | processor time a frame, us | first batch, s | growth of anonymous memory, MB | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in measurements:
        speed, memory = m.frames_per_second / first.frames_per_second, m.memory_mb / first.memory_mb
        rates = f"{m.frames_per_second:,.0f} | {speed:.2f} | {m.processor_us:,.0f}"
        lines.append(
            f"| {m.contender} | {rates} | {m.first_batch_s:.1f} | {m.memory_mb:,.0f} | {memory:.3f} |"
        )
    return "\n".join(lines)


def _measured(
    name: str, contender: Callable[[Path], Iterator[Any]], folder: Path, seconds: float
) -> Measurement:
    """Measures in a fresh process, so that nothing is warm and memory is the contender's own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (name, contender, folder, seconds))


def _measure(
    name: str, contender: Callable[[Path], Iterator[Any]], folder: Path, seconds: float
) -> Measurement:
    keep_freed_memory()
    with PeakMemory() as peak:
        begin = time.perf_counter()
        stream = contender(folder)
        next(stream)
        start, busy, read = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() < start + seconds:
            next(stream)
            read += BATCH
        elapsed, busy = time.perf_counter() - start, time.process_time() - busy
        return Measurement(
            name, read / elapsed, busy / read * 1e6, start - begin, peak.growth / 1e6
        )


def _tfdata(folder: Path) -> Iterator[Any]:
    directory = Path(str(dataset_directory(row_from_mapping(NAME, ROW), folder)))
    return tfdata.batches(
        directory, list(CAMERAS.values()), horizon=HORIZON, buffer=BUFFER_FRAMES, batch_size=BATCH
    )


def _uniform(folder: Path) -> Iterator[Any]:
    index = _open(folder)
    return _stream(UniformOrder(_mixture(index), BATCH), index)


def _local(folder: Path) -> Iterator[Any]:
    index = _open(folder)
    return _stream(
        LocalOrder(_mixture(index), BATCH, lanes=LANES, pool_bytes=LANE_MEGABYTES << 20), index
    )


def _uniform_small(folder: Path) -> Iterator[Any]:
    return _stream(UniformOrder(_mixture(_synthetic(folder, SMALL)), BATCH), _open(folder))


def _uniform_large(folder: Path) -> Iterator[Any]:
    return _stream(UniformOrder(_mixture(_synthetic(folder, LARGE)), BATCH), _open(folder))


def _open(folder: Path) -> Index:
    index = build_or_open(row_from_mapping(NAME, ROW), folder)
    index_statistics(index, HORIZON)
    return index


def _synthetic(folder: Path, frames: int) -> Index:
    """Returns an index that repeats our dataset's episodes: the same images, more or fewer frames.

    It is made where it is not there. Its columns are read into the page cache, because a long run
    brings them there too. So the disk has no part in the comparison.
    """
    template = _open(folder)
    directory = Path(str(dataset_directory(template.row, folder)))
    path = folder / f"synthetic-{frames}-{template.path.name}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            synthetic_index(template, directory, Path(unfinished, "index"), frames, sparse=False)
            os.rename(Path(unfinished, "index"), path)
    for column in path.glob("*.npy"):
        with open(column, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
    return Index(template.row, directory, path)


def _mixture(index: Index) -> Mixture:
    return Mixture([index], {index.name: 1.0}, split="train", horizon=HORIZON, seed=0)


def _stream(order: Order, real: Index) -> Iterator[Any]:
    """Yields what a training run reads; the statistics are the real dataset's."""
    slots = preprocess.used_slots([real.embodiment])
    layout = Layout(
        slots,
        image_size=224,
        action_dim=32,
        max_tokens=48,
        normalization="zscore",
        normalization_clip=0.0,
    )
    robot = Robot(real.embodiment, index_statistics(real, HORIZON))
    batcher = Batcher([robot], layout, Tokenizer.open("small"), canvases([real]))
    return train_batches(
        order, batcher, rows=range(BATCH), start=0, stop=1 << 40, threads=THREADS, prefetch=4
    )


def report(folder: Path, *, frames: int, seconds: float) -> tuple[str, list[dict[str, Any]]]:
    """Measures, and returns a table and its numbers."""
    measurements = benchmark_data(folder, frames=frames, seconds=seconds)
    return f"{table(measurements)}\n\n{mixing_table(folder)}", [m._asdict() for m in measurements]


def mixing_table(folder: Path, steps: int = 50) -> str:
    """Returns a table of the distinct episodes in a batch of BATCH rows, by order."""
    mixture = _mixture(_open(folder))
    orders: dict[str, Order] = {
        "uniform": UniformOrder(mixture, BATCH),
        f"local, {LANES} lanes of {LANE_MEGABYTES} MB": LocalOrder(
            mixture, BATCH, lanes=LANES, pool_bytes=LANE_MEGABYTES << 20
        ),
    }
    lines = [f"| order | distinct episodes in a batch of {BATCH} |", "|---|---|"]
    return "\n".join(
        [
            *lines,
            *(
                f"| {name} | {mixing(order, 0, steps).episodes:.1f} |"
                for name, order in orders.items()
            ),
        ]
    )


def write_dataset(data_dir: Path, frames: int) -> None:
    """Writes a real TFDS dataset of `frames` frames, if there is none yet."""
    if (data_dir / NAME / "1.0.0").exists():
        return
    rng = np.random.default_rng(0)
    images = [_picture(rng) for _ in range(DISTINCT_IMAGES)]

    def step() -> dict[str, Any]:
        seen = {camera: images[rng.integers(DISTINCT_IMAGES)] for camera in CAMERAS.values()}
        state, action = rng.normal(size=(2, JOINTS)).astype(np.float32)
        return {
            "observation": {**seen, "state": state},
            "action": action,
            "language_instruction": "put the cup on the shelf",
        }

    steps = {
        "observation": {
            **{camera: ImageFeature(SIDE, SIDE) for camera in CAMERAS.values()},
            "state": ArrayFeature((JOINTS,), np.float32),
        },
        "action": ArrayFeature((JOINTS,), np.float32),
        "language_instruction": TextFeature(),
    }
    episodes = (
        {"steps": [step() for _ in range(EPISODE_STEPS)]} for _ in range(frames // EPISODE_STEPS)
    )
    write_rlds(
        data_dir,
        NAME,
        "1.0.0",
        steps=steps,
        metadata={},
        splits={"train": episodes},
        episodes_per_shard=10,
    )


def _picture(rng: np.random.Generator) -> bytes:
    """Returns a JPEG of SIDE x SIDE pixels: smooth shapes and some grain, about 16 kB."""
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    pixels = np.clip(np.asarray(coarse) + rng.normal(0, 3, (SIDE, SIDE, 1)), 0, 255).astype(
        np.uint8
    )
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()
