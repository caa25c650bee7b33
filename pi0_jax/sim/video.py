"""A recorded episode as a GIF: its pictures, the prompt above them, and at the end how it ended."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pi0_jax.sim.rollouts import EpisodeResult, Recording

_BANNER = 26  # pixels above the picture, for the prompt
_LAST_FRAME_SECONDS = 1.0
_INK, _PAPER, _GOOD, _BAD = (20, 20, 20), (250, 250, 250), (0, 130, 40), (190, 30, 30)


def save_gif(path: str | os.PathLike[str], recording: Recording, pictures: Iterable[Image.Image], *, tick_seconds: float) -> None:
    """Writes the episode as a GIF in real time; the file appears when it is whole. `pictures`: one for each snapshot."""
    frames = list(frame_by_frame(recording, pictures))
    durations = [round(1000 * tick_seconds)] * (len(frames) - 1) + [round(1000 * _LAST_FRAME_SECONDS)]  # ms
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    images = [Image.fromarray(frame).quantize(64, dither=Image.Dither.NONE) for frame in frames]
    try:
        images[0].save(temporary, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def frame_by_frame(recording: Recording, pictures: Iterable[Image.Image]) -> Iterator[np.ndarray]:
    """uint8[height of a picture + banner, width, 3] for each picture."""
    last = len(recording.snapshots) - 1
    for tick, picture in enumerate(pictures):
        frame = Image.new("RGB", (picture.width, picture.height + _BANNER), _PAPER)
        frame.paste(picture, (0, _BANNER))
        _write(ImageDraw.Draw(frame), recording.result, frame.height, ended=tick == last)
        yield np.asarray(frame)


def _write(pen: ImageDraw.ImageDraw, result: EpisodeResult, height: int, *, ended: bool) -> None:
    font = ImageFont.load_default(14)
    pen.text((6, 5), result.prompt, fill=_INK, font=font)
    if ended:
        # What counts is not what the prompt says where prompts were shuffled.
        verdict, ink = ("success", _GOOD) if result.success else ("no success", _BAD)
        pen.text((6, height - 6), f"{result.group}: {verdict}", fill=ink, font=font, anchor="ld")
