"""Reads one episode of a LeRobot dataset, checks it, and encodes it as a record of RLDS."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pi0_jax.data.lerobot.declared import TEXT_DTYPE, Declared, Feature
from pi0_jax.data.lerobot.layout import Episode
from pi0_jax.data.lerobot.tables import RowReader, numbers, texts
from pi0_jax.data.lerobot.videos import FrameReader
from pi0_jax.data.records.images import BadImageError, bad_image, decode_image
from pi0_jax.data.records.serialise import Values, serialise_example
from pi0_jax.data.write import JPEG_QUALITY, ImageEncoding, encode_jpeg, encode_png
from pi0_jax.errors import InputError

EPISODE_NUMBER = "episode_metadata/episode_index"
_START = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG"}


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Says how an import stores images and numbers, and how exact times must be.

    Attributes:
        images: "jpeg" or "png". Images that are files of this kind already are kept as they are.
        quality: of JPEG, 1 to 100. Colour has full resolution.
        round_float64: whether float64 numbers that float32 does not hold are rounded.
        tolerance_s: how far times may be from the times of frames at the dataset's rate.
    """

    images: ImageEncoding = "jpeg"
    quality: int = JPEG_QUALITY
    round_float64: bool = False
    tolerance_s: float = 1e-4

    def __post_init__(self) -> None:
        if self.images not in _START:
            raise InputError(f"images: expected jpeg or png, found {self.images!r}")
        if not 1 <= self.quality <= 100 or not 0 < self.tolerance_s < math.inf:
            raise InputError(
                "expected a quality from 1 to 100 and a tolerance_s above 0,"
                f" found {self.quality} and {self.tolerance_s}"
            )


class EpisodeReader:
    """Reads episodes, quickest in their order. It holds the encoded images of one episode.

    Args:
        folder: the LeRobot dataset.
        declared: what its meta/info.json says: version, rate and features.
        tasks: the instruction of every task_index.
        encoding: how images and numbers are stored, and how exact times must be.
    """

    def __init__(
        self, folder: Path, declared: Declared, tasks: Mapping[int, str], encoding: Encoding
    ) -> None:
        self._folder, self._declared = folder, declared
        self._tasks, self._encoding = tasks, encoding
        self._rows = RowReader(
            [feature.name for feature in declared.features if feature.dtype != "video"]
        )
        self._videos = {
            feature.name: FrameReader(encoding.tolerance_s, 1 / declared.fps)
            for feature in declared.cameras
            if feature.dtype == "video"
        }

    def close(self) -> None:
        """Closes the videos that are open."""
        for reader in self._videos.values():
            reader.close()

    def read(self, episode: Episode) -> bytes:
        """Returns an episode as a serialised tf.train.Example.

        Raises:
            InputError: something of the episode is wrong. The message names file, episode and
                frame.
        """
        table = self._rows.read(
            episode.table, episode.table_rows, episode.table_start, episode.length
        )
        place = f"{episode.table}: episode {episode.number}"
        values: dict[str, Values] = {}
        for feature in self._declared.features:
            where = f"{place}: {feature.name}"
            if feature.dtype == TEXT_DTYPE:
                values[feature.field] = [
                    text.encode() for text in texts(table, feature.name, where)
                ]
            elif not feature.is_camera:
                values[feature.field] = numbers(
                    table, feature, where, round_float64=self._encoding.round_float64
                )
        times = self._check(episode, values, place)
        for feature in self._declared.cameras:
            values[feature.field] = list(self._images(episode, feature, table, times))
        last = episode.length - 1
        values["steps/is_first"] = np.arange(episode.length) == 0
        values["steps/is_last"] = np.arange(episode.length) == last
        values["steps/language_instruction"] = self._instructions(values, place)
        values[EPISODE_NUMBER] = np.array([episode.number])
        del values["steps/episode_index"]
        return serialise_example(values)

    def _check(self, episode: Episode, values: Mapping[str, Any], place: str) -> np.ndarray:
        """Checks the counters and times of an episode and returns its times, float64[n], seconds."""
        frames = np.arange(episode.length)
        for name, expected in (
            ("episode_index", np.full(episode.length, episode.number)),
            ("frame_index", frames),
            ("index", episode.first + frames),
        ):
            found = values[f"steps/{name}"]
            if wrong := np.flatnonzero(found != expected).tolist():
                raise InputError(
                    f"{place}: frame {wrong[0]}: {name}: expected {expected[wrong[0]]}, found {found[wrong[0]]}"
                )
        stored = values["steps/timestamp"]
        times, period = stored.astype(np.float64), 1 / self._declared.fps
        # A time is stored as float32, which is coarse after some minutes.
        tolerance = self._encoding.tolerance_s + float(np.spacing(np.abs(stored).max()))
        steps = np.diff(times)
        # Not-a-number is wrong too.
        if wrong := np.flatnonzero(~(np.abs(steps - period) <= tolerance)).tolist():
            raise InputError(
                f"{place}: frame {wrong[0] + 1}: timestamp: expected {period:.6f} s after the frame before it,"
                f" found {steps[wrong[0]]:.6f} s"
            )
        if wrong := np.flatnonzero(~(np.abs(times - frames * period) < period / 2)).tolist():
            raise InputError(
                f"{place}: frame {wrong[0]}: timestamp: expected {wrong[0] * period:.6f} s at {self._declared.fps:g} Hz,"
                f" found {times[wrong[0]]:.6f} s"
            )
        return times

    def _instructions(self, values: Mapping[str, Any], place: str) -> list[bytes]:
        """Returns the instruction of each frame."""
        found = values["steps/task_index"].tolist()
        for frame, task in enumerate(found):
            if task not in self._tasks:
                raise InputError(
                    f"{place}: frame {frame}: task_index: expected one of the {len(self._tasks)} tasks of meta/, found {task}"
                )
        return [self._tasks[task].encode() for task in found]

    def _images(
        self, episode: Episode, feature: Feature, table: pa.Table, times: np.ndarray
    ) -> Iterator[bytes]:
        """Yields the encoded images of one camera."""
        where = f"episode {episode.number}: {feature.name}"
        if feature.dtype == "image":
            cells = table.column(feature.name)
            for frame in range(episode.length):
                place = f"{episode.table}: {where}, frame {frame}"
                data = self._image_file(cells[frame].as_py(), place)
                try:
                    pixels = decode_image(data, "RGB")
                except BadImageError as error:
                    raise InputError(bad_image(place, error)) from error
                _check_size(pixels, feature, place)
                kept = data.startswith(_START[self._encoding.images])
                yield data if kept else self._encoded(pixels)
            return
        clip = episode.clips[feature.name]
        reader = self._videos[feature.name]
        for frame, pixels in enumerate(reader.read(clip, clip.start_s + times, where)):
            _check_size(pixels, feature, f"{clip.file}: {where}, frame {frame}")
            yield self._encoded(pixels)

    def _image_file(self, cell: Any, place: str) -> bytes:
        """Returns the bytes of an image file, which are in the table or in a file that it names."""
        if not isinstance(cell, dict) or not {"bytes", "path"} <= cell.keys():
            raise InputError(f"{place}: expected an image's bytes and path, found {type(cell)}")
        if cell["bytes"] is not None:
            return cell["bytes"]
        file = self._folder / (cell["path"] or "")
        try:
            return file.read_bytes()
        except OSError as error:
            raise InputError(
                f"{place}: expected the bytes of an image, found none, and no readable file {file}"
            ) from error

    def _encoded(self, pixels: np.ndarray) -> bytes:
        if self._encoding.images == "jpeg":
            return encode_jpeg(pixels, self._encoding.quality)
        return encode_png(pixels)


def _check_size(pixels: np.ndarray, feature: Feature, place: str) -> None:
    if pixels.shape != feature.shape:
        raise InputError(
            f"{place}: expected {feature.shape[0]}x{feature.shape[1]} pixels as info.json says,"
            f" found {pixels.shape[0]}x{pixels.shape[1]}"
        )
