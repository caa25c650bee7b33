"""Draws figures: training curves, and held-out frames beside predicted and true chunks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pi0_jax.embodiments import Embodiment
from pi0_jax.observation import Sample

# Older versions of matplotlib do not have this module.
if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

STYLE: "dict[RcKeyType, Any]" = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
}
_TRUE, _PREDICTED, _FAINT = "#222222", "#e06c00", "#9ec3e6"


def curves(metrics: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws loss, validation loss and gradient norm over steps.

    Args:
        metrics: the lines of a metrics file.
        path: the file for the picture.
    """
    training = [line for line in metrics if "loss" in line]
    validation = [line for line in metrics if "validation/loss" in line]
    steps = np.array([line["step"] for line in training])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        loss = np.array([line["loss"] for line in training])
        left.plot(steps, loss, color=_FAINT, linewidth=0.8, label="training, per step")
        left.plot(steps, _smooth(loss), color="#1f5fa8", label="training, smoothed")
        held_out = [(line["step"], line["validation/loss"]) for line in validation]
        if held_out:
            left.plot(*zip(*held_out, strict=True), "o-", color=_PREDICTED, label="held out, EMA")
        left.set(title="flow loss", xlabel="step", yscale="log")
        left.legend(frameon=False)
        norm = np.array([line["gradient_norm"] for line in training])
        right.plot(steps, norm, color=_FAINT, linewidth=0.8)
        right.plot(steps, _smooth(norm), color="#1f5fa8")
        right.set(title="gradient norm", xlabel="step", yscale="log")
        figure.savefig(path, dpi=110)


def _smooth(values: np.ndarray, window: int = 15) -> np.ndarray:
    """Returns a centred moving average; the window is shorter at the ends."""
    window = min(window, len(values))
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def chunk(sample: Sample, predicted: np.ndarray, embodiment: Embodiment, path: Path) -> None:
    """Draws one held-out frame: its cameras, and the true and predicted chunk of each dimension.

    The cameras are on the left. Steps past the episode's end are shaded.

    Args:
        sample: the frame and its true chunk.
        predicted: float32[H, A], in robot units.
        embodiment: the robot's record.
        path: the file for the picture.
    """
    cameras, dims = list(embodiment.cameras.values()), embodiment.actions
    columns = min(4, len(dims))
    rows = -(-len(dims) // columns)
    seconds = np.arange(len(predicted)) / embodiment.control_hz
    steps: dict[str, Any] = {"marker": ".", "markersize": 3}
    with matplotlib.rc_context(STYLE):
        size = 1.9 * len(cameras) + 2.3 * columns, 1.9 * rows + 0.5
        figure = Figure(figsize=size, layout="constrained")
        widths = 1.7 * len(cameras), 2.3 * columns
        ((pictures, plots),) = figure.subfigures(1, 2, squeeze=False, width_ratios=widths)
        row = np.atleast_1d(pictures.subplots(1, len(cameras)))
        for axes, camera in zip(row, cameras, strict=True):
            axes.imshow(sample.observation["images"][camera])
            axes.set(title=camera, xticks=[], yticks=[])
        grid = plots.subplots(rows, columns, squeeze=False).ravel()
        for i, (axes, dim) in enumerate(zip(grid, dims, strict=False)):
            axes.plot(seconds, sample.actions[:, i], color=_TRUE, label="true", **steps)
            axes.plot(seconds, predicted[:, i], color=_PREDICTED, label="predicted", **steps)
            if not sample.action_valid.all():
                end = seconds[sample.action_valid.sum() - 1]
                axes.axvspan(end, seconds[-1], color="#000000", alpha=0.06, linewidth=0)
            axes.set_title(dim.label, fontsize=8)
        for axes in grid[len(dims) :]:
            axes.set_visible(False)
        grid[0].legend(frameon=False, fontsize=7)
        place = f"episode {sample.episode}, step {sample.step}; time in s"
        figure.suptitle(f'"{sample.observation["prompt"]}"   {place}', fontsize=9)
        figure.savefig(path, dpi=100)
