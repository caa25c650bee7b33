"""Draws an experiment's figure: a dot for every seed, so that nothing hides behind a mean."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pi0_jax.report.figures import STYLE

_DOT, _MEAN = "#9ec3e6", "#1f5fa8"
_LINES = ("#1f5fa8", "#e06c00", "#2a8f4d", "#8a4fbf")


def dots(panels: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Draws quantity -> arm -> a number for each seed: a panel each, with the arms' means."""
    rows = max(len(arms) for arms in panels.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * len(panels), 0.9 + 0.32 * rows), layout="constrained")
        axes = np.ravel(figure.subplots(1, len(panels)))
        for place, (name, arms) in zip(axes, panels.items(), strict=True):
            _dots(place, name, arms)
        figure.savefig(path, dpi=100)


def lines(
    x: Sequence[int],
    panels: Mapping[str, Mapping[str, Sequence[np.ndarray]]],
    label: str,
    path: Path,
) -> None:
    """Draws quantity -> line -> for each x a number for each seed."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * len(panels), 3.2), layout="constrained")
        for place, (name, several) in zip(
            np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True
        ):
            _lines(place, x, several, (label, name))
            place.set(xscale="log", xticks=x, xticklabels=x)
            place.minorticks_off()
        figure.savefig(path, dpi=100)


def dots_and_lines(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    x: Sequence[int],
    several: Mapping[str, Sequence[np.ndarray]],
    labels: tuple[str, str],
    path: Path,
) -> None:
    """Draws panels as `dots` does, and one as `lines` does."""
    rows = max(len(arms) for arms in panels.values())
    with matplotlib.rc_context(STYLE):
        size = 4.4 * (len(panels) + 1), max(3.2, 0.9 + 0.32 * rows)
        figure = Figure(figsize=size, layout="constrained")
        *places, last = np.ravel(figure.subplots(1, len(panels) + 1))
        for place, (name, arms) in zip(places, panels.items(), strict=True):
            _dots(place, name, arms)
        _lines(last, x, several, labels)
        figure.savefig(path, dpi=100)


def _dots(place: Any, name: str, arms: Mapping[str, np.ndarray]) -> None:
    for row, values in enumerate(arms.values()):
        place.plot(values, np.full(len(values), row), "o", color=_DOT, markersize=4)
        place.plot([values.mean()], [row], "|", color=_MEAN, markersize=14, markeredgewidth=2.5)
    place.set(yticks=range(len(arms)), yticklabels=list(arms), title=name)
    place.invert_yaxis()


def _lines(
    place: Any,
    x: Sequence[int],
    several: Mapping[str, Sequence[np.ndarray]],
    labels: tuple[str, str],
) -> None:
    for colour, (name, values) in zip(_LINES, several.items(), strict=False):
        seeds = np.array(values)  # [x, seeds]
        place.plot(x, seeds, color=colour, linewidth=0.5, alpha=0.35)
        place.plot(x, seeds.mean(axis=1), "o-", color=colour, label=name, markersize=4)
    place.set(xlabel=labels[0], title=labels[1])
    place.legend(frameon=False, fontsize=8)
