"""Draws the pictures of a dataset card: histograms, and episodes frame by frame.

A histogram shows the range that normalisation maps to model units. Each kind of dimension has one
colour, in states and actions alike: lengths are blue, angles green, grippers orange, others grey.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from pi0_jax.data.index import Index
from pi0_jax.data.index.columns import SPLITS
from pi0_jax.data.index.gripper_check import Gripper, grippers
from pi0_jax.data.index.validate import is_gripper
from pi0_jax.embodiments import ActionDim, StateDim
from pi0_jax.preprocess.normalize import CONSTANT, VectorStatistics
from pi0_jax.report.card_facts import evenly
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

_EPISODES = 3
_CANDIDATES = 60  # episodes among which those are chosen
_FRAMES = 6  # of each episode
# States that tell a gripper's range where none is declared.
_RANGE_SAMPLES = 100_000


class View(NamedTuple):
    """Holds one view of a camera."""

    camera: str
    choice: int  # what Index.observation takes to show this view
    label: str  # the view's name
    path: str  # its image field
    order: str  # of its colours, as it is assumed


class Curve(NamedTuple):
    """Holds one line of a gripper's panel: an action's or a state's."""

    label: str
    opening: np.ndarray  # float[T]: 1 is open, 0 is closed
    action: bool


class Strip(NamedTuple):
    """Holds one episode as its cameras saw it."""

    steps: np.ndarray  # int[n]: the frames' steps within the episode
    images: Mapping[str, Sequence[np.ndarray]]  # a view's name -> n of uint8[height, width, 3]
    kept: np.ndarray  # bool[T]: which of the episode's steps may be drawn in training
    control_hz: float


def views(index: Index) -> list[View]:
    """Returns every view of every camera."""
    return [
        View(
            name,
            choice,
            f"{name} ({path.rsplit('/', 1)[-1]})" if camera.alternatives else name,
            path,
            camera.order,
        )
        for name, camera in index.row.cameras.items()
        for choice, path in enumerate(camera.views)
    ]


def shown(index: Index) -> list[int]:
    """Returns evenly spaced episodes with kept frames.

    Of episodes that are close to each other it takes the one whose grippers move most.
    """
    actions = [gripper.action for gripper in grippers(index) if gripper.action is not None]

    def travel(episode: int) -> float:
        start, stop = index.episodes["start"][episode], index.episodes["stop"][episode]
        moves = index.action[start : start + stop, actions]
        return float(moves.std(axis=0).sum()) if stop else 0.0

    usable = np.flatnonzero(index.episodes["kept"])
    usable = usable if len(usable) else np.arange(len(index.episodes["kept"]))
    candidates = usable[evenly(len(usable), _CANDIDATES)]
    parts = np.array_split(candidates, min(_EPISODES, len(candidates)))
    return [max(part.tolist(), key=travel) for part in parts]


def strip(index: Index, episode: int) -> Strip:
    """Returns evenly spaced frames of the episode, of every view; raises as Index.observation."""
    start, length = int(index.episodes["start"][episode]), int(index.episodes["length"][episode])
    steps = evenly(length, _FRAMES)
    seen: dict[int, list[Any]] = {
        choice: [index.observation(start + step, choice)["images"] for step in steps.tolist()]
        for choice in {view.choice for view in views(index)}
    }
    images = {
        f"{view.label}\n{view.order} assumed": [frame[view.camera] for frame in seen[view.choice]]
        for view in views(index)
    }
    frames = index.frames(SPLITS[index.episodes["split"][episode]])
    kept = np.isin(np.arange(start, start + length), frames, assume_unique=True)
    return Strip(steps, images, kept, index.embodiment.control_hz)


def curves(index: Index, episode: int, gripper: Gripper) -> list[Curve]:
    """Returns the gripper's opening over the episode, as each state and the action tell it.

    A state that declares its polarity comes before the action, and the other states come after it.
    """
    start, length = int(index.episodes["start"][episode]), int(index.episodes["length"][episode])
    first: list[Curve] = []
    last: list[Curve] = []
    for state in gripper.states:
        dim = index.embodiment.state[state]
        low, high = _opening_range(dim, index.state[:, state])
        opening = (index.state[start : start + length, state] - low) / (high - low)
        scale = "" if (low, high) == (0, 1) else f", {low:.3g} to {high:.3g} {dim.unit}"
        if dim.larger_is == "closed":
            said, opening = "1 = closed, drawn upside down", 1 - opening
        else:
            said = "1 = open" if dim.larger_is else "polarity not declared"
        one = Curve(f"state {dim.name} ({said}{scale})", opening, action=False)
        (first if dim.larger_is else last).append(one)
    if gripper.action is not None:
        # It is NaN from the first step that has no action.
        stop, opening = int(index.episodes["stop"][episode]), np.full(length, np.nan, np.float32)
        opening[:stop] = index.action[start : start + stop, gripper.action]
        name = index.embodiment.actions[gripper.action].name
        first.append(Curve(f"action {name} (1 = open)", opening, action=True))
    return first + last


def _opening_range(dim: StateDim, recorded: np.ndarray) -> tuple[float, float]:
    """Returns a gripper's values at its two ends.

    They are the declared ones. Without those they are 0 and 1 where that fits, or else the smallest
    and the largest value that is found.
    """
    if dim.open is not None and (ends := dim.ends) is not None:
        return min(ends), max(ends)
    if dim.low is not None and dim.high is not None:
        return dim.low, dim.high
    sample = recorded[evenly(len(recorded), _RANGE_SAMPLES)]
    low, high = float(sample.min()), float(sample.max())
    if dim.unit == "1" and low >= -0.1 and 0.5 < high <= 1.2:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def save_image(image: np.ndarray, path: Path, *, widest: int = 640) -> None:
    """Writes uint8[height, width, 3] as a PNG, reduced if it is over `widest` pixels wide."""
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
    numbers = np.stack([statistics.mean, statistics.std, *statistics.ranges], axis=1)
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        size, gaps = (
            (2.75 * columns, 1.65 * rows + 0.35),
            ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06),
        )
        figure = Figure(figsize=size, layout=gaps)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, dim, column, known in zip(grid, dims, values.T, numbers.tolist(), strict=False):
            _histogram(axes, column, dim, known)
        for axes in grid[len(dims) :]:
            axes.set_visible(False)
        legend = [
            Patch(color=_INK, alpha=0.13, linewidth=0, label="mean ± std"),
            Line2D([], [], color=_INK, linewidth=1, label="mean"),
            Line2D([], [], color=_INK, linewidth=1, linestyle=(0, (3, 2)), label="q01 and q99"),
        ]
        figure.legend(handles=legend, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
        figure.savefig(path, dpi=_DPI)


def _histogram(
    axes: Axes, values: np.ndarray, dim: StateDim | ActionDim, known: Sequence[float]
) -> None:
    mean, std, q01, q99, minimum, maximum = known
    axes.axvspan(mean - std, mean + std, color=_INK, alpha=0.13, linewidth=0)
    axes.axvline(mean, color=_INK, linewidth=1)
    for quantile in (q01, q99):
        axes.axvline(quantile, color=_INK, linewidth=1, linestyle=(0, (3, 2)))
    # All values are shown, but what lies far beyond the quantiles and mean ± std is left out.
    tail = _TAIL * (q99 - q01)
    low = min(max(minimum, min(q01 - tail, mean - 1.5 * std)), mean - std)
    high = max(min(maximum, max(q99 + tail, mean + 1.5 * std)), mean + std)
    varies = high - low > CONSTANT * max(1.0, abs(mean))
    margin = 0.04 * (high - low) if varies else 0.5 * max(1.0, abs(mean))
    low, high = low - margin, high + margin
    quantity = "gripper" if is_gripper(dim) else dim.unit.split("/")[0]
    colour = {"gripper": _GRIPPER, "m": _LENGTH, "rad": _ANGLE}.get(quantity, _OTHER)
    axes.hist(values, bins=_BINS, range=(low, high), color=colour, alpha=0.85)
    axes.set(xlim=(low, high), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelsize=7.5)
    axes.locator_params(axis="x", nbins=5)
    axes.set_title(dim.label, loc="left", fontsize=9, fontweight="bold")
    ends = f"{minimum:.3g} … {maximum:.3g}"
    axes.set_title(ends, loc="right", fontsize=7.5, color="#555555")


def draw_episode(
    strip: Strip, grippers: Mapping[str, tuple[Sequence[Curve], bool]], path: Path
) -> None:
    """Draws an episode: rows of frames in time order, and each gripper over the same time below.

    Each camera has a row of frames. The word above a gripper's panel is what its first curve says
    at the frame above the word. Steps that are never drawn in training are grey. A panel whose
    curves disagree is red.

    Args:
        strip: the episode's frames.
        grippers: a gripper's name -> its curves, and whether state and action contradict each
            other.
        path: the file for the picture.
    """
    # A frame is as wide as its share of the time axis, but no taller than the tallest allowed.
    slot = (_WIDTH - _LEFT - _RIGHT) / len(strip.steps)
    heights = [
        min(_TALLEST_FRAME, max(0.97 * slot * image.shape[0] / image.shape[1] for image in images))
        for images in strip.images.values()
    ]
    below = (_PANEL + _WORDS + _BELOW) * len(grippers) or _BELOW
    top = height = sum(heights) + _GAP * len(heights) + below
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height))

        def axes_below(top: float, tall: float) -> Axes:
            """Adds axes over the episode's time; all of them have the same left and right edge."""
            left, wide = _LEFT / _WIDTH, (_WIDTH - _LEFT - _RIGHT) / _WIDTH
            axes = figure.add_axes((left, (top - tall) / height, wide, tall / height))
            axes.set_xlim(0, len(strip.kept) / strip.control_hz)
            axes.tick_params(labelsize=8)
            return axes

        for (label, images), tall in zip(strip.images.items(), heights, strict=True):
            _frames(axes_below(top - _GAP, tall), label, images, tall)
            top -= _GAP + tall
        for name, (curves, disagree) in grippers.items():
            axes = axes_below(top - _WORDS, _PANEL)
            axes.set_facecolor("#fbdada" if disagree else "white")
            _gripper(axes, name, curves, strip)
            top -= _WORDS + _PANEL + _BELOW
        if not grippers:
            axes = axes_below(top, 0.02)
            axes.set(yticks=[])
            axes.set_xlabel("time [s]", fontsize=8)
        figure.savefig(path, dpi=_DPI)


def _frames(axes: Axes, label: str, images: Sequence[np.ndarray], height: float) -> None:
    """Draws each frame in the middle of its share of the time axis, in its own proportions."""
    seconds = axes.get_xlim()[1]
    share, per_inch = seconds / len(images), seconds / (_WIDTH - _LEFT - _RIGHT)
    for i, image in enumerate(images):
        width = min(height * image.shape[1] / image.shape[0], 0.97 * share / per_inch)
        tall = width * image.shape[0] / image.shape[1]
        size = round(width * _DPI), round(tall * _DPI)
        pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        centre, half = (i + 0.5) * share, width * per_inch / 2
        place = centre - half, centre + half, height - tall, height
        axes.imshow(pixels, extent=place, aspect="auto")
    axes.set(xlim=(0, seconds), ylim=(0, height))
    axes.set_axis_off()
    axes.text(-0.012, 0.5, label, transform=axes.transAxes, ha="right", va="center", fontsize=8.5)


def _gripper(axes: Axes, name: str, curves: Sequence[Curve], strip: Strip) -> None:
    edges = np.arange(len(strip.kept) + 1) / strip.control_hz
    time, seconds = edges[:-1], edges[-1]
    # With a 0 on both sides, every run of steps that are not kept begins and ends with a change.
    changes = np.flatnonzero(np.diff(~strip.kept, prepend=False, append=False))
    for start, stop in edges[changes].reshape(-1, 2).tolist():
        axes.axvspan(start, stop, color=_INK, alpha=0.1, linewidth=0)
    for label, opening, is_action in curves:
        if is_action:  # it holds until the next one
            axes.stairs(opening, edges, color=_GRIPPER, alpha=0.15, fill=True)
            line: dict[str, Any] = dict(baseline=None, color=_GRIPPER, linewidth=1.6, label=label)
            axes.stairs(opening, edges, **line)
        else:
            axes.plot(time, opening, ".-", color=_INK, linewidth=1.4, markersize=3, label=label)
    for step in strip.steps:
        axes.axvline(time[step], color=_INK, alpha=0.12, linewidth=0.8)
    axes.set(ylim=(-0.08, 1.08), yticks=[0, 1], yticklabels=["closed", "open"])
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(name, fontsize=8.5)
    axes.set_xlabel("time [s]", fontsize=8, loc="right")
    place: dict[str, Any] = dict(loc="upper left", bbox_to_anchor=(-0.01, -0.16), ncols=len(curves))
    axes.legend(**place, frameon=False, fontsize=8.5)
    for i, step in enumerate(strip.steps):
        word, colour = _word(curves[0].opening[step])
        font: dict[str, Any] = {"fontsize": 8.5, "fontweight": "bold", "color": colour}
        axes.text(
            (i + 0.5) * seconds / len(strip.steps), 1.14, word, font, ha="center", va="bottom"
        )


def _word(opening: float) -> tuple[str, str]:
    if opening > 2 / 3:
        return "open", _OPEN
    return ("closed", _CLOSED) if opening < 1 / 3 else ("half open", _BETWEEN)
