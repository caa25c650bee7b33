"""Holds what several experiments share: demonstrations of ways round the obstacle, and trainings."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pi0_jax.data.rows import Dataset
from pi0_jax.execution import Execution
from pi0_jax.lab import data, worlds
from pi0_jax.lab.plan import WHOLE_CHUNKS, Measuring
from pi0_jax.lab.runs import Training
from pi0_jax.policy import Policy

DEMONSTRATIONS = 200

# For the pages of experiments that were measured before and after.
CHANGED = (
    " The primary quantity was clearance when these seeds were first measured. It was changed to the"
    " margin afterwards, because clearance also rewards a point that never arrives, so the choice was"
    " not blind to these seeds; the differences of clearance are told beside."
)


class Shown(NamedTuple):
    """Says what a dataset demonstrates, in which manner, and how often."""

    name: str
    sides: tuple[float, ...]
    episodes: int = DEMONSTRATIONS
    prompt: str = worlds.PROMPT
    manner: worlds.Manner = worlds.USUAL


def route(prompt: str, episodes: int = DEMONSTRATIONS) -> Shown:
    """Returns demonstrations of the route that a prompt names, whose starts and goals vary."""
    sides, varied = (worlds.ROUTES[prompt],), worlds.Manner(varied=True)
    return Shown(prompt.replace(" ", "_"), sides, episodes, prompt, varied)


def write(shown: Sequence[Shown], data_dir: Path, seed: int) -> list[Dataset]:
    """Writes datasets; fewer than 200 episodes are the first of these 200."""
    rows = []
    for name, sides, episodes, prompt, manner in shown:
        # Each route has starts and goals of its own.
        stream = 1 + list(worlds.ROUTES).index(prompt) if prompt in worlds.ROUTES else 0
        count = max(episodes, DEMONSTRATIONS)
        drawn = worlds.demonstrations(count, seed + 100_000 * stream, sides, manner)
        states, actions = (part[:episodes] for part in drawn[:2])
        settings = {"seed": seed, "sides": list(sides), "episodes": episodes}
        if manner != worlds.USUAL:
            settings["manner"] = manner._asdict()
        rows.append(data.write(data_dir, name, worlds.RECORD, states, actions, prompt, settings))
    return rows


def training(name: str, *shown: Shown, **changes: Any) -> Training:
    """Returns a training on these datasets."""
    return Training(name, partial(write, shown), changes)


def taken(
    at: Measuring,
    policy: Policy,
    shown: Shown,
    execution: Execution = WHOLE_CHUNKS,
    *,
    pushed: bool = False,
) -> dict[str, list[float]]:
    """Returns what episodes show, by quantity, in which a policy is asked to do what was shown."""
    robot = shown.name if len(policy.robots) > 1 else None
    return worlds.outcomes(
        at.rollouts(
            policy,
            partial(worlds.setting, shown.prompt, shown.manner.varied, pushed),
            execution,
            robot,
        )
    )


TWO_SIDES = training("two_sides", Shown("two_sides", (1, -1)))
ONE_SIDE = training("one_side", Shown("one_side", (1,)))
