"""Writes an experiment's page from its results.json, and the overview of all that are there."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
        parts = [_head(experiment, record, means)]
        if means.runs:
            _draw(experiment, means, folder / _FIGURE)
            parts += [
                section("Figure", picture(_FIGURE, f"{experiment.title}: a dot for every seed")),
                section("Differences, paired by seed", _pairs(experiment, means)),
                section("Arms", _arms(experiment, means)),
            ]
        if means.runs and experiment.expected:
            parts.append(section("What was expected", _expected(experiment, means)))
        parts += [
            section("What n seeds can show", _power(experiment, means, pilot)),
            section(
                "What it says", "\n".join(f"<p>{line}</p>" for line in _says(experiment, means))
            ),
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
        means = Means(experiment, record["runs"])
        if not means.runs:
            continue
        link = Html(f'<a href="{experiment.name}/{PAGE}">{escaped(experiment.title)}</a>')
        lost = f", {len(means.diverged)} diverged" if means.diverged else ""
        seeds = f"{len(means.seeds)} seeds{lost}, {record['date']}"
        lines = "<br>".join(_says(experiment, means)[: len(experiment.pairs)])
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
        ("primary quantity, chosen before", primary),
        ("seeds", f"{len(means.seeds)}, {experiment.episodes} episodes each"),
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
    """Yields (arm, other, quantity, difference), the primary quantity of each pair first."""
    for arm, other in experiment.pairs:
        names = [n for n in experiment.quantities if means.has(arm, n) and means.has(other, n)]
        for name in sorted(names, key=lambda name: name != experiment.primary):
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
    rows = []
    for arm in means.arms:
        for name in experiment.quantities:
            if means.has(arm, name):
                values = means.of(arm, name)
                ends = f"{values.min():.3g} to {values.max():.3g}"
                rows.append((arm, name, f"{values.mean():.3g}", ends))
    note = "".join(
        f"<p>{escaped(name)}: {escaped(meaning)}</p>"
        for name, meaning in experiment.quantities.items()
    )
    return table(("arm", "quantity", "mean of the seeds", "smallest to largest"), rows) + note


def _expected(experiment: Experiment, means: Means) -> str:
    rows = [(one.text, *_found(one, means)) for one in experiment.expected]
    return table(("expected", "found", ""), rows)


def _found(one: Expected, means: Means) -> tuple[str, str]:
    if one.minus:
        found = paired(means.of(one.arm, one.quantity), means.of(one.minus, one.quantity))
        value, text = found.mean, f"{found.mean:+.3g} ({_interval(found)})"
    else:
        value = float(means.of(one.arm, one.quantity).mean())
        text = f"{value:.3g}"
    return text, "as expected" if one.low <= value <= one.high else "not so"


def _power(experiment: Experiment, means: Means, pilot: Means) -> str:
    if len(pilot.runs) < 2:
        return "<p>There was no pilot: --pilot runs one, on seeds of its own.</p>"
    rows = []
    for arm, other in experiment.pairs:
        name = experiment.primary
        if not (pilot.has(arm, name) and pilot.has(other, name)):
            continue
        one = paired(pilot.of(arm, name), pilot.of(other, name))
        seen = f"{smallest_seen(one.deviation, max(len(means.seeds), 2)):.2g}"
        rows.append((arm, other, f"{one.deviation:.2g}", f"{one.mean:+.2g}", seen))
    header = ("arm", "minus", "deviation in the pilot", "difference in the pilot", "can be seen")
    note = (
        f"{len(pilot.seeds)} pilot seeds, none of them among the runs; {experiment.primary}."
        f" With {len(means.seeds)} seeds the last column's difference is seen with a chance of 80%."
        " A deviation of so few seeds is itself known to a factor of 2 or so."
    )
    return f"<p>{escaped(note)}</p>{table(header, rows)}"


def _says(experiment: Experiment, means: Means) -> list[str]:
    """Returns a line for each pair about its primary quantity, or its first if it has not that."""
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


def _how(record: Mapping[str, Any], means: Means) -> str:
    versions = ", ".join(f"{name} {at}" for name, at in record["made_with"]["versions"].items())
    seconds = [run["cpu_seconds"] for run in means.runs]
    rows = [
        ("command", record["command"]),
        ("date", record["date"]),
        ("machine", record["machine"]),
        ("versions", versions),
        ("CPU seconds of a seed", f"{min(seconds):.0f} to {max(seconds):.0f}" if seconds else "-"),
        ("diverged seeds", ", ".join(str(run["seed"]) for run in means.diverged) or "none"),
        ("data", Html(f'<a href="{RESULTS}">{RESULTS}</a>')),
    ]
    return table((), rows)
