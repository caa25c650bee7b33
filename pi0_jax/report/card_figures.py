"""Draws the pictures of a dataset card: histograms, and episodes frame by frame.

A histogram shows the range that normalisation maps to model units. Each kind of dimension has one
colour, in states and actions alike: lengths are blue, angles green, grippers orange, others grey.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from pi0_jax.embodiments import ActionDim, StateDim
from pi0_jax.preprocess.normalize import CONSTANT, VectorStatistics
from pi0_jax.report.card_facts import is_gripper
from pi0_jax.report.figures import STYLE

_LENGTH, _ANGLE, _GRIPPER, _OTHER, _INK = "#1f5fa8", "#2a8f6d", "#e06c00", "#777777", "#222222"
_OPEN, _CLOSED, _BETWEEN = "#2a8f6d", "#b03030", "#777777"
# Names come from the datasets' rows, so a dollar sign must stay a dollar sign.
_STYLE = STYLE | {"text.parse_math": False}
_DPI = 130
_BINS = 50
# How far a histogram goes beyond q01 and q99, as a share of q99 - q01.
_TAIL = 0.6

# The sizes of an episode's figure, in inches. Words stand above a panel; legend and times below it.
_WIDTH, _LEFT, _RIGHT = 11.0, 1.2, 0.2
_TALLEST_FRAME, _GAP, _PANEL, _WORDS, _BELOW = (1.9, 0.06, 1.05, 0.3, 0.62)


class Curve(NamedTuple):
    """Holds one line of a gripper's panel.

    Attributes:
        label: the line's name in the legend.
        opening: float[T]: 1 is open, 0 is closed.
        action: whether it is an action; else it is a state.
    """

    label: str
    opening: np.ndarray
    action: bool


class Panel(NamedTuple):
    """Holds one gripper over time, and whether its state and its action contradict each other."""

    curves: Sequence[Curve]
    disagree: bool


class Strip(NamedTuple):
    """Holds one episode as its cameras saw it.

    Attributes:
        steps: int[n]: the frames' steps within the episode.
        images: a camera's name -> n images, uint8[height, width, 3].
        kept: bool[T]: which of the episode's steps may be drawn.
        control_hz: steps per second.
    """

    steps: np.ndarray
    images: Mapping[str, Sequence[np.ndarray]]
    kept: np.ndarray
    control_hz: float


def save_image(image: np.ndarray, path: Path, *, widest: int = 640) -> None:
    """Writes an image as a PNG, and reduces it if it is wider than `widest` pixels.

    Args:
        image: uint8[height, width, 3].
        path: the file.
        widest: the largest width in pixels.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((widest, image.shape[0]), Image.Resampling.LANCZOS)
    picture.save(path)


def histograms(
    values: np.ndarray,
    dims: Sequence[StateDim | ActionDim],
    statistics: VectorStatistics,
    path: Path,
) -> None:
    """Draws one histogram for each dimension, with mean ± std and q01..q99.

    Args:
        values: float[n, dims], each dimension in its own unit.
        dims: the dimensions.
        statistics: their statistics.
        path: the file for the picture.
    """
    columns = min(4, len(dims))
    rows = -(-len(dims) // columns)
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        figure = Figure(
            figsize=(2.75 * columns, 1.65 * rows + 0.35),
            layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06),
        )
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for i, (axes, dim) in enumerate(zip(grid, dims, strict=False)):
            columns_of_all = (statistics.mean, statistics.std, *statistics.ranges)
            _histogram(axes, values[:, i], dim, _Numbers(*(float(v[i]) for v in columns_of_all)))
        for axes in grid[len(dims) :]:
            axes.set_visible(False)
        legend = [
            Patch(color=_INK, alpha=0.13, linewidth=0, label="mean ± std"),
            Line2D([], [], color=_INK, linewidth=1, label="mean"),
            Line2D([], [], color=_INK, linewidth=1, linestyle=(0, (3, 2)), label="q01 and q99"),
        ]
        figure.legend(handles=legend, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
        figure.savefig(path, dpi=_DPI)


class _Numbers(NamedTuple):
    """Holds the statistics of one dimension."""

    mean: float
    std: float
    q01: float
    q99: float
    minimum: float
    maximum: float


def _histogram(
    axes: Axes, values: np.ndarray, dim: StateDim | ActionDim, statistics: _Numbers
) -> None:
    low, high = _visible_range(statistics)
    axes.axvspan(
        statistics.mean - statistics.std,
        statistics.mean + statistics.std,
        color=_INK,
        alpha=0.13,
        linewidth=0,
    )
    axes.axvline(statistics.mean, color=_INK, linewidth=1)
    for quantile in (statistics.q01, statistics.q99):
        axes.axvline(quantile, color=_INK, linewidth=1, linestyle=(0, (3, 2)))
    axes.hist(values, bins=_BINS, range=(low, high), color=_colour(dim), alpha=0.85)
    axes.set(xlim=(low, high), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelsize=7.5)
    axes.locator_params(axis="x", nbins=5)
    axes.set_title(f"{dim.name} [{dim.unit}]", loc="left", fontsize=9, fontweight="bold")
    axes.set_title(
        f"{statistics.minimum:.3g} … {statistics.maximum:.3g}",
        loc="right",
        fontsize=7.5,
        color="#555555",
    )


def _visible_range(statistics: _Numbers) -> tuple[float, float]:
    """Returns the range that is shown.

    It holds all values, but leaves out what lies far beyond the quantiles and mean ± std.
    """
    tail = _TAIL * (statistics.q99 - statistics.q01)
    low = max(
        statistics.minimum, min(statistics.q01 - tail, statistics.mean - 1.5 * statistics.std)
    )
    high = min(
        statistics.maximum, max(statistics.q99 + tail, statistics.mean + 1.5 * statistics.std)
    )
    low, high = (
        min(low, statistics.mean - statistics.std),
        max(high, statistics.mean + statistics.std),
    )
    varies = high - low > CONSTANT * max(1.0, abs(statistics.mean))
    margin = 0.04 * (high - low) if varies else 0.5 * max(1.0, abs(statistics.mean))
    return float(low - margin), float(high + margin)


def _colour(dim: StateDim | ActionDim) -> str:
    if is_gripper(dim):
        return _GRIPPER
    quantity = dim.unit.split("/")[0]
    return _LENGTH if quantity == "m" else _ANGLE if quantity == "rad" else _OTHER


def episode(strip: Strip, grippers: Mapping[str, Panel], path: Path) -> None:
    """Draws an episode: rows of frames in time order, and each gripper over the same time below.

    Each camera has a row of frames. The word above a gripper's panel is what its first curve says
    at the frame above the word. Steps that are never drawn in training are grey. A panel whose
    curves disagree is red.

    Args:
        strip: the episode's frames.
        grippers: a gripper's name -> its panel.
        path: the file for the picture.
    """
    heights = [_frame_height(images, len(strip.steps)) for images in strip.images.values()]
    height = (
        sum(heights)
        + _GAP * len(heights)
        + (_PANEL + _WORDS + _BELOW) * len(grippers)
        + (0 if grippers else _BELOW)
    )
    seconds = len(strip.kept) / strip.control_hz
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height))
        top = height
        for (label, images), rows in zip(strip.images.items(), heights, strict=True):
            top -= rows + _GAP
            _frames(_axes(figure, top, rows, seconds), label, images, rows)
        for name, panel in grippers.items():
            top -= _WORDS + _PANEL
            _gripper(_axes(figure, top, _PANEL, seconds), name, panel, strip)
            top -= _BELOW
        if not grippers:
            axes = _axes(figure, top - 0.02, 0.02, seconds)
            axes.set(yticks=[])
            axes.set_xlabel("time [s]", fontsize=8)
        figure.savefig(path, dpi=_DPI)


def _axes(figure: Figure, bottom: float, height: float, seconds: float) -> Axes:
    """Adds axes over the episode's time; all axes of a figure have the same left and right edge."""
    width, total = figure.get_size_inches()
    axes = figure.add_axes(
        (_LEFT / width, bottom / total, (width - _LEFT - _RIGHT) / width, height / total)
    )
    axes.set_xlim(0, seconds)
    axes.tick_params(labelsize=8)
    return axes


def _frame_height(images: Sequence[np.ndarray], count: int) -> float:
    """Returns the height of a row of frames in inches.

    A frame is as wide as its share of the time axis, but no taller than the tallest allowed.
    """
    slot = (_WIDTH - _LEFT - _RIGHT) / count
    return min(
        _TALLEST_FRAME, max(0.97 * slot * image.shape[0] / image.shape[1] for image in images)
    )


def _frames(axes: Axes, label: str, images: Sequence[np.ndarray], height: float) -> None:
    """Draws each frame in the middle of its share of the time axis, in its own proportions."""
    seconds = axes.get_xlim()[1]
    per_inch = seconds / (_WIDTH - _LEFT - _RIGHT)
    for i, image in enumerate(images):
        centre = (i + 0.5) * seconds / len(images)
        width = min(
            height * image.shape[1] / image.shape[0], 0.97 * seconds / len(images) / per_inch
        )
        tall = width * image.shape[0] / image.shape[1]
        pixels = Image.fromarray(image).resize(
            (round(width * _DPI), round(tall * _DPI)), Image.Resampling.LANCZOS
        )
        half = width * per_inch / 2
        axes.imshow(
            np.asarray(pixels),
            extent=(centre - half, centre + half, height - tall, height),
            aspect="auto",
        )
    axes.set(xlim=(0, seconds), ylim=(0, height))
    axes.set_axis_off()
    axes.text(-0.012, 0.5, label, transform=axes.transAxes, ha="right", va="center", fontsize=8.5)


def _gripper(axes: Axes, name: str, panel: Panel, strip: Strip) -> None:
    time = np.arange(len(strip.kept)) / strip.control_hz
    for start, stop in _runs(~strip.kept):
        axes.axvspan(
            start / strip.control_hz, stop / strip.control_hz, color=_INK, alpha=0.1, linewidth=0
        )
    if panel.disagree:
        axes.set_facecolor("#fbdada")
    for curve in panel.curves:
        if curve.action:
            # An action holds until the next one.
            edges = np.append(time, len(time) / strip.control_hz)
            axes.stairs(curve.opening, edges, color=_GRIPPER, alpha=0.15, fill=True)
            axes.stairs(
                curve.opening,
                edges,
                baseline=None,
                color=_GRIPPER,
                linewidth=1.6,
                label=curve.label,
            )
        else:
            axes.plot(
                time,
                curve.opening,
                color=_INK,
                linewidth=1.4,
                marker=".",
                markersize=3,
                label=curve.label,
            )
    for step in strip.steps:
        axes.axvline(time[step], color=_INK, alpha=0.12, linewidth=0.8)
    axes.set(ylim=(-0.08, 1.08), yticks=[0, 1], yticklabels=["closed", "open"])
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(name, fontsize=8.5)
    axes.set_xlabel("time [s]", fontsize=8, loc="right")
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.01, -0.16),
        ncols=len(panel.curves),
        frameon=False,
        fontsize=8.5,
    )
    seconds, first = axes.get_xlim()[1], panel.curves[0].opening
    for i, step in enumerate(strip.steps):
        word, colour = _word(first[step])
        axes.text(
            (i + 0.5) * seconds / len(strip.steps),
            1.14,
            word,
            ha="center",
            va="bottom",
            fontsize=8.5,
            fontweight="bold",
            color=colour,
        )


def _word(opening: float) -> tuple[str, str]:
    return (
        ("open", _OPEN)
        if opening > 2 / 3
        else ("closed", _CLOSED)
        if opening < 1 / 3
        else ("half open", _BETWEEN)
    )


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Returns [start, stop) of every run of True in bool[T]."""
    # With a 0 on both sides, every run begins with a change and ends with one.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
