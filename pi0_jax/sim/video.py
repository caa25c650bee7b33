"""Draws a recorded episode: the scene, the prompt, and the fingertip path that the policy predicted."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pi0_jax.sim.reach import CONTROL_SECONDS
from pi0_jax.sim.rollouts import Recording
from pi0_jax.sim.scene import ReachScene

_BANNER = 26  # pixels above the scene, for the prompt
_INSET = 0.27  # of the side: the wrist camera's view, in the lower right corner
_LAST_FRAME_SECONDS = 1.0
_INK, _PAPER, _PATH, _GOOD, _BAD = (20, 20, 20), (250, 250, 250), (255, 120, 0), (0, 130, 40), (190, 30, 30)


def save_gif(path: str | os.PathLike[str], recording: Recording, *, side: int = 288) -> None:
    """Writes the episode as a GIF in real time; the file appears when it is whole."""
    frames = list(draw(recording, side=side))
    last = round(1000 * _LAST_FRAME_SECONDS)
    durations = [round(1000 * CONTROL_SECONDS)] * (len(frames) - 1) + [last]  # ms
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    images = [Image.fromarray(frame).quantize(64, dither=Image.Dither.NONE) for frame in frames]
    try:
        images[0].save(temporary, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def draw(recording: Recording, *, side: int = 288) -> Iterator[np.ndarray]:
    """A frame per tick: uint8[side + banner, side, 3]. The line is the fingertip's path along the chunk in force."""
    with ReachScene(recording.result.robot, side=side) as scene:
        data = scene.new_data()
        for tick, joints in enumerate(recording.joints):
            scene.place(data, joints, recording.blocks)
            frame = Image.new("RGB", (side, side + _BANNER), _PAPER)
            frame.paste(Image.fromarray(scene.render(data, "base")), (0, _BANNER))
            inset = round(side * _INSET)
            wrist = Image.fromarray(scene.render(data, "wrist")).resize((inset, inset), Image.Resampling.BOX)
            frame.paste(wrist, (side - inset, side + _BANNER - inset))
            pen = ImageDraw.Draw(frame)
            _draw_path(pen, _chunk_path(scene, recording, tick))
            _draw_banner(pen, recording, tick, side)
            yield np.asarray(frame)


def _chunk_path(scene: ReachScene, recording: Recording, tick: int) -> np.ndarray:
    """Where the fingertip is and where the rest of the chunk in force takes it: float64[points, 2], pixels."""
    replan = np.searchsorted(recording.chunk_ticks, tick, side="right") - 1
    targets = recording.chunks[replan][tick - recording.chunk_ticks[replan] :]
    postures = [recording.joints[tick], *targets]
    return scene.project(np.array([scene.fingertip_at(joints)[0] for joints in postures]))


def _draw_path(pen: ImageDraw.ImageDraw, path: np.ndarray) -> None:
    points = [(float(x), float(y) + _BANNER) for x, y in path]
    pen.line(points, fill=_PATH, width=2)
    for x, y in points[1:]:
        pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_PATH)


def _draw_banner(pen: ImageDraw.ImageDraw, recording: Recording, tick: int, side: int) -> None:
    font = ImageFont.load_default(14)
    pen.rectangle((0, 0, side, _BANNER - 1), fill=_PAPER)
    pen.text((6, 5), recording.result.prompt, fill=_INK, font=font)
    if tick == len(recording.joints) - 1:
        # The block that counts is not the one in the prompt where prompts were shuffled.
        verdict, ink = ("reached", _GOOD) if recording.result.success else ("missed", _BAD)
        pen.text((6, side + _BANNER - 6), f"{recording.result.color}: {verdict}", fill=ink, font=font, anchor="ld")
