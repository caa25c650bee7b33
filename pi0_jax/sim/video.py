"""A recorded episode as a GIF: its pictures, the prompt above them, and at the end how it ended."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pi0_jax.files import replacing
from pi0_jax.sim.worlds import Recording

_MARGIN, _LINE = 6, 17  # pixels: beside the text, and from line to line
_LAST_FRAME_SECONDS = 1.0
_INK, _PAPER, _GOOD, _BAD = (20, 20, 20), (250, 250, 250), (0, 130, 40), (190, 30, 30)


def save_gif(
    path: str | os.PathLike[str],
    recording: Recording,
    pictures: Iterable[Image.Image],
    *,
    tick_seconds: float,
) -> None:
    """Writes the episode as a GIF in real time; the file appears when it is whole. `pictures`: one for each snapshot."""
    frames = list(frame_by_frame(recording, pictures))
    # ms
    durations = [round(1000 * tick_seconds)] * (len(frames) - 1) + [
        round(1000 * _LAST_FRAME_SECONDS)
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(frame).quantize(64, dither=Image.Dither.NONE) for frame in frames]
    with replacing(path) as temporary:
        images[0].save(
            temporary, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0
        )


def frame_by_frame(recording: Recording, pictures: Iterable[Image.Image]) -> Iterator[np.ndarray]:
    """uint8[height of a picture + a banner with the prompt, width, 3] for each picture."""
    result, last, font = recording.result, len(recording.snapshots) - 1, ImageFont.load_default(14)
    verdict, ink = ("success", _GOOD) if result.success else ("no success", _BAD)
    # what counts is not what the prompt says where prompts were shuffled
    if result.group != result.prompt:
        verdict = f"{verdict}: {result.group}"
    for tick, picture in enumerate(pictures):
        lines = _lines(result.prompt, font, picture.width - 2 * _MARGIN)
        banner = _LINE * len(lines) + 9
        frame = Image.new("RGB", (picture.width, picture.height + banner), _PAPER)
        frame.paste(picture, (0, banner))
        pen = ImageDraw.Draw(frame)
        for i, line in enumerate(lines):
            pen.text((_MARGIN, 5 + _LINE * i), line, fill=_INK, font=font)
        if tick == last:
            pen.text((_MARGIN, frame.height - _MARGIN), verdict, fill=ink, font=font, anchor="ld")
        yield np.asarray(frame)


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """As many words on a line as are no wider than `width` pixels; at least one."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
