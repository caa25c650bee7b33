"""Trains one policy of an experiment, by the project's own command's functions.

A run's folder holds all of it:

    data/       its demonstrations, as RLDS, with their index
    train/      what launch.train would have written: checkpoints, config.json, metrics.jsonl
    config.py   python -m launch.train --config=config.py --workdir=DIR trains the same policy
"""

import json
import platform
import pprint
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import pi0_jax
from pi0_jax import checkpoints, train
from pi0_jax.data.rows import Dataset
from pi0_jax.errors import InputError
from pi0_jax.files import replacing
from pi0_jax.policy import Policy
from pi0_jax.train import config
from pi0_jax.train.config import FREE_FIELDS, RunConfig
from pi0_jax.train.metrics import read_metrics

# What differs from the defaults in every run: from the state alone, from scratch, on one CPU thread.
BASE: Mapping[str, Any] = {
    "variant": "femto",
    "action_dim": 4,
    "horizon": 8,
    "max_tokens": 8,
    "tokenizer": "small",
    "cut_prompts": False,
    "dtype": "float32",
    "scan_layers": False,
    "remat": "none",
    "augment": False,
    "initial_weights": "",
    "draws": 4,
    "loss_dims": "real",
    "batch_size": 64,
    "steps": 1500,  # 30 CPU s; at 750 steps flow still touched the obstacle in a trial
    "learning_rate": 5e-3,
    "end_learning_rate": 0.0,
    "warmup_steps": 50,
    "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
    "log_every": 50,
    "save_every": 500,
    "keep_checkpoints": 1,
    "validation_frames": 0,
    "loader_threads": 1,
    "prefetch_batches": 2,
}
QUICK: Mapping[str, Any] = {"steps": 40, "warmup_steps": 10}  # nothing is learnt


class Training(NamedTuple):
    """Describes one training of an experiment.

    Attributes:
        name: the name of its folder. Experiments that name the same training share its runs.
        write: (folder of datasets, seed) -> the rows of the datasets, which it has written there.
        changes: the fields of the config that differ from BASE; but `initial_weights` names an
            earlier training of the experiment, with whose weights of the same seed it starts, and
            what `statistics_only` names is not trained on.
    """

    name: str
    write: Callable[[Path, int], Sequence[Dataset]]
    changes: Mapping[str, Any]


class Trained(NamedTuple):
    """Holds a trained policy's folder and config."""

    folder: Path
    run: RunConfig

    def policy(self, num_steps: int | None = None) -> Policy:
        """Opens the policy, with so many Euler steps; None takes the config's 10."""
        return Policy.open(self.folder / "train", num_steps=num_steps)

    def curve(self) -> list[tuple[int, float]]:
        """Returns steps and losses."""
        lines = [line for line in read_metrics(self.folder / "train") if "loss" in line]
        return [(int(line["step"]), round(line["loss"], 5)) for line in lines]


def configured(
    training: Training, folder: Path, rows: Sequence[Dataset], seed: int, *, quick: bool
) -> RunConfig:
    """Returns the config of a run, checked."""
    stated = {
        **BASE,
        **training.changes,
        **(QUICK if quick else {}),
        "seed": seed,
        "data_dir": str(folder / "data"),
        "own_datasets": {row.name: row for row in rows},
    }
    lends = stated.get("statistics_only", ())
    stated["datasets"] = tuple(row.name for row in rows if row.name not in lends)
    if start := stated["initial_weights"]:
        stated["initial_weights"] = str(folder.parents[1] / start / folder.name / "train")
    page = config.defaults()
    page.update(stated)
    return train.resolve(page)


def deciding(run: RunConfig, training: Training) -> dict[str, Any]:
    """Returns the fields that decide a run's numbers, as plain data and without places of files."""
    stated = {name: value for name, value in config.to_json(run).items() if name not in FREE_FIELDS}
    return {**stated, **training.changes}


class DivergedError(Exception):
    """Says why a run stopped whose loss or gradient was not finite."""


def versions() -> dict[str, str]:
    """Returns the versions of what decides a run's numbers."""
    found = {"pi0_jax": pi0_jax.__version__, "jax": jax.__version__, "numpy": np.__version__}
    return {**found, "python": platform.python_version()}


def trained(training: Training, folder: Path, seed: int, *, quick: bool) -> Trained:
    """Trains a policy in a folder, or goes on there, or finds it trained.

    Raises:
        InputError: the folder holds a run of another config or of other versions, or a signal
            stopped the training, which goes on with the next call.
        DivergedError: the loss or the gradient was not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_versions(folder / "versions.json")
    rows = training.write(folder / "data", seed)
    run = configured(training, folder, rows, seed, quick=quick)
    workdir = folder / "train"
    if checkpoints.latest_step(workdir) is not None:
        stored = checkpoints.read_description(checkpoints.find(workdir))
        before = config.from_halves(stored.policy, stored.training, f"{workdir}: config")
        config.check_resumes(run, before)
        if stored.position == run.steps:
            return Trained(folder, run)
    (folder / "config.py").write_text(_CONFIG.format(fields=pprint.pformat(config.to_json(run))))
    reports = _nonfinite(workdir)
    try:
        train.run(run, workdir)
    except InputError as error:
        if _nonfinite(workdir) == reports:
            raise
        raise DivergedError(" ".join(str(error).split())) from error
    # A signal makes a training save and return.
    if (done := checkpoints.latest_step(workdir) or 0) < run.steps:
        raise InputError(f"{workdir}: stopped after step {done} of {run.steps}")
    return Trained(folder, run)


def _check_versions(file: Path) -> None:
    """Notes the versions in a new folder; raises InputError if the folder is of others."""
    if not file.exists():
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(versions()))
    if (found := json.loads(file.read_text())) != versions():
        raise InputError(
            f"{file}: expected {versions()}, found {found}; delete the folder, or take another --output"
        )


def _nonfinite(workdir: Path) -> dict[str, int]:
    """Returns the reports of losses that were not finite, and when they were written."""
    return {str(file): file.stat().st_mtime_ns for file in (workdir / "nonfinite").rglob("*")}


_CONFIG = '''"""The config of the run in this folder."""

from ml_collections import ConfigDict

from pi0_jax.train import config

FIELDS = {fields}


def get_config() -> ConfigDict:
    c = config.defaults()
    for name, value in FIELDS.items():
        c[name] = value
    return c
'''
