"""Draws an experiment's figure: a dot or a thin line for every seed, so that nothing hides behind a
mean.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pi0_jax.lab.plan import Means
from pi0_jax.report.figures import STYLE

_DOT, _MEAN = "#9ec3e6", "#1f5fa8"
_LINES = ("#1f5fa8", "#e06c00", "#2a8f4d", "#8a4fbf")


class Lines(NamedTuple):
    """Holds a panel of lines: for each x a number for each seed, by the line's name."""

    x: Sequence[int]
    label: str  # of x
    values: Mapping[str, Sequence[np.ndarray]]
    scale: str = "log"  # of x


Dots: TypeAlias = Mapping[str, np.ndarray]  # a number for each seed, by arm


def draw(panels: Mapping[str, Dots | Lines], path: Path) -> None:
    """Draws panels side by side, by title: dots with the arms' means, or lines."""
    height = max(
        3.2 if isinstance(one, Lines) else 0.9 + 0.32 * len(one) for one in panels.values()
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * len(panels), height), layout="constrained")
        places = np.ravel(figure.subplots(1, len(panels)))
        for place, (title, panel) in zip(places, panels.items(), strict=True):
            place.set(title=title)
            if isinstance(panel, Lines):
                _lines(place, panel)
            else:
                _dots(place, panel)
        figure.savefig(path, dpi=100)


def draw_by_count(
    means: Means,
    path: Path,
    *,
    methods: Iterable[str],
    counts: Sequence[int],
    quantities: Iterable[str],
) -> None:
    """Draws quantities of the arms "<method>, <count>" against the number of demonstrations."""

    def lines(quantity: str) -> dict[str, list[np.ndarray]]:
        return {
            method: [means.of(f"{method}, {count}", quantity) for count in counts]
            for method in methods
        }

    panels = {name: Lines(counts, "demonstrations", lines(name)) for name in quantities}
    draw(panels, path)


def _dots(place: Any, arms: Dots) -> None:
    for row, values in enumerate(arms.values()):
        mean = np.nanmean(values)
        place.plot(values, np.full(len(values), row), "o", color=_DOT, markersize=4)
        place.plot([mean], [row], "|", color=_MEAN, markersize=14, markeredgewidth=2.5)
    place.set(yticks=range(len(arms)), yticklabels=list(arms))
    place.invert_yaxis()


def _lines(place: Any, panel: Lines) -> None:
    for colour, (name, values) in zip(_LINES, panel.values.items(), strict=False):
        seeds = np.array(values)  # [x, seeds]
        mean = np.nanmean(seeds, axis=1)
        place.plot(panel.x, seeds, color=colour, linewidth=0.5, alpha=0.35)
        place.plot(panel.x, mean, "o-", color=colour, label=name, markersize=4)
    place.set(xscale=panel.scale, xlabel=panel.label, xticks=panel.x, xticklabels=panel.x)
    place.minorticks_off()
    place.legend(frameon=False, fontsize=8)
