"""Says what an experiment is: its question, its trainings, what is measured, and what is compared."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pi0_jax.errors import InputError
from pi0_jax.execution import Execution, OpenLoop
from pi0_jax.lab.runs import BASE, DivergedError, Trained, Training
from pi0_jax.policy import Policy
from pi0_jax.sim.rollouts import recordings, rollout
from pi0_jax.sim.workers import OpenSetting, Workers
from pi0_jax.sim.worlds import Recording

# Arm -> quantity -> a number for each episode (or frame, or draw).
Outcomes = dict[str, dict[str, list[float]]]


def pooled(several: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Returns all numbers of several arms, by quantity, as those of one."""
    found: dict[str, list[float]] = {}
    for one in several:
        for name, values in one.items():
            found.setdefault(name, []).extend(values)
    return found


WHOLE_CHUNKS = OpenLoop(int(BASE["horizon"]))


class Measuring(NamedTuple):
    """Holds what a seed's measurement has at hand."""

    trained: Mapping[str, Trained | None]  # by the training's name; None where it diverged
    workers: Workers  # in which worlds run
    seed: int
    episodes: int

    def policy(self, training: Training, num_steps: int | None = None) -> Policy:
        """Opens a policy with so many Euler steps; raises DivergedError if its training diverged."""
        if (trained := self.trained[training.name]) is None:
            raise DivergedError(training.name)
        return trained.policy(num_steps)

    def rollouts(
        self,
        policy: Policy,
        setting: OpenSetting,
        execution: Execution = WHOLE_CHUNKS,
        robot: str | None = None,
    ) -> list[Recording]:
        """Runs episodes side by side, the same for all policies, and returns all of them, recorded.

        Of a policy with several robots, `robot` names the dataset whose robot acts.
        """
        rollout(
            self.workers, setting, partial(policy.act, robot=robot), episodes=self.episodes,
            seed=self.seed, parallel=self.episodes, execution=execution, record=self.episodes,
        )  # fmt: skip
        return recordings(self.workers)


class Expected(NamedTuple):
    """States what somebody expects of an arm's mean, or of its difference from another arm's.

    With `every` it is expected of each seed, and not of the mean over seeds.
    """

    text: str
    quantity: str
    arm: str
    minus: str = ""
    low: float = -math.inf
    high: float = math.inf
    every: bool = False


class Pair(NamedTuple):
    """Names a difference, arm - minus, and by which quantity it is judged; "": the primary one."""

    arm: str
    minus: str
    quantity: str = ""


class Experiment(NamedTuple):
    """Describes an experiment.

    Attributes:
        name: of the command's argument and of the folder.
        title, asked, question, design, limits: for the page; `asked` says who asked and where,
            `limits` what the results do not say.
        trainings: what is trained, once a seed, in this order.
        measure: the parts of one seed's measurement, each of arms of its own. A part that asks for a
            policy whose training diverged is left out, and the others are not.
        quantities: name -> meaning.
        primary: the quantity that was chosen before the run.
        told: further quantities of which differences are told.
        pairs: the differences that are looked at; the first was chosen before the run, and the
            others describe.
        expected: what the notes or the paper expect.
        draw: (the runs' means, a file): draws the figure; None draws a dot for every seed.
        seconds: CPU seconds of a seed, as measured.
        seeds: how many a full run takes.
        revision: is raised when what is measured changes, so that old results are not mixed in.
    """

    name: str
    title: str
    asked: str
    question: str
    design: str
    limits: str
    trainings: tuple[Training, ...]
    measure: tuple[Callable[[Measuring], Outcomes], ...]
    quantities: Mapping[str, str]
    primary: str
    told: tuple[str, ...]
    pairs: tuple[Pair, ...]
    expected: tuple[Expected, ...]
    seconds: float
    draw: "Callable[[Means, Path], None] | None" = None
    seeds: int = 12
    revision: int = 1
    episodes: int = 200


def check(experiment: Experiment) -> None:
    """Raises InputError if an experiment names a quantity or a training that is not there."""

    def known(kind: str, name: str, names: Iterable[str]) -> None:
        if name not in names:
            raise InputError(
                f"experiment {experiment.name}: {kind} {name!r} is unknown; expected one of"
                f" {', '.join(names)}"
            )

    named = [experiment.primary, *experiment.told]
    named += [one.quantity for one in experiment.expected]
    named += [one.quantity for one in experiment.pairs if one.quantity]
    for quantity in named:
        known("quantity", quantity, experiment.quantities)
    earlier: list[str] = []
    for training in experiment.trainings:
        if first := training.changes.get("initial_weights"):
            known("earlier training", first, earlier)
        earlier.append(training.name)


class Means:
    """Holds the mean of every arm and quantity in every run in which something was measured."""

    def __init__(self, experiment: Experiment, runs: Sequence[Mapping[str, Any]]) -> None:
        """Averages over episodes.

        Raises:
            InputError: a pair or an expectation names an arm that was not measured, and no training
                diverged.
        """
        self.runs = [run for run in runs if run.get("outcomes")]
        self.diverged = [run for run in runs if "diverged" in run]
        self.seeds: list[int] = [run["seed"] for run in self.runs]
        self.arms = tuple(dict.fromkeys(arm for run in self.runs for arm in run["outcomes"]))
        named = [arm for one in experiment.pairs for arm in (one.arm, one.minus)]
        named += [arm for one in experiment.expected for arm in (one.arm, one.minus) if arm]
        unknown = [arm for arm in named if arm not in self.arms]
        if unknown and self.runs and not self.diverged:
            raise InputError(
                f"experiment {experiment.name}: arm {unknown[0]!r} is unknown; expected one of"
                f" {', '.join(self.arms)}"
            )

    def of(self, arm: str, quantity: str) -> np.ndarray:
        """Returns the arm's mean in each run, float64[runs]; NaN where it was not measured."""
        found = (run["outcomes"].get(arm, {}).get(quantity, math.nan) for run in self.runs)
        return np.array([np.mean(values) for values in found])

    def has(self, arm: str, quantity: str) -> bool:
        """Returns whether this quantity of this arm was measured in any run."""
        return any(quantity in run["outcomes"].get(arm, {}) for run in self.runs)
