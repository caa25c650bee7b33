"""Reads the frames of videos forward, each with the time that its row has."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from pi0_jax.errors import InputError


class Clip(NamedTuple):
    """Says where one camera's video of an episode is.

    Attributes:
        file: the file.
        frames: the number of frames that the file should have.
        start_s: the time of the episode's first frame in it.
    """

    file: Path
    frames: int
    start_s: float


class FrameReader:
    """Reads one camera's videos. An episode that follows the last one is read without a seek.

    Args:
        tolerance_s: how far a frame's time may be from its row's.
        period_s: from one frame to the next.
    """

    def __init__(self, tolerance_s: float, period_s: float) -> None:
        self._tolerance_s, self._period_s = tolerance_s, period_s
        self._file: Path | None = None
        self._container: av.container.InputContainer | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._after_s = 0.0  # of the last frame that was read

    def read(self, clip: Clip, times: np.ndarray, where: str) -> Iterator[np.ndarray]:
        """Yields uint8[height, width, 3], RGB, of each row of an episode.

        Args:
            clip: where the episode's video is.
            times: float64[n], seconds since the beginning of the file, rising.
            where: for messages: the episode and the camera.

        Raises:
            InputError: the video is missing, does not decode, has another number of frames than the
                table has rows, or has no frame at a row's time. The message names file and frame.
        """
        place = f"{clip.file}: {where}"
        # A row's time is stored as float32, which is coarse after some minutes.
        tolerance = self._tolerance_s + float(np.spacing(np.float32(times[-1])))
        try:
            # Other episodes lie between where they are left out.
            gap_s = times[0] - self._after_s - self._period_s
            fresh = clip.file != self._file or abs(gap_s) > self._period_s / 2
            if fresh:
                self._open(clip, float(times[0]), place)
            for number, wanted in enumerate(times):
                skip = fresh and number == 0
                yield self._frame(float(wanted), tolerance, skip, f"{place}, frame {number}")
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file that is open."""
        if self._container is not None:
            self._container.close()
        self._file, self._container, self._frames = None, None, iter(())

    def _open(self, clip: Clip, start_s: float, place: str) -> None:
        """Opens a file and goes to the last key frame that is not after `start_s`."""
        self.close()
        if not clip.file.is_file():
            raise InputError(f"{place}: expected a video, found no such file")
        try:
            self._container = av.open(str(clip.file), metadata_errors="replace")
            streams = self._container.streams.video
            if len(streams) != 1:
                raise InputError(f"{clip.file}: expected one video stream, found {len(streams)}")
            stream = streams[0]
            if stream.codec_context is None:
                raise InputError(f"{clip.file}: expected a codec that FFmpeg knows, found none")
            # Workers share the processors already. A broken frame is an error, and not a picture
            # that the decoder makes up.
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"err_detect": "explode"}
            if stream.frames and stream.frames != clip.frames:
                raise InputError(
                    f"{clip.file}: expected {clip.frames} frames as the tables say, found {stream.frames}"
                )
            if start_s > self._tolerance_s and stream.time_base:
                self._container.seek(int(start_s / stream.time_base), stream=stream)
            self._frames = self._container.decode(stream)
        except av.error.FFmpegError as error:
            raise InputError(f"{place}: does not open: {error.strerror}") from error
        self._file, self._after_s = clip.file, -np.inf

    def _frame(self, wanted: float, tolerance: float, skip: bool, place: str) -> np.ndarray:
        """Decodes the frame at `wanted` seconds.

        It comes next, unless `skip` says that frames before it may be passed over.
        """
        while True:
            try:
                frame = next(self._frames)
                if frame.is_corrupt or frame.time is None:
                    raise InputError(f"{place}: does not decode: the frame is damaged")
                found = float(frame.time)
                if abs(found - wanted) <= tolerance:
                    self._after_s = found
                    return frame.to_ndarray(format="rgb24")
            except StopIteration:
                raise InputError(
                    f"{place}: expected a frame at {wanted:.6f} s, found the video's end"
                ) from None
            except av.error.FFmpegError as error:
                raise InputError(f"{place}: does not decode: {error.strerror}") from error
            if found > wanted or not skip:
                raise InputError(
                    f"{place}: expected a frame within {tolerance:.1g} s of {wanted:.6f} s, found one at {found:.6f} s"
                )
