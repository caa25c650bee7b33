"""Reads an open index: the states, actions, prompts and images of its frames.

Nothing is loaded. Columns are mapped, and images are read from the dataset's files by byte range
when their frame is drawn. Reading needs no TFDS.
"""

import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.data.grippers import from_openings
from pi0_jax.data.index.columns import (
    EPISODE_COLUMNS,
    SPLITS,
    Prompts,
    column_checksum,
    column_path,
    index_columns,
    open_column,
    step_columns,
)
from pi0_jax.data.index.oddities import Told
from pi0_jax.data.index.version import INDEX_FILE, read_record, version_digest
from pi0_jax.data.records import tfrecord
from pi0_jax.data.records.images import BadImageError, bad_image, decode_image
from pi0_jax.data.rows import Dataset
from pi0_jax.data.storage import Location, RangeReader
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.observation import RawObservation

_LOGGER = logging.getLogger(__name__)

Reader = Callable[[int, str], bytes]  # frame, view -> the encoded image
# The number of shards of one dataset that are kept open. Its mapped columns take about 20 files
# more, a mixture has up to 27 datasets, and a process is usually allowed 1024 files. Opening a
# local file again takes microseconds, a small part of the time of decoding an image.
_OPEN_FILES = 8
# Columns of at most so many bytes together are compared with their checksums whenever an index is
# opened.
_VERIFIED_BYTES = 1 << 30


class BadFrameError(InputError):
    """Is raised where an image of a frame does not decode."""


class Index:
    """Holds one dataset's steps, numbered 0 .. steps - 1 through all its episodes.

    The number of a step is its frame. N is the number of steps, E of episodes, S of state
    dimensions, A of action dimensions, H of steps of a chunk, and n of frames asked for. All is
    thread safe.

    Attributes:
        digest: names the files and the rule for which the index was made.
        views: the paths of the image fields.
        skipped: for each episode that was left out, what is wrong with it.
        decoded_all: whether all images were decoded, or only one step of each 64th episode.
        image_sizes: view -> "min" and "max" -> (height, width), as found in the files.
        has_checksums: False for an index of an older version.
        declared_sizes: view -> (height, width), as features.json declares them; None for any size.
        told: what is odd about the episodes: text -> of how many it is true, and where the first
            is.
        may_leave_out: how many episodes may be left out when one of their images does not decode.
        state, action: float32[N, S] and float32[N, A].
        episodes: name -> a column with one entry an episode: see EPISODE_COLUMNS.
        prompts: the distinct prompts, in order of first appearance.
    """

    def __init__(self, row: Dataset, directory: Location, path: Path) -> None:
        """Opens the index at `path` of the dataset in `directory`, or raises InputError."""
        record = read_record(path / INDEX_FILE)
        steps, episodes = record["steps"], record["episodes"]
        self.row = row
        self.path = path
        self.digest = version_digest(record["version"])
        self.views: tuple[str, ...] = tuple(record["views"])
        self.skipped: list[str] = record["skipped"]
        self.decoded_all: bool = record["decode_all"]
        self.image_sizes: dict[str, dict[str, list[int]]] = record["image_sizes"]
        self.has_checksums = "checksums" in record
        self._checksums: dict[str, list[int]] = record.get("checksums", {})
        self.declared_sizes: dict[str, list[int | None]] = record.get("declared_sizes", {})
        self.told: Told = {text: tuple(value) for text, value in record.get("told", {}).items()}
        self.may_leave_out = 0
        # Episode -> what is wrong with it, for those that were left out since the index was opened.
        self._left_out: dict[int, str] = {}
        counts = dict.fromkeys(step_columns(row), steps) | {"prompt_end": record["prompts"]}
        counts |= {f"episode_{name}": episodes for name in EPISODE_COLUMNS}
        self._columns = columns = {
            name: open_column(path, name, dtype, (counts.get(name), *shape))
            for name, (dtype, shape) in index_columns(row).items()
        }
        self.state, self.action = columns["state"], columns["action"]
        self.episodes = {name: columns[f"episode_{name}"] for name in EPISODE_COLUMNS}
        self.prompts = Prompts(columns["prompt_text"], columns["prompt_end"])
        self.shards: tuple[Location, ...] = tuple(directory / name for name in record["shards"])
        # bool[A]: which action dimensions are relative.
        self._relative = np.array([dim.kind == "relative" for dim in row.embodiment.actions])
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

    def verify(self, *, everything: bool = True) -> None:
        """Compares all columns with their checksums, or none if they are larger than 1 GB together.

        With `everything` all are compared. An index of an older version has no checksums.

        Raises:
            InputError: a column is not what was written.
        """
        columns = self._columns
        if not everything and sum(column.nbytes for column in columns.values()) > _VERIFIED_BYTES:
            return
        for name, expected in self._checksums.items():
            if (found := column_checksum(columns[name])) != expected:
                raise InputError(
                    f"{column_path(self.path, name)}: expected rows and checksum {expected}, found {found}:"
                    f" the index is damaged; delete {self.path} and build it again"
                )

    @property
    def size_bytes(self) -> int:
        """Returns the size of the index on disk."""
        return sum(file.stat().st_size for file in self.path.iterdir())

    def frames(self, split: str) -> np.ndarray:
        """Returns the frames of "train" or "val" that may be drawn: int64[kept], ascending."""
        if split not in SPLITS:
            raise InputError(
                f"dataset {self.name}: expected split {' or '.join(SPLITS)}, found {split!r}"
            )
        return self._columns[f"frames_{split}"]

    def episode_of(self, frames: int | np.integer | np.ndarray) -> Any:
        """Returns the number of each frame's episode: int64, in the shape of `frames`."""
        return np.searchsorted(self.episodes["start"], frames, side="right") - 1

    def step_of(self, frames: int | np.integer | np.ndarray) -> Any:
        """Returns the step of each frame within its episode: int64, in the shape of `frames`."""
        return frames - self.episodes["start"][self.episode_of(frames)]

    def chunks(self, frames: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the action chunk of `horizon` steps that begins at each of int64[n] frames.

            episode  a0 a1 a2 |           H = 4, from frame 1
            chunk       a1 a2 a2 a2       absolute dimensions repeat the last, relative ones are 0
            valid       1  1  0  0

        The actions are float32[n, H, A] in robot units; bool[n, H] is True where the episode has
        one.
        """
        episodes = self.episode_of(frames)
        start = self.episodes["start"][episodes]  # int64[n]
        end = start + self.episodes["stop"][episodes]
        steps = frames[:, None] + np.arange(horizon)  # int64[n, H]
        valid = steps < end[:, None]
        last = np.maximum(end - 1, start)  # stays within an episode that has no action
        actions = self.action[np.minimum(steps, last[:, None])]
        actions[~valid[:, :, None] & self._relative] = 0
        from_openings(actions, self.embodiment)
        return actions, valid

    def chunk(self, frame: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the chunk of one frame: float32[H, A] and bool[H]."""
        actions, valid = self.chunks(np.array([frame]), horizon)
        return actions[0], valid[0]

    def observation(
        self, frame: int, choice: int = 0, *, read: Reader | None = None
    ) -> RawObservation:
        """Returns what the robot saw at `frame`. Images are read and decoded now.

        Args:
            frame: the number of the step.
            choice: any number from 0 on. It picks a view of each camera and one of the prompts,
                where there are several. Counting up goes through all combinations, so that for a
                large random number every pick is independent of the others.
            read: gives encoded images from elsewhere than the files.

        Raises:
            InputError: the file has changed, or an image does not decode.
        """
        read = read or self.read_encoded
        images = {camera: self._image(frame, camera, choice, read) for camera in self.row.cameras}
        return RawObservation(
            images=images, state=self.state[frame].copy(), prompt=self.prompt(frame, choice)
        )

    def readable(
        self, frame: int, choice: int = 0, *, read: Reader | None = None
    ) -> tuple[int, RawObservation]:
        """Returns `frame` and its observation, or another frame if an image does not decode.

        The other frame is as far into the next episode of the same split. Which frame it is depends
        on the files alone, so a run that is resumed draws the same frames again. For the arguments
        see `observation`.

        Raises:
            InputError: the file has changed, or more than `may_leave_out` episodes have a bad
                image.
        """
        for _ in range(self.may_leave_out + 1):
            try:
                return frame, self.observation(frame, choice, read=read)
            except BadFrameError as error:
                problem = error
            self._leave_out(frame, problem)
            # The caller's reader knows this frame's images, and not those of the next episode.
            frame, read = self._next_episodes(frame), None
        raise problem

    def _leave_out(self, frame: int, problem: BadFrameError) -> None:
        """Counts the frame's episode as a bad one, and raises if there are too many of them."""
        episode = int(self.episode_of(frame))
        is_new = episode not in self._left_out
        self._left_out[episode] = str(problem)
        if (count := len(self._left_out)) > self.may_leave_out:
            raise BadFrameError(
                f"{problem}; {count} episodes have such an image, {self.may_leave_out} may be left out (skip_bad_episodes)"
            ) from problem
        if is_new:
            _LOGGER.warning("%s; another episode's frame is drawn in its place", problem)

    def _next_episodes(self, frame: int) -> int:
        """Returns the kept frame that is as far into the next episode of the same split."""
        episodes = self.episodes
        episode = int(self.episode_of(frame))
        frames = self.frames(SPLITS[episodes["split"][episode]])
        start = episodes["start"][episode]
        # Places in the list of kept frames: this frame's, its episode's first, after its last.
        place, first, after = np.searchsorted(
            frames, (frame, start, start + episodes["length"][episode])
        ).tolist()
        after %= len(frames)
        kept = int(episodes["kept"][self.episode_of(frames[after])])
        return int(frames[after + (place - first) % kept])

    def prompt(self, frame: int, choice: int = 0) -> str:
        """Returns one of the prompts at `frame`, or "" if it has none."""
        said = self._said(frame)
        return self.prompts[said[choice // self._view_choices % len(said)]] if said else ""

    def prompts_at(self, frame: int) -> list[str]:
        """Returns all prompts that `prompt` may return at `frame`."""
        return [self.prompts[number] for number in self._said(frame)]

    def _said(self, frame: int) -> list[int]:
        return [number for number in self._columns["prompt"][frame].tolist() if number >= 0]

    def view(self, camera: str, choice: int = 0) -> str:
        """Returns one of the camera's views: the path of its image field."""
        # The choice is a number whose digits are the cameras' views. Each camera takes one digit.
        for name, field in self.row.cameras.items():
            choice, place = divmod(choice, len(field.views))
            if name == camera:
                return field.views[place]
        raise InputError(
            f"dataset {self.name}: expected camera {' or '.join(self.row.cameras)}, found {camera!r}"
        )

    def read_encoded(self, frame: int, view: str) -> bytes:
        """Returns the bytes of the image file as they lie in the dataset.

        Raises:
            InputError: the shard is gone or shorter.
        """
        offset, length = self.image_range(frame, view)
        return self._shard(int(self.episode_of(frame))).read(offset, length)

    def image_range(self, frame: int, view: str) -> tuple[int, int]:
        """Returns the image's offset within the shard and its length, in bytes."""
        place = frame, self.views.index(view)
        return int(self._columns["image_offset"][place]), int(self._columns["image_length"][place])

    def read_record(self, episode: int) -> bytes:
        """Returns the payload of an episode's record, which begins at episodes["offset"][episode].

        Raises:
            InputError: the shard is gone or shorter, or the record's checksum is wrong.
        """
        offset, length = int(self.episodes["offset"][episode]), int(self.episodes["bytes"][episode])
        data = self._shard(episode).read(offset, length + tfrecord.CHECKSUM_BYTES)
        payload = data[:length]
        if damage := tfrecord.payload_damage(payload, data[length:]):
            raise InputError(
                f"{self._record(episode)}: {damage}: the file has changed since it was indexed"
            )
        return payload

    def _shard(self, episode: int) -> RangeReader:
        return self._open(self.shards[self.episodes["shard"][episode]])

    def _record(self, episode: int) -> str:
        """Returns where an episode's record is, for messages."""
        shard, record = (self.episodes[name][episode] for name in ("shard", "record"))
        return f"dataset {self.name}: {self.shards[shard]} record {record}"

    def _image(self, frame: int, camera: str, choice: int, read: Reader) -> np.ndarray:
        """Returns one image of a camera as uint8[height, width, 3], RGB."""
        view = self.view(camera, choice)
        try:
            return decode_image(read(frame, view), self.row.cameras[camera].order)
        except BadImageError as error:
            where = (
                f"{self._record(self.episode_of(frame))}: step {self.step_of(frame)}: field {view}"
            )
            raise BadFrameError(bad_image(where, error)) from error
