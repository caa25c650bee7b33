"""Writes an experiment's page from its results.json, and the overview of all that are there."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.lab import figures
from pi0_jax.lab.experiments import EXPERIMENTS
from pi0_jax.lab.harness import RESULTS
from pi0_jax.lab.plan import Expected, Experiment, Means
from pi0_jax.lab.statistics import Difference, paired, smallest_seen
from pi0_jax.report.pages import PAGE, Html, document, escaped, new_pages, picture, section, table

_OVERVIEW = "The laboratory of π0"
_FIGURE = "figure.png"


def write_page(results: Path) -> Path:
    """Writes the page beside an experiment's results.json, and returns it."""
    record = json.loads(results.read_text())
    experiment = EXPERIMENTS[record["experiment"]]
    means, pilot = (Means(experiment, record[part]) for part in ("runs", "pilot"))
    with new_pages(results.parent, f"<title>{escaped(experiment.title)}</title>") as folder:
        says = "\n".join(f"<p>{line}</p>" for line in _says(experiment, means))
        parts = [_head(experiment, record, means), section("What it says", says)]
        if means.runs:
            _draw(experiment, means, folder / _FIGURE)
            parts += [
                section("Figure", picture(_FIGURE, f"{experiment.title}: a dot for every seed")),
                section("Differences, paired by seed", _pairs(experiment, means)),
                section("Arms: means over the seeds", _arms(experiment, means)),
            ]
        if means.runs and experiment.expected:
            rows = [(one.text, *_found(one, means)) for one in experiment.expected]
            parts.append(section("What was expected", table(("expected", "found", ""), rows)))
        parts += [
            section("What n seeds can show", _power(experiment, means, pilot)),
            section("What it does not say", f"<p>{escaped(experiment.limits)}</p>"),
            section("How it was run", _how(record, means)),
        ]
        (folder / PAGE).write_text(document(experiment.title, parts), encoding="utf-8")
    return results.parent / PAGE


def write_overview(output: Path) -> Path:
    """Writes a page about all experiments whose results are in a folder, and returns it."""
    rows = []
    for experiment in EXPERIMENTS.values():
        if not (results := output / experiment.name / RESULTS).exists():
            continue
        record = json.loads(results.read_text())
        # Results of another revision may lack what is told now.
        if record["made_with"]["revision"] != experiment.revision:
            continue
        if not (means := Means(experiment, record["runs"])).runs:
            continue
        link = Html(f'<a href="{experiment.name}/{PAGE}">{escaped(experiment.title)}</a>')
        lost = f", {len(means.diverged)} diverged" if means.diverged else ""
        miniature = ", in miniature: nothing was learnt" if record["made_with"]["quick"] else ""
        seeds = f"{len(means.seeds)} seeds{lost}, {_range(means.runs, 'date')}{miniature}"
        # The primary difference, and what was expected; the page has all others.
        found = [f"{one.text}: {': '.join(_found(one, means))}" for one in experiment.expected]
        lines = [_says(experiment, means)[0], *map(escaped, found), *_diverged(means)]
        rows.append((link, experiment.question, Html("<br>".join(lines)), seeds))
    with new_pages(output, f"<title>{_OVERVIEW}</title>") as folder:
        body = [
            "<p>Experiments of minutes on a CPU, with intervals between training seeds."
            " python -m launch.experiment NAME repeats one.</p>",
            table(("experiment", "question", "what came out", "runs"), rows),
        ]
        (folder / PAGE).write_text(document(_OVERVIEW, body), encoding="utf-8")
    return output / PAGE


def _head(experiment: Experiment, record: Mapping[str, Any], means: Means) -> str:
    rows = [
        ("question", experiment.question),
        ("asked by", experiment.asked),
        ("design", experiment.design),
        ("primary quantity", f"{experiment.primary}: {experiment.quantities[experiment.primary]}"),
        ("primary difference", " minus ".join(experiment.pairs[0][:2])),
        ("seeds", f"{len(means.seeds)}, {record['made_with']['episodes']} episodes each"),
    ]
    if record["made_with"]["quick"]:
        rows.insert(0, ("in miniature", "a few steps of training: nothing was learnt"))
    return table((), rows)


def _draw(experiment: Experiment, means: Means, path: Path) -> None:
    if experiment.draw is not None:
        return experiment.draw(means, path)
    arms = [arm for arm in means.arms if means.has(arm, experiment.primary)]
    names = experiment.primary, *experiment.told[-2:]
    figures.draw({name: {arm: means.of(arm, name) for arm in arms} for name in names}, path)


def _differences(
    experiment: Experiment, means: Means, *, told: bool = False
) -> Iterator[tuple[str, str, str, Difference]]:
    """Yields (arm, other, quantity, difference) of each pair, by the quantity that judges it.

    With `told` the other quantities of which differences are told follow.
    """
    for arm, other, judge in experiment.pairs:
        names = [judge or experiment.primary]
        names += [experiment.primary, *experiment.told] if told else []
        for name in dict.fromkeys(names):
            if means.has(arm, name) and means.has(other, name):
                yield arm, other, name, paired(means.of(arm, name), means.of(other, name))


def _says(experiment: Experiment, means: Means) -> list[str]:
    """Returns a line for each pair, and for each training that diverged."""
    lines: list[str] = []
    for arm, other, name, one in _differences(experiment, means):
        what = f"{arm} minus {other}: {name} {one.mean:+.3g} ({_interval(one)})"
        if one.seeds >= 2 and not one.clear:
            seen = smallest_seen(one.deviation, one.seeds)
            what += f": no difference is shown; one of {seen:.2g} would probably have been seen"
        lines.append(escaped(what))
    return [*lines, *_diverged(means)]


def _diverged(means: Means) -> list[str]:
    return [
        escaped(f"seed {run['seed']}: {training} diverged: {why}")
        for run in means.diverged
        for training, why in run["diverged"].items()
    ]


def _pairs(experiment: Experiment, means: Means) -> str:
    header = "arm", "minus", "quantity", "difference", "95% interval", "deviation", "seeds"
    rows = [
        (arm, other, name, f"{one.mean:+.3g}", _interval(one), _deviation(one), one.seeds)
        for arm, other, name, one in _differences(experiment, means, told=True)
    ]
    return table(header, rows)


def _interval(one: Difference) -> str:
    return f"{one.low:+.3g} to {one.high:+.3g}" if math.isfinite(one.low) else "no interval"


def _deviation(one: Difference) -> str:
    return f"{one.deviation:.3g}" if one.seeds >= 2 else "none"


def _arms(experiment: Experiment, means: Means) -> str:
    """Returns the mean over seeds of every arm and quantity, and what the quantities mean."""
    names = [name for name in experiment.quantities if any(means.has(a, name) for a in means.arms)]
    rows = [
        [arm, *(f"{np.nanmean(means.of(arm, n)):.3g}" if means.has(arm, n) else "" for n in names)]
        for arm in means.arms
    ]
    meanings = [(name, experiment.quantities[name]) for name in names]
    return table(("arm", *names), rows) + table((), meanings)


def _found(one: Expected, means: Means) -> tuple[str, str]:
    """Returns what was found, and whether its whole interval is as expected."""
    values = means.of(one.arm, one.quantity)
    if one.every:
        low, high = np.nanmin(values), np.nanmax(values)
        fits = one.low <= low and high <= one.high
        return f"{low:.3g} to {high:.3g} over seeds", "as expected" if fits else "not so"
    others = means.of(one.minus, one.quantity) if one.minus else np.zeros_like(values)
    found = paired(values, others)
    text = f"{found.mean:{'+' if one.minus else ''}.3g} ({_interval(found)})"
    if one.low <= found.low and found.high <= one.high:
        return text, "as expected"
    outside = found.high < one.low or found.low > one.high
    return text, "not so" if outside else "undecided: the interval holds both"


def _power(experiment: Experiment, means: Means, pilot: Means) -> str:
    if len(pilot.runs) < 2:
        return "<p>There was no pilot: --pilot runs one, on seeds of its own.</p>"
    seeds = len(means.seeds) or experiment.seeds
    rows = [
        (arm, other, name, f"{one.deviation:.2g}", f"{one.mean:+.2g}",
         f"{smallest_seen(one.deviation, seeds):.2g}")
        for arm, other, name, one in _differences(experiment, pilot)
    ]  # fmt: skip
    in_pilot = "deviation in the pilot", "difference in the pilot"
    note = (
        f"{len(pilot.seeds)} pilot seeds, none of them among the runs."
        f" With {seeds} seeds the last column's difference is seen with a chance of 80%."
        " A deviation of so few seeds is itself known only roughly: of four, to a factor of 0.6 to 3.7."
    )
    header = "arm", "minus", "quantity", *in_pilot, "can be seen"
    return f"<p>{escaped(note)}</p>{table(header, rows)}"


def _range(found: Sequence[Mapping[str, Any]], name: str) -> str:
    """Returns the different values of a field of the runs."""
    return ", ".join(sorted({run[name] for run in found}))


def _how(record: Mapping[str, Any], means: Means) -> str:
    versions = ", ".join(f"{name} {at}" for name, at in record["made_with"]["versions"].items())
    seconds = [run["cpu_seconds"] for run in means.runs]
    took = f"{min(seconds):.0f} to {max(seconds):.0f}" if seconds else "-"
    rows = [
        ("command", _range(means.runs, "command")),
        ("date", _range(means.runs, "date")),
        ("machine", record["machine"]),
        ("versions", versions),
        ("CPU seconds of a seed, without trainings that were there", took),
        ("seeds with diverged trainings", ", ".join(str(run["seed"]) for run in means.diverged) or "none"),
        ("data", Html(f'<a href="{RESULTS}">{RESULTS}</a>')),
    ]  # fmt: skip
    return table((), rows)
