"""Draws a recorded episode as a GIF: its pictures, the prompt above them, and how it ended."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pi0_jax.files import replacing
from pi0_jax.sim.worlds import Recording

_MARGIN, _LINE = 6, 17  # pixels: the margin beside the text, and the height of a line
_LAST_FRAME_SECONDS = 1.0
# The least height of a picture of cameras in pixels; what is smaller is enlarged.
_LEAST_SIDE = 224
_INK, _PAPER, _GOOD, _BAD = (20, 20, 20), (250, 250, 250), (0, 130, 40), (190, 30, 30)


def save_gif(
    path: Path,
    recording: Recording,
    pictures: Iterable[Image.Image],
    *,
    tick_seconds: float,
) -> None:
    """Writes the episode as a GIF in real time, of one picture for each snapshot.

    The file appears when it is whole.
    """
    frames = _frames(recording, pictures)
    images = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
    # PIL takes the durations in milliseconds.
    last = [round(1000 * _LAST_FRAME_SECONDS)]
    durations = [round(1000 * tick_seconds)] * (len(images) - 1) + last
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        images[0].save(
            temporary, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0
        )


def camera_pictures(recording: Recording) -> Iterable[Image.Image]:
    """Yields for each snapshot what the policy's cameras saw, side by side."""
    for images in recording.snapshots:
        height = max(_LEAST_SIDE, *(image.shape[0] for image in images))
        widths = [round(image.shape[1] * height / image.shape[0]) for image in images]
        picture, left = Image.new("RGB", (sum(widths), height)), 0
        for image, width in zip(images, widths, strict=True):
            picture.paste(Image.fromarray(image).resize((width, height)), (left, 0))
            left += width
        yield picture


def _frames(recording: Recording, pictures: Iterable[Image.Image]) -> Iterator[Image.Image]:
    """Yields each picture with the prompt above it, and with the verdict on the last one."""
    result, last, font = recording.result, len(recording.snapshots) - 1, ImageFont.load_default(14)
    verdict, ink = ("success", _GOOD) if result.success else ("no success", _BAD)
    # Where prompts were shuffled, what counts is not what the prompt says.
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
        yield frame


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Breaks a text into lines no wider than `width` pixels; each has at least one word."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
