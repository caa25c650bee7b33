"""The index of one dataset, open: its frames with their states, actions and prompts, and their images from the files.

Nothing is loaded: columns are mapped, images are read by byte range when their frame is drawn. Reading needs no TFDS.
"""

import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.data import tfrecord
from pi0_jax.data.build import INDEX_FILE, build_index
from pi0_jax.data.columns import EPISODE_COLUMNS, SPLITS, open_column
from pi0_jax.data.encoded_images import BadImageError, decode_image
from pi0_jax.data.metadata import dataset_directory
from pi0_jax.data.rows import Dataset
from pi0_jax.data.storage import AnyPath, Location, RangeReader, locate
from pi0_jax.data.version import describe_difference, index_version, version_digest
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.files import cache_folder
from pi0_jax.observation import RawObservation

Reader = Callable[[int, str], bytes]  # frame, view -> the encoded image
# Shards of one dataset kept open. Its mapped columns take about 20 files more, a mixture has up to 27 datasets, and a process is usually
# allowed 1024 files. To open a local file again takes microseconds, a small part of decoding an image.
_OPEN_FILES = 8


def build_or_open(
    row: Dataset,
    data_dir: AnyPath,
    index_dir: AnyPath | None = None,
    *,
    progress: bool = True,
    workers: int = 1,
    decode_all: bool = False,
    skip_bad_episodes: int = 0,
) -> "Index":
    """Opens the index of data_dir/<tfds_name>/<version>; builds it first if there is none for these files and this row.

    data_dir may be a URL. The index lies in index_dir/<row name>/<version>; without index_dir in pi0_index/ in the
    dataset's directory, or for a remote dataset in the cache (files.cache_folder). Any number of processes may call
    this at once.

    Args:
        progress: show how far a build is.
        workers: processes that build; 1 builds in this one.
        decode_all: every image is decoded once; otherwise every header is read and one step of each 64th episode is decoded.
        skip_bad_episodes: how many episodes may be left out because something is wrong with them; see Index.skipped.

    Raises InputError for whatever is wrong with the dataset, where an index cannot be written, and if there is an index that leaves out
    more, or has seen less decoded, than is asked for.
    """
    directory, root, version = _located(row, data_dir, index_dir)
    path = root / version_digest(version)
    if not (path / INDEX_FILE).is_file():
        path = build_index(
            row,
            directory,
            root,
            progress=progress,
            workers=workers,
            decode_all=decode_all,
            skip_bad_episodes=skip_bad_episodes,
        )
    index = Index(row, directory, path)
    if len(index.skipped) > skip_bad_episodes:
        raise InputError(
            f"dataset {row.name}: expected an index that leaves out at most {skip_bad_episodes} bad episodes, found {len(index.skipped)}"
            f" left out in {path}; allow as many with skip_bad_episodes, or delete the index and mend the files"
        )
    if decode_all and not index.decoded_all:
        raise InputError(
            f"dataset {row.name}: expected an index for which all images were decoded, found {path}; delete it to build one"
        )
    return index


def open_index(row: Dataset, data_dir: AnyPath, index_dir: AnyPath | None = None) -> "Index":
    """Opens an index that is there. Raises InputError if there is none, or only one for other files or another row."""
    directory, root, version = _located(row, data_dir, index_dir)
    path = root / version_digest(version)
    if not (path / INDEX_FILE).is_file():
        stale = sorted(root.glob(f"[!.]*/{INDEX_FILE}"), key=lambda file: file.stat().st_mtime)
        found = (
            f"a stale one: {describe_difference(version, _read_json(stale[-1])['version'])}"
            if stale
            else "none"
        )
        raise InputError(
            f"dataset {row.name}: expected an index of {directory} in {root}, found {found}; build it with launch.index"
        )
    return Index(row, directory, path)


def _located(
    row: Dataset, data_dir: AnyPath, index_dir: AnyPath | None
) -> tuple[Location, Path, dict[str, Any]]:
    """The dataset's directory, the folder of its indices, and the version that the right one has."""
    directory = dataset_directory(row, data_dir)
    return directory, _index_root(row, directory, index_dir), index_version(row, directory)


def _index_root(row: Dataset, directory: Location, index_dir: AnyPath | None) -> Path:
    if index_dir is None:
        return (
            directory / "pi0_index"
            if isinstance(directory, Path)
            else cache_folder() / "index" / row.name / directory.name
        )
    folder = locate(index_dir)
    if not isinstance(folder, Path):
        raise InputError(
            f"dataset {row.name}: expected a local folder for its index, found {folder}"
        )
    return folder / row.name / directory.name


class Index:
    """One dataset's steps, numbered 0 .. steps - 1 through all its episodes: the number of a step is its frame.

    N steps, E episodes, S state dimensions, A action dimensions, H horizon, n frames asked for. All is thread safe.
    """

    def __init__(self, row: Dataset, directory: Location, path: Path) -> None:
        """Opens the index at `path` of the dataset in `directory`. Raises InputError if its files do not fit."""
        record = _read_json(path / INDEX_FILE)
        steps, episodes, views = record["steps"], record["episodes"], record["views"]
        self.row = row
        self.path = path
        # names the files and the rule that it was made for
        self.digest = version_digest(record["version"])
        self.views: tuple[str, ...] = tuple(views)  # paths of image fields
        # for each episode that was left out, what is wrong with it
        self.skipped: list[str] = record["skipped"]
        self.decoded_all: bool = record["decode_all"]  # or only one step of each 64th episode
        # view -> "min" and "max" -> (height, width) as found in the files
        self.image_sizes: dict[str, dict[str, list[int]]] = record["image_sizes"]
        self.state = open_column(path, "state", "float32", (steps, len(row.embodiment.state)))
        self.action = open_column(path, "action", "float32", (steps, len(row.embodiment.actions)))
        # one entry an episode: see EPISODE_COLUMNS
        self.episodes = {
            name: open_column(path, f"episode_{name}", dtype, (episodes,))
            for name, dtype in EPISODE_COLUMNS.items()
        }
        self._frames = {
            split: open_column(path, f"frames_{split}", "int64", (None,)) for split in SPLITS
        }
        self._image_offset = open_column(path, "image_offset", "int64", (steps, len(views)))
        self._image_length = open_column(path, "image_length", "uint32", (steps, len(views)))
        self._prompt_number = open_column(path, "prompt", "int32", (steps, len(row.language.paths)))
        # the distinct prompts, in order of first appearance
        self.prompts = _Prompts(
            open_column(path, "prompt_text", "uint8", (None,)),
            open_column(path, "prompt_end", "int64", (record["prompts"],)),
        )
        self.shards: tuple[Location, ...] = tuple(directory / name for name in record["shards"])
        # bool[A]
        self._relative = np.array([dim.kind == "relative" for dim in row.embodiment.actions])
        # bool[A]
        self._flipped = np.array([dim.one_means == "closed" for dim in row.embodiment.actions])
        self._view_choices = math.prod(len(camera.views) for camera in row.cameras.values())
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(RangeReader)

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def embodiment(self) -> Embodiment:
        return self.row.embodiment

    @property
    def steps(self) -> int:
        return len(self.state)

    @property
    def size_bytes(self) -> int:
        """Size of the index on disk."""
        return sum(file.stat().st_size for file in self.path.iterdir())

    def frames(self, split: str) -> np.ndarray:
        """int64[kept], ascending, mapped: the frames of "train" or "val" that may be drawn."""
        if split not in self._frames:
            raise InputError(
                f"dataset {self.name}: expected split {' or '.join(SPLITS)}, found {split!r}"
            )
        return self._frames[split]

    def episode_of(self, frames: np.ndarray) -> np.ndarray:
        """Shape of `frames`, int64: the number of each frame's episode."""
        return np.searchsorted(self.episodes["start"], frames, side="right") - 1

    def step_of(self, frames: np.ndarray) -> np.ndarray:
        """Shape of `frames`, int64: the step within its episode."""
        return frames - self.episodes["start"][self.episode_of(frames)]

    def chunks(self, frames: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """float32[n, H, A] actions in robot units from each frame on, and bool[n, H] whether the episode has them.

        episode  a0 a1 a2 |           H = 4, from frame 1
        chunk       a1 a2 a2 a2       absolute dimensions repeat the last action, relative ones are 0
        valid       1  1  0  0
        """
        episodes = self.episode_of(frames)
        start = self.episodes["start"][episodes]  # int64[n]
        end = start + self.episodes["stop"][episodes]
        steps = frames[:, None] + np.arange(horizon)  # int64[n, H]
        valid = steps < end[:, None]
        last = np.maximum(end - 1, start)  # stays within an episode that has no action
        actions = self.action[np.minimum(steps, last[:, None])]
        actions[~valid[:, :, None] & self._relative] = 0
        actions[..., self._flipped] = 1 - actions[..., self._flipped]
        return actions, valid

    def chunk(self, frame: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """float32[H, A] and bool[H]: `chunks` of one frame."""
        actions, valid = self.chunks(np.array([frame]), horizon)
        return actions[0], valid[0]

    def observation(
        self, frame: int, choice: int = 0, *, read: Reader | None = None
    ) -> RawObservation:
        """What the robot saw at `frame`: images read and decoded now, state float32[S], prompt.

        `choice`, any number from 0 on, picks a view of each camera and one of the prompts, where there are several: counting
        up goes through all combinations, so that of a large random number every pick is independent of the others.
        `read` gives encoded images from elsewhere than the files.

        Raises InputError if the file has changed or an image does not decode.
        """
        read = read or self.read_encoded
        images = {camera: self._image(frame, camera, choice, read) for camera in self.row.cameras}
        return RawObservation(
            images=images, state=self.state[frame].copy(), prompt=self.prompt(frame, choice)
        )

    def prompt(self, frame: int, choice: int = 0) -> str:
        """One of the prompts at `frame`; "" if it has none."""
        said = self._said(frame)
        return self.prompts[said[choice // self._view_choices % len(said)]] if said else ""

    def prompts_at(self, frame: int) -> list[str]:
        """All that `prompt` may give at `frame`."""
        return [self.prompts[number] for number in self._said(frame)]

    def _said(self, frame: int) -> list[int]:
        return [number for number in self._prompt_number[frame].tolist() if number >= 0]

    def view(self, camera: str, choice: int = 0) -> str:
        """One of the camera's views: the path of its image field."""
        for name, field in self.row.cameras.items():
            choice, place = divmod(choice, len(field.views))
            if name == camera:
                return field.views[place]
        raise InputError(
            f"dataset {self.name}: expected camera {' or '.join(self.row.cameras)}, found {camera!r}"
        )

    def read_encoded(self, frame: int, view: str) -> bytes:
        """The image file's bytes as they lie in the dataset. Raises InputError if the shard is gone or shorter."""
        offset, length = self.image_range(frame, view)
        return self._shard(int(self.episode_of(np.int64(frame)))).read(offset, length)

    def image_range(self, frame: int, view: str) -> tuple[int, int]:
        """Offset within the shard and length, in bytes."""
        column = self.views.index(view)
        return int(self._image_offset[frame, column]), int(self._image_length[frame, column])

    def read_record(self, episode: int) -> bytes:
        """The payload of the episode's record: it starts at episodes["offset"][episode] of its shard.

        Raises InputError if the shard is gone or shorter, or the record's checksum is not that of what was read.
        """
        offset, length = int(self.episodes["offset"][episode]), int(self.episodes["bytes"][episode])
        data = self._shard(episode).read(offset, length + tfrecord.CHECKSUM_BYTES)
        payload = data[:length]
        if damage := tfrecord.payload_damage(payload, data[length:]):
            where = f"{self.shards[self.episodes['shard'][episode]]} record {self.episodes['record'][episode]}"
            raise InputError(
                f"dataset {self.name}: {where}: {damage}: the file has changed since it was indexed"
            )
        return payload

    def _shard(self, episode: int) -> RangeReader:
        return self._open(self.shards[self.episodes["shard"][episode]])

    def _image(self, frame: int, camera: str, choice: int, read: Reader) -> np.ndarray:
        """uint8[height, width, 3], RGB."""
        view = self.view(camera, choice)
        try:
            return decode_image(read(frame, view), self.row.cameras[camera].order)
        except BadImageError as error:
            episode = int(self.episode_of(np.int64(frame)))
            path, record = (
                self.shards[self.episodes["shard"][episode]],
                int(self.episodes["record"][episode]),
            )
            where = f"{path} record {record}: step {frame - int(self.episodes['start'][episode])}: field {view}"
            raise InputError(
                f"dataset {self.name}: {where}: expected an 8-bit RGB JPEG or PNG, found {error}"
            ) from error


class _Prompts(Sequence[str]):
    """Prompts that are mapped, and decoded when asked for."""

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self._text, self._ends = text, ends  # uint8[bytes], int64[p]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:
        end = self._ends[number]  # IndexError past the last one
        start = self._ends[number - 1] if number else 0
        return self._text[start:end].tobytes().decode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the description of an index, found: {error}") from error
