"""Runs an experiment: one-thread processes side by side, a seed each, and keeps what they found.

    output/trained/<training>/seed_<n>/    a run (runs.py), shared by all experiments that name it
    output/<experiment>/seed_<n>.json      what was measured of it; .log: what was printed
    output/<experiment>/results.json       all of it, with the pilot's
    output/<experiment>/index.html         the page

A seed whose file is there is done. So a command that was stopped goes on. After a SIGKILL its
processes end the seeds that they have.
"""

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import loky
import numpy as np
from tqdm import tqdm

from pi0_jax import compilation
from pi0_jax.errors import InputError
from pi0_jax.files import replacing
from pi0_jax.lab import runs
from pi0_jax.lab.experiments import EXPERIMENTS
from pi0_jax.lab.plan import Experiment, Measuring, Outcomes, check
from pi0_jax.sim.workers import Workers

PILOT_SEED, PILOT_SEEDS = 1000, 4  # a pilot has seeds of its own
QUICK_SEEDS, QUICK_EPISODES = 2, 6
RESULTS = "results.json"
ONE_THREAD_FLAG = "--xla_cpu_multi_thread_eigen=false"
_IDLE_S = 10  # a process without work ends, as when this one was killed


class Options(NamedTuple):
    """Holds how an experiment is run."""

    output: Path
    seeds: int | None = None  # None takes the experiment's own number
    pilot: bool = False
    quick: bool = False
    processes: int | None = None  # None takes one for each core
    cache: str | None = None  # the folder of compiled programs, see compilation.keep
    command: str = ""  # is told on the page


def find(name: str) -> Experiment:
    """Returns the experiment of this name; raises InputError if there is none."""
    if name not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise InputError(f"experiment {name!r} is unknown; expected one of {known}")
    check(EXPERIMENTS[name])
    return EXPERIMENTS[name]


def run(experiment: Experiment, options: Options, say: Callable[[str], None]) -> Path:
    """Runs the seeds that are missing and writes results.json, whose path it returns.

    Raises:
        InputError: a file or a run that is there was made by another version or config.
    """
    folder = options.output / experiment.name
    first = PILOT_SEED if options.pilot else 0
    usual = QUICK_SEEDS if options.quick else PILOT_SEEDS if options.pilot else experiment.seeds
    seeds = range(first, first + (options.seeds or usual))
    made_with = _made_with(experiment, options)
    there = _all_read(folder, made_with)  # before a run, so that what is refused costs no time
    missing = [seed for seed in seeds if seed not in there]
    processes = min(options.processes or loky.cpu_count(), max(len(missing), 1))
    if missing:
        minutes = len(missing) * experiment.seconds * (0.2 if options.quick else 1) / 60
        say(
            f"{experiment.name}: {len(missing)} of {len(seeds)} seeds to run, {max(1, round(minutes))}"
            f" CPU minutes on quiet cores: about {max(1, round(minutes / processes))} minutes with"
            f" {processes} processes, and a minute more to compile; the same command goes on after"
            " a stop"
        )
        start = time.monotonic()
        # The processes are fresh interpreters, so what they import sees these variables.
        with loky.ProcessPoolExecutor(processes, timeout=_IDLE_S, env=one_thread()) as pool:
            jobs = {
                pool.submit(_run_seed, experiment.name, seed, options): seed for seed in missing
            }
            with contextlib.ExitStack() as failing:
                # Otherwise all other seeds would be run before an error is told.
                failing.callback(pool.shutdown, kill_workers=True)
                for number, job in enumerate(as_completed(jobs), 1):
                    found = job.result()
                    took = (time.monotonic() - start) / 60
                    told = ", ".join(f"{one} diverged" for one in found.get("diverged", ()))
                    told = told or f"{found['cpu_seconds']:.0f} CPU s"
                    say(f"  seed {jobs[job]}: {told}; {number} of {len(missing)}, {took:.1f} min")
                failing.pop_all()
    return _gather(experiment, folder, options, made_with)


def one_thread() -> dict[str, str]:
    """Returns the variables of a process of one thread: two of these beat one of two threads."""
    flags = os.environ.get("XLA_FLAGS", "")
    return {
        "NPROC": "1",
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": f"{flags} {ONE_THREAD_FLAG}",
        "JAX_PLATFORMS": "cpu",
    }


def _run_seed(name: str, seed: int, options: Options) -> dict[str, Any]:
    """Trains and measures one seed, in a process of its own, and writes its file."""
    # The default, a lock that processes share, is reported as leaked when this process is killed.
    tqdm.set_lock(threading.RLock())
    compilation.keep(options.cache)
    start, experiment = time.process_time(), find(name)
    path = options.output / name / f"seed_{seed}.json"
    found: dict[str, Any] = {
        "seed": seed,
        "made_with": _made_with(experiment, options),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": options.command,
        "outcomes": {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Libraries' logs and child processes write to these descriptors, whatever sys.stderr is.
    with path.with_suffix(".log").open("w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    trained, diverged = _train(experiment, seed, options)
    if diverged:
        found["diverged"] = diverged
    done = [(training, one) for training in experiment.trainings if (one := trained[training.name])]
    found["curves"] = {training.name: one.curve() for training, one in done}
    found["configs"] = {training.name: runs.deciding(one.run, training) for training, one in done}
    episodes = QUICK_EPISODES if options.quick else experiment.episodes
    with Workers(1) as workers:
        for part in experiment.measure:
            with contextlib.suppress(runs.DivergedError):  # told already
                measured = part(Measuring(trained, workers, seed, episodes))
                found["outcomes"] |= _rounded(measured)
    found["cpu_seconds"] = round(time.process_time() - start, 1)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def _train(
    experiment: Experiment, seed: int, options: Options
) -> tuple[dict[str, runs.Trained | None], dict[str, str]]:
    """Trains one after the other; returns the policies, None where it diverged, and why it did."""
    trained: dict[str, runs.Trained | None] = {}
    diverged: dict[str, str] = {}
    for training in experiment.trainings:
        folder = options.output / "trained" / training.name / f"seed_{seed}"
        try:
            if (first := training.changes.get("initial_weights", "")) in diverged:
                raise runs.DivergedError(f"it begins with {first}")
            trained[training.name] = runs.trained(training, folder, seed, quick=options.quick)
        except runs.DivergedError as error:
            trained[training.name], diverged[training.name] = None, str(error)
    return trained, diverged


def _rounded(outcomes: Outcomes) -> Outcomes:
    """Returns the numbers with five digits and whole ones without a point: small files."""

    def short(value: float) -> float:
        value = float(f"{value:.5g}")
        return int(value) if value.is_integer() else value

    return {
        arm: {name: [short(one) for one in np.ravel(values)] for name, values in quantities.items()}
        for arm, quantities in outcomes.items()
    }


def _made_with(experiment: Experiment, options: Options) -> dict[str, Any]:
    """Returns what decides a seed's numbers beside the seed."""
    changes = {training.name: dict(training.changes) for training in experiment.trainings}
    episodes = QUICK_EPISODES if options.quick else experiment.episodes
    plan = {"revision": experiment.revision, "quick": options.quick, "episodes": episodes}
    stated = {**plan, "versions": runs.versions(), "base": dict(runs.BASE), "trainings": changes}
    plain: dict[str, Any] = json.loads(json.dumps(stated))
    return plain


def _all_read(folder: Path, made_with: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Returns the results of every seed that is there, by seed.

    Raises:
        InputError: one was made by another version or config.
    """
    found = {}
    for path in folder.glob("seed_*.json"):
        one = json.loads(path.read_text())
        for name, expected in made_with.items():
            if (theirs := one["made_with"].get(name)) != expected:
                raise InputError(
                    f"{path}: {name}: expected {expected}, found {theirs}; delete it, or take another"
                    " --output"
                )
        found[one["seed"]] = one
    return dict(sorted(found.items()))


def _gather(
    experiment: Experiment, folder: Path, options: Options, made_with: dict[str, Any]
) -> Path:
    """Writes results.json of all seeds that are there, the pilot's apart, and returns its path."""
    found = _all_read(folder, made_with)
    short: dict[int, dict[str, Any]] = {
        # Without what all runs share.
        seed: {name: run[name] for name in run if name not in ("made_with", "configs")}
        for seed, run in found.items()
    }
    record = {
        "experiment": experiment.name,
        "machine": f"{platform.machine()}, {loky.cpu_count()} cores",
        "made_with": made_with,
        # Those of the first run; the others' have another seed.
        "configs": next((run["configs"] for run in found.values() if run["configs"]), {}),
        "runs": [run for seed, run in short.items() if seed < PILOT_SEED],
        "pilot": [run for seed, run in short.items() if seed >= PILOT_SEED],
    }
    with replacing(folder / RESULTS) as temporary:
        temporary.write_text(json.dumps(record, separators=(",", ":")))
    return folder / RESULTS
