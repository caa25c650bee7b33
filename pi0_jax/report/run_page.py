"""Writes the report of a run: one HTML page with its pictures beside it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pi0_jax import checkpoints
from pi0_jax.data.datasets import find_row
from pi0_jax.data.index import open_index
from pi0_jax.errors import InputError
from pi0_jax.policy import Policy
from pi0_jax.report import figures
from pi0_jax.report.pages import PAGE, document, new_pages, picture, section, table
from pi0_jax.train import config
from pi0_jax.train.config import RunConfig
from pi0_jax.train.data import held_out_samples
from pi0_jax.train.metrics import read_metrics

_TITLE = "π0 run"


def write_report(
    workdir: Path, evaluation: Path | None, output: Path, *, data_dir: str | None, frames: int
) -> Path:
    """Writes the report of a run.

    It shows curves, and the chunks of some held-out frames of each dataset. With an evaluation it
    also shows the table and the rollouts.

    Args:
        workdir: the folder of the training run.
        evaluation: the folder that launch.evaluate wrote, or None.
        output: the folder for the page.
        data_dir: where the datasets are; None takes the config's place.
        frames: how many held-out frames of each dataset are shown.

    Returns:
        The page, output/index.html. It appears last, and takes the place of an older report only.

    Raises:
        InputError: there is no checkpoint, no evaluation or no index of the data. What `new_pages`
            raises comes through as well.
    """
    step = checkpoints.find(workdir)
    stored = checkpoints.read_description(step)
    run = config.from_halves(stored.policy, stored.training, f"{step}: config")
    policy = Policy.open(step)
    metrics = read_metrics(workdir)
    record = None if evaluation is None else _read_evaluation(evaluation)
    with new_pages(output, f"<title>{_TITLE}</title>") as folder:
        figures.curves(metrics, folder / "curves.png")
        parts = [_summary(policy, run, metrics)]
        if evaluation is not None and record is not None:
            rollouts = _rollouts(evaluation / "rollouts", folder / "rollouts", record["rows"])
            # In the reach world a picture shows the chunk; a family's results say their protocol.
            of, line = (
                record["checkpoint"],
                "The line is the fingertip path of the predicted chunk.",
            )
            if (protocol := record.get("protocol")) is not None:
                of, line = f"{of}. Protocol: {protocol}", "What the policy's cameras saw."
            parts += [
                section(
                    "Closed-loop success",
                    _success_table(record["rows"]),
                    f"Of {of}. In brackets 95% Wilson intervals.",
                ),
                section("Rollouts", rollouts, line),
            ]
        parts += [
            section("Training", picture("curves.png", "loss and gradient norm over steps")),
            section(
                "Error of sampled actions on held-out episodes",
                _error_table(policy, run, metrics),
                "Mean absolute error over the steps of the chunk that are within the episode.",
            ),
            section(
                "Predicted and true chunks",
                _chunks(policy, run, folder, data_dir, frames),
                "Held-out frames; time runs to the right, steps past the episode's end are shaded.",
            ),
        ]
        (folder / PAGE).write_text(document(_TITLE, parts), encoding="utf-8")
    return output / PAGE


def _read_evaluation(evaluation: Path) -> dict[str, Any]:
    path = evaluation / "evaluation.json"
    if not path.exists():
        raise InputError(f"{path}: no evaluation there; launch.evaluate writes one")
    return json.loads(path.read_text())


def _summary(policy: Policy, run: RunConfig, metrics: Sequence[Mapping[str, float]]) -> str:
    parameters = sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(policy.params))
    weights = zip(run.datasets, run.weights, strict=True)
    datasets = ", ".join(f"{name} (weight {weight:g})" for name, weight in weights)
    done = f"{metrics[-1]['step']:,} of {run.steps:,} steps"
    timed = [line for line in metrics if "steps_per_second" in line]
    # The first of these times also holds the compilation.
    timed = timed[1:] or timed
    speed = np.median([line["steps_per_second"] for line in timed])
    waiting = np.median([line["data_wait_share"] for line in timed])
    rows = [
        ("variant", f"{run.variant}, {parameters:,} parameters"),
        ("datasets", datasets),
        ("training", f"{done}, batch {run.batch_size}, {run.draws} draws, seed {run.seed}"),
        ("speed", f"{speed:.2f} steps/s (median)"),
        ("waiting for data", f"{100 * waiting:.1f}% of the time (median)"),
    ]
    return table((), rows)


def _success_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a line for each robot and group, and a column for each condition."""
    cells = dict[tuple[str, str], dict[str, str]]()
    for row in rows:
        if episodes := row["episodes"]:
            low, high = (round(100 * end) for end in row["interval"])
            score = f"{row['successes']}/{episodes} ({low}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high}%)"
            cells.setdefault((row["robot"], row["group"]), {})[row["condition"]] = score
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    lines = [(*name, *(line.get(one, "") for one in conditions)) for name, line in cells.items()]
    return table(("robot", "group", *conditions), lines)


def _rollouts(source: Path, target: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Copies the pictures of an evaluation beside the page, and returns what shows them.

    They stand in the order of the conditions, with which a family's pictures begin.
    """
    target.mkdir()
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    places = {condition: place for place, condition in enumerate(conditions)}
    gifs = sorted(
        source.glob("*.gif"), key=lambda gif: (places.get(gif.name.split("-")[0], 0), gif.name)
    )
    for gif in gifs:
        shutil.copy(gif, target)
    return "\n".join(picture(f"rollouts/{gif.name}", gif.stem, gif.stem) for gif in gifs)


def _error_table(policy: Policy, run: RunConfig, metrics: Sequence[Mapping[str, float]]) -> str:
    validations = [line for line in metrics if "validation/loss" in line]
    if not validations:
        return "<p>Not validated yet.</p>"
    last, header = validations[-1], ("dataset", "dimension", "mean absolute error", "unit")
    rows = []
    for name in run.datasets:
        robot = policy.robots[name]
        stds = robot.statistics.actions.std.tolist()
        for dim, std in zip(robot.embodiment.actions, stds, strict=True):
            error = last[f"validation/{name}/error/{dim.name}"]
            rows.append((name, dim.name, error, dim.unit, std))
    return table((*header, "standard deviation in the data"), rows)


def _chunks(policy: Policy, run: RunConfig, output: Path, data_dir: str | None, frames: int) -> str:
    kept, place = run.keep_empty_language, (data_dir or run.data_dir, run.index_dir or None)
    rows = [find_row(one, run.own_datasets, keep_empty_language=kept) for one in run.datasets]
    indices = [open_index(row, *place) for row in rows]
    parts = []
    for i, sample in enumerate(held_out_samples(indices, per_dataset=frames, horizon=run.horizon)):
        name = run.datasets[sample.dataset]
        predicted = policy.act([sample.observation], [i], robot=name)[0]
        figures.chunk(sample, predicted, policy.robots[name].embodiment, output / f"chunk-{i}.png")
        said = f"held-out frame {i} of {name}: predicted and true chunk"
        parts.append(f"<p>{picture(f'chunk-{i}.png', said)}</p>")
    return "\n".join(parts)
