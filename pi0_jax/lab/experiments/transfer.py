"""E9: does a task with few demonstrations gain from being learnt with another one?"""

from functools import partial
from pathlib import Path

import numpy as np

from pi0_jax.data.rows import Dataset
from pi0_jax.lab import data, worlds
from pi0_jax.lab.detour import DEMONSTRATIONS, route, taken, training, write
from pi0_jax.lab.experiments import posttraining
from pi0_jax.lab.plan import Expected, Experiment, Measuring, Outcomes, Pair
from pi0_jax.lab.runs import Training

TASK = route("far above", 4)
_STEPS, _RADIUS, _TURN = 750, 0.6, 0.15  # steps of the task; of circles: radius, radians in a tick


def _circling(data_dir: Path, seed: int) -> list[Dataset]:
    """Writes the task, and as many circles round the middle as others have demonstrations."""
    rng = np.random.default_rng([seed, 0xC12C])
    _, goal = worlds.begin(rng.integers(2**32, size=DEMONSTRATIONS), varied=True)
    ticks = np.arange(worlds.DEMONSTRATION_TICKS + 1)
    angle = rng.uniform(0, 2 * np.pi, (DEMONSTRATIONS, 1)) + _TURN * ticks
    circle = _RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=2)
    goals = np.broadcast_to(goal[:, None], circle[:, 1:].shape)
    at = circle[:, :-1] + rng.normal(0.0, worlds.JOLT, circle[:, 1:].shape)
    states = np.concatenate([at, goals], axis=2).astype(np.float32)
    actions = circle[:, 1:].astype(np.float32)
    row = data.write(data_dir, "circle", worlds.RECORD, states, actions, "circle", {"seed": seed})
    return [*write((TASK,), data_dir, seed), row]


ARMS = {
    "alone": training("transfer_alone", TASK, steps=_STEPS),
    "alone, twice the steps": posttraining.ARMS["scratch"][4],
    "related": training("transfer_related", TASK, route("above"), steps=2 * _STEPS),
    "mirrored": training("transfer_mirrored", TASK, route("below"), steps=2 * _STEPS),
    "unrelated": Training("transfer_unrelated", _circling, {"steps": 2 * _STEPS}),
}


def measure(arm: str, at: Measuring) -> Outcomes:
    """Asks one policy for the task that has few demonstrations."""
    return {arm: taken(at, at.policy(ARMS[arm]), TASK)}


EXPERIMENT = Experiment(
    name="transfer",
    title="E9. A task with four demonstrations, alone and beside another one",
    asked="The paper leaves open how much tasks gain from each other (its discussion); the notes on the"
    " paper (E9) ask what a task gains from a related and from an unrelated one.",
    question="Does a task with 4 demonstrations gain from being trained with 200 of another one, at"
    " equal steps of its own? Does it matter whether the other is related?",
    design="The task is to go far above the obstacle. It is trained alone for 750 steps, or in a mixture"
    " that takes half of its frames from another task and has twice the steps: to go above (related),"
    " to go below (its mirror image), or to circle round the middle, whatever the goal (unrelated)."
    " Alone with twice the steps it tells what the longer training does. The 4 demonstrations, the"
    " initial weights and the episodes are the same.",
    limits="Every task is normalised by statistics of its own demonstrations. One task and three"
    " partners say little of others. That 4 demonstrations are few was seen in pilots on other seeds.",
    trainings=tuple(ARMS.values()),
    measure=tuple(partial(measure, arm) for arm in ARMS),
    quantities=worlds.QUANTITIES,
    primary="gap",
    told=("distance", "success"),
    pairs=tuple(
        Pair(*pair)
        for pair in (
            ("related", "alone"), ("unrelated", "alone"), ("mirrored", "alone"),
            ("related", "unrelated"), ("related", "mirrored"), ("unrelated", "alone, twice the steps"),
        )
    ),
    expected=(Expected("a related task helps", "success", "related", "alone", 0.0),),
    seconds=160.0,
)  # fmt: skip
