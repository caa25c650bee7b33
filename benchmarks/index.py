"""Measures how fast an index is built, and how fast a large one is opened.

The speed is compared with `cat` of the same files and with the checksums of the same bytes.

    kind            cameras            bytes an image   steps an episode   bytes a shard
    DROID-like      3 of 180 x 320     10 kB            150 to 300         800 MB
    Bridge-like     4 of 256 x 256     14 kB            35                 120 MB
    reach           2 of 64 x 64       1.5 kB           50                 40 MB

Of the Bridge-like kind one camera is indexed, and all are read. The files lie in the page cache,
where reading costs least and so everything else most. Times are those of the processor. On a core
of one's own they are the clock's: other processes of the machine count for nothing but the caches
that they take.
"""

import dataclasses
import io
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from loky import ProcessPoolExecutor
from PIL import Image

from benchmarks.memory import anonymous_bytes
from benchmarks.synthetic_index import synthetic_index
from pi0_jax.data import storage
from pi0_jax.data.index import Index, build_or_open
from pi0_jax.data.index.build import build_index
from pi0_jax.data.index.shards import index_shard
from pi0_jax.data.oxe.primitives import wrap_angle
from pi0_jax.data.records.episodes import open_shards
from pi0_jax.data.records.tfrecord import read_records
from pi0_jax.data.rows import CameraField, Columns, Dataset, Language, RawField, Standardised
from pi0_jax.data.write import ArrayFeature, Features, ImageFeature, TextFeature, write_rlds
from pi0_jax.embodiments import ActionDim, Embodiment, StateDim

_DISTINCT_IMAGES = 64
_DRAWS = 256 * 100
_JOINTS, _GRIPPER, _VELOCITY = (
    "steps/observation/joints",
    "steps/observation/gripper",
    "steps/action/joint_velocity",
)


class Kind(NamedTuple):
    """Describes a kind of dataset.

    Attributes:
        name: its name.
        height: an image's height in pixels.
        width: an image's width in pixels.
        cameras: the cameras in the files.
        indexed: how many of them are in the index.
        image_bytes: bytes of an encoded image.
        steps: the least and the most steps of an episode.
        instructions: the number of language fields.
        unread: the number of further number fields of a step, which the rule does not read.
        shard_bytes: bytes of a shard.
    """

    name: str
    height: int
    width: int
    cameras: int
    indexed: int
    image_bytes: int
    steps: tuple[int, int]
    instructions: int
    unread: int
    shard_bytes: int


KINDS = (
    Kind("DROID-like", 180, 320, cameras=3, indexed=3, image_bytes=10_000, steps=(150, 300),
         instructions=3, unread=12, shard_bytes=800_000_000),
    Kind("Bridge-like", 256, 256, cameras=4, indexed=1, image_bytes=14_000, steps=(35, 35),
         instructions=1, unread=10, shard_bytes=120_000_000),
    Kind("reach", 64, 64, cameras=2, indexed=2, image_bytes=1_500, steps=(50, 50),
         instructions=1, unread=0, shard_bytes=40_000_000),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds what was measured of one kind; times are processor seconds.

    Attributes:
        kind: the kind's name.
        bytes: bytes of its files.
        frames: frames in its index.
        cat: the time of `cat`.
        checksums: the time of the checksums alone.
        index: the time to read, check and standardise every record.
        build: the whole time: metadata, `index`, parts, merge, publishing.
    """

    kind: str
    bytes: int
    frames: int
    cat: float
    checksums: float
    index: float
    build: float

    @property
    def ratio(self) -> float:
        """Returns the speed of indexing over that of `cat` followed by the checksums."""
        return (self.cat + self.checksums) / self.index


def benchmark_index(
    directory: Path | None = None, *, megabytes: int = 400, repeats: int = 5
) -> list[Result]:
    """Measures each of KINDS; every time is the best of several.

    Args:
        directory: where the files are made, and stay for the next time; None takes a temporary one.
        megabytes: the size of each kind's files, about.
        repeats: how often everything is measured.
    """
    if directory is None:
        with tempfile.TemporaryDirectory() as folder:
            return benchmark_index(Path(folder), megabytes=megabytes, repeats=repeats)
    return [_measure(kind, _files(kind, directory, megabytes), repeats) for kind in KINDS]


class Opening(NamedTuple):
    """Describes the opening of an index in a fresh process.

    Attributes:
        frames: the frames of the index.
        seconds: the time until it is open.
        anonymous_bytes: the growth of the process's own memory, after _DRAWS frames were drawn.
    """

    frames: int
    seconds: float
    anonymous_bytes: int


def benchmark_opening(directory: Path, frames: int = 100_000_000) -> Opening:
    """Opens an index of so many frames, on Linux.

    The index is made in `directory` and removed afterwards. All of it but its tables is zeros.
    """
    kind = KINDS[-1]
    folder = _files(kind, directory, megabytes=40)
    row = _row(kind)
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        template = build_or_open(row, folder, Path(temporary, "template"), progress=False)
        dataset, large = folder / kind.name / "1.0.0", Path(temporary, "large")
        synthetic_index(template, dataset, large, frames, sparse=True)
        with ProcessPoolExecutor(1) as executor:
            return executor.submit(_open_and_draw, row, dataset, large).result()


def _open_and_draw(row: Dataset, dataset: Path, path: Path) -> Opening:
    before, start = anonymous_bytes(), time.perf_counter()
    index = Index(row, dataset, path)
    seconds = time.perf_counter() - start
    kept = index.frames("train")
    frames = kept[np.random.default_rng(0).integers(len(kept), size=_DRAWS)]
    for batch in np.split(frames, _DRAWS // 256):
        index.chunks(batch, horizon=50)
        index.step_of(batch)
    return Opening(index.steps, seconds, anonymous_bytes() - before)


def report() -> tuple[str, list[dict[str, Any]]]:
    """Measures building and opening, and returns a table and its numbers."""
    results = benchmark_index()
    with tempfile.TemporaryDirectory() as folder:
        opening = benchmark_opening(Path(folder))
    return f"{table(results)}\n{opening}", [dataclasses.asdict(r) for r in results]


def table(results: list[Result]) -> str:
    lines = [
        f"{'files':<12} {'MB':>6} {'frames':>8} {'cat':>10} {'checksums':>10} {'index':>10} {'ratio':>6} {'whole build':>12}"
    ]
    for r in results:
        speeds = [
            f"{r.bytes / seconds / 1e9:5.1f} GB/s" for seconds in (r.cat, r.checksums, r.index)
        ]
        lines.append(
            f"{r.kind:<12} {r.bytes / 1e6:6.0f} {r.frames:8,} {' '.join(speeds)} {r.ratio:6.2f} {r.build:10.2f} s"
        )
    return "\n".join(lines)


def _measure(kind: Kind, folder: Path, repeats: int) -> Result:
    row, directory = _row(kind), folder / kind.name / "1.0.0"
    shards = open_shards(row, directory)
    files = [str(shard.path) for shard in shards]
    payloads = [
        np.frombuffer(record.payload, np.uint8) for file in files for record in read_records(file)
    ]

    def index() -> int:
        parts = [
            index_shard(row, shard, decode_all=False, skip=0, on_read=lambda read: None)
            for shard in shards
        ]
        return sum(len(part.columns["step_state"]) for part in parts)

    def build() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as root:
            build_index(
                row,
                directory,
                Path(root),
                progress=False,
                workers=1,
                decode_all=False,
                skip_bad_episodes=0,
            )

    cat, checksums, indexing, whole = _best(
        repeats,
        lambda: subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True),
        lambda: [google_crc32c.value(payload) for payload in payloads],
        index,
        build,
    )
    size = sum(storage.size(shard.path) for shard in shards)
    return Result(kind.name, size, index(), cat, checksums, indexing, whole)


def _best(repeats: int, *actions: Callable[[], Any]) -> list[float]:
    """Returns the least processor seconds of each action.

    The actions take turns, so that a slow moment hits all alike.
    """
    best = [float("inf")] * len(actions)
    for _ in range(repeats):
        for i, action in enumerate(actions):
            start = _processor_seconds()
            action()
            best[i] = min(best[i], _processor_seconds() - start)
    return best


def _processor_seconds() -> float:
    """Returns the processor seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _files(kind: Kind, directory: Path, megabytes: int) -> Path:
    """Writes the kind's dataset below the directory, unless it is there, and returns its folder."""
    folder = directory / f"{megabytes}MB"
    if not (folder / kind.name).is_dir():
        write_rlds(
            folder,
            kind.name,
            "1.0.0",
            steps=_features(kind),
            metadata={"file_path": TextFeature()},
            splits={"train": _episodes(kind, megabytes * 10**6)},
            episodes_per_shard=kind.shard_bytes // (_step_bytes(kind) * sum(kind.steps) // 2),
        )
    return folder


def _step_bytes(kind: Kind) -> int:
    return kind.cameras * kind.image_bytes


def _features(kind: Kind) -> Features:
    images = {f"image_{i}": ImageFeature(kind.height, kind.width) for i in range(kind.cameras)}
    return {
        "observation": {
            **images,
            "joints": ArrayFeature((7,), np.float64),
            "gripper": ArrayFeature((1,), np.float64),
        },
        "action": {"joint_velocity": ArrayFeature((7,), np.float64)},
        **{f"unread_{i}": ArrayFeature((6,), np.float64) for i in range(kind.unread)},
        **{f"instruction_{i}": TextFeature() for i in range(kind.instructions)},
    }


def _episodes(kind: Kind, total: int) -> Iterator[dict[str, Any]]:
    generator = np.random.default_rng(0)
    images = _images(kind, generator)
    written = 0
    for number in range(total):
        if written >= total:
            return
        steps = int(generator.integers(kind.steps[0], kind.steps[1] + 1))
        yield {
            "steps": [_step(kind, number, images, generator) for _ in range(steps)],
            "episode_metadata": {"file_path": f"{number}"},
        }
        written += steps * _step_bytes(kind)


def _step(
    kind: Kind, episode: int, images: list[bytes], generator: np.random.Generator
) -> dict[str, Any]:
    numbers = generator.uniform(-1, 1, (7 + 7 + 6 * kind.unread))
    chosen = generator.integers(len(images), size=kind.cameras)
    return {
        "observation": {
            **{f"image_{i}": images[image] for i, image in enumerate(chosen)},
            "joints": numbers[:7],
            "gripper": np.abs(numbers[:1]),
        },
        "action": {"joint_velocity": numbers[7:14]},
        **{f"unread_{i}": numbers[14 + 6 * i : 20 + 6 * i] for i in range(kind.unread)},
        **{
            f"instruction_{i}": f"put the thing of episode {episode} into the other"
            for i in range(kind.instructions)
        },
    }


def _images(kind: Kind, generator: np.random.Generator) -> list[bytes]:
    """Returns JPEGs of about the kind's number of bytes: smooth noise, as fine as that allows."""
    cells = next(
        n for n in range(kind.height, 2, -1) if len(_noise(kind, n, generator)) <= kind.image_bytes
    )
    return [_noise(kind, cells, generator) for _ in range(_DISTINCT_IMAGES)]


def _noise(kind: Kind, cells: int, generator: np.random.Generator) -> bytes:
    coarse = generator.integers(0, 256, (cells, cells * kind.width // kind.height, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((kind.width, kind.height), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=85
    )
    return file.getvalue()


def _standardise(columns: Columns) -> Standardised:
    """Makes joints and gripper the state, and joint velocities and gripper opening the actions.

    Steps in which the robot stands still are not drawn.
    """
    velocity = columns[_VELOCITY]
    idle = np.zeros(len(velocity), bool)
    idle[1:] = (np.abs(np.diff(velocity, axis=0)) < 1e-3).all(axis=1)
    return Standardised(
        state=np.concatenate([wrap_angle(columns[_JOINTS]), columns[_GRIPPER]], axis=1),
        action=np.concatenate([velocity, 1 - columns[_GRIPPER]], axis=1),
        keep=~idle,
        stop=len(velocity),
    )


def _row(kind: Kind) -> Dataset:
    cameras = {
        f"image_{i}": CameraField(f"steps/observation/image_{i}") for i in range(kind.indexed)
    }
    robot = Embodiment(
        name=kind.name,
        robot="none",
        cameras=dict(
            zip(("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"), cameras, strict=False)
        ),
        state=(*(StateDim(f"joint_{i}", "rad") for i in range(7)), StateDim("gripper", "1")),
        actions=(
            *(ActionDim(f"joint_{i}", "rad/s", "relative") for i in range(7)),
            ActionDim("gripper", "1", "absolute", low=0.0, high=1.0, one_means="open"),
        ),
        control_hz=15.0,
        execute_steps=8,
    )
    return Dataset(
        name=kind.name,
        tfds_name=kind.name,
        versions=("1.0.0",),
        embodiment=robot,
        cameras=cameras,
        fields={
            path: RawField(shape, "float64")
            for path, shape in ((_JOINTS, (7,)), (_GRIPPER, (1,)), (_VELOCITY, (7,)))
        },
        language=Language(tuple(f"steps/instruction_{i}" for i in range(kind.instructions))),
        standardise=_standardise,
        revision=1,
    )
