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
            parts.append(section("What was expected", _expected(experiment, means)))
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
        made_with = record["made_with"]
        # Results of another revision may lack what is told now.
        if made_with["revision"] != experiment.revision:
            continue
        means = Means(experiment, record["runs"])
        if not means.runs:
            continue
        link = Html(f'<a href="{experiment.name}/{PAGE}">{escaped(experiment.title)}</a>')
        lost = f", {len(means.diverged)} diverged" if means.diverged else ""
        seeds = f"{len(means.seeds)} seeds{lost}, {_range(means.runs, 'date')}"
        seeds += ", in miniature: nothing was learnt" if made_with["quick"] else ""
        # The primary difference, and what was expected; the page has all others.
        found = [f"{one.text}: {': '.join(_found(one, means))}" for one in experiment.expected]
        lost_seeds = [f"seed {run['seed']} diverged" for run in means.diverged]
        lines = "<br>".join(
            [_says(experiment, means)[0], *(escaped(line) for line in [*found, *lost_seeds])]
        )
        rows.append((link, experiment.question, Html(lines), seeds))
    with new_pages(output, f"<title>{_OVERVIEW}</title>") as folder:
        body = [
            "<p>Experiments of minutes on a CPU, with intervals between training seeds."
            " python -m launch.experiment NAME repeats one.</p>",
            table(("experiment", "question", "what came out", "runs"), rows),
        ]
        (folder / PAGE).write_text(document(_OVERVIEW, body), encoding="utf-8")
    return output / PAGE


def _head(experiment: Experiment, record: Mapping[str, Any], means: Means) -> str:
    primary = f"{experiment.primary}: {experiment.quantities[experiment.primary]}"
    rows = [
        ("question", experiment.question),
        ("asked by", experiment.asked),
        ("design", experiment.design),
        ("primary quantity", primary),
        ("primary difference", " minus ".join(experiment.pairs[0][:2])),
        ("seeds", f"{len(means.seeds)}, {record['made_with']['episodes']} episodes each"),
    ]
    if record["made_with"]["quick"]:
        rows.insert(0, ("in miniature", "a few steps of training: nothing was learnt"))
    return table((), rows)


def _draw(experiment: Experiment, means: Means, path: Path) -> None:
    if experiment.draw is not None:
        return experiment.draw(means, path)
    names = [experiment.primary, "success", "collision"]
    arms = [arm for arm in means.arms if means.has(arm, experiment.primary)]
    figures.dots({name: {arm: means.of(arm, name) for arm in arms} for name in names}, path)


def _compared(experiment: Experiment, means: Means) -> Iterator[tuple[str, str, str, Difference]]:
    """Yields (arm, other, quantity, difference), the quantity that judges a pair first."""
    for arm, other, judge in experiment.pairs:
        for name in dict.fromkeys(
            (judge or experiment.primary, experiment.primary, *experiment.told)
        ):
            if means.has(arm, name) and means.has(other, name):
                yield arm, other, name, paired(means.of(arm, name), means.of(other, name))


def _pairs(experiment: Experiment, means: Means) -> str:
    header = ("arm", "minus", "quantity", "difference", "95% interval", "deviation between seeds")
    rows = [
        (arm, other, name, f"{one.mean:+.3g}", _interval(one), f"{one.deviation:.3g}")
        for arm, other, name, one in _compared(experiment, means)
    ]
    return table(header, rows)


def _interval(one: Difference) -> str:
    return f"{one.low:+.3g} to {one.high:+.3g}" if math.isfinite(one.low) else "one seed has none"


def _arms(experiment: Experiment, means: Means) -> str:
    """Returns the mean over seeds of every arm and quantity, and what the quantities mean."""
    names = [name for name in experiment.quantities if any(means.has(a, name) for a in means.arms)]
    rows = [
        [
            arm,
            *(f"{means.of(arm, n).mean():.3g}" if means.has(arm, n) else "" for n in names),
        ]
        for arm in means.arms
    ]
    meanings = [(name, experiment.quantities[name]) for name in names]
    return table(("arm", *names), rows) + table((), meanings)


def _expected(experiment: Experiment, means: Means) -> str:
    rows = [(one.text, *_found(one, means)) for one in experiment.expected]
    return table(("expected", "found", ""), rows)


def _found(one: Expected, means: Means) -> tuple[str, str]:
    """Returns what was found, and whether its whole interval is as expected."""
    values = means.of(one.arm, one.quantity)
    if one.every:
        low, high, text = values.min(), values.max(), f"{values.min():.3g} to {values.max():.3g}"
        return (
            f"{text} over seeds",
            "as expected" if one.low <= low and high <= one.high else "not so",
        )
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
    rows = []
    seeds = len(means.seeds) or experiment.seeds
    for arm, other, judge in experiment.pairs:
        name = judge or experiment.primary
        if not (pilot.has(arm, name) and pilot.has(other, name)):
            continue
        one = paired(pilot.of(arm, name), pilot.of(other, name))
        seen = f"{smallest_seen(one.deviation, seeds):.2g}"
        rows.append((arm, other, name, f"{one.deviation:.2g}", f"{one.mean:+.2g}", seen))
    header = (
        "arm",
        "minus",
        "quantity",
        "deviation in the pilot",
        "difference in the pilot",
        "can be seen",
    )
    note = (
        f"{len(pilot.seeds)} pilot seeds, none of them among the runs."
        f" With {seeds} seeds the last column's difference is seen with a chance of 80%."
        " A deviation of so few seeds is itself known only roughly: of four, to a factor of 0.6 to 3.7."
    )
    return f"<p>{escaped(note)}</p>{table(header, rows)}"


def _says(experiment: Experiment, means: Means) -> list[str]:
    """Returns a line for each pair about the quantity by which it is judged."""
    lines: list[str] = []
    told: set[tuple[str, str]] = set()
    for arm, other, name, one in _compared(experiment, means):
        if (arm, other) in told:
            continue
        told.add((arm, other))
        what = f"{arm} minus {other}: {name} {one.mean:+.3g} ({_interval(one)})"
        if one.seeds >= 2 and not one.clear:
            seen = smallest_seen(one.deviation, one.seeds)
            what += f": no difference is shown; one of {seen:.2g} would probably have been seen"
        lines.append(escaped(what))
    lines += [escaped(f"seed {run['seed']} diverged: {run['diverged']}") for run in means.diverged]
    return lines


def _range(found: Sequence[Mapping[str, Any]], name: str) -> str:
    """Returns the different values of a field of the runs."""
    return ", ".join(sorted({run[name] for run in found}))


def _how(record: Mapping[str, Any], means: Means) -> str:
    versions = ", ".join(f"{name} {at}" for name, at in record["made_with"]["versions"].items())
    seconds = [run["cpu_seconds"] for run in means.runs]
    rows = [
        ("command", _range(means.runs, "command")),
        ("date", _range(means.runs, "date")),
        ("machine", record["machine"]),
        ("versions", versions),
        (
            "CPU seconds of a seed, without trainings that were there",
            f"{min(seconds):.0f} to {max(seconds):.0f}" if seconds else "-",
        ),
        ("diverged seeds", ", ".join(str(run["seed"]) for run in means.diverged) or "none"),
        ("data", Html(f'<a href="{RESULTS}">{RESULTS}</a>')),
    ]
    return table((), rows)
