"""E12: how many Euler steps are enough, and does it depend on how much of a chunk is executed?"""

import time
from pathlib import Path

import numpy as np

from pi0_jax.execution import OpenLoop
from pi0_jax.lab import figures, worlds
from pi0_jax.lab.experiments import gaussian
from pi0_jax.lab.experiments.detour import TWO_SIDES
from pi0_jax.lab.plan import Expected, Experiment, Means, Measuring, Outcomes
from pi0_jax.policy import Policy

STEPS, EXECUTED = (1, 2, 5, 10, 20), (1, 2, 4, 8)
_CALLS = 20


def measure(at: Measuring) -> Outcomes:
    """Runs every number of Euler steps with every number of executed actions."""
    found: Outcomes = {}
    one = at.trained[TWO_SIDES.name]
    for steps in STEPS:
        policy = one.policy(steps)
        found[f"{steps} steps"] = {"milliseconds": _timed(policy)}
        known = at.trained[gaussian.GAUSSIAN.name].policy(steps)
        for arm, variance in zip(_gaussian(steps), gaussian.variances(known, at.seed), strict=True):
            found[arm] = {"variance": [variance]}
        for executed in EXECUTED:
            episodes = one.rollouts(
                policy, worlds.setting, OpenLoop(executed), episodes=at.episodes, seed=at.seed
            )
            found[_arm(steps, executed)] = worlds.outcomes(episodes)
    return found


def _arm(steps: int, executed: int) -> str:
    return f"{steps} steps, executing {executed}"


def _gaussian(steps: int) -> tuple[str, str]:
    return f"{steps} steps, Gaussian", f"{steps} steps, Gaussian, exact field"


def _timed(policy: Policy) -> list[float]:
    """Returns the milliseconds of calls with one observation, after the first, which compiles."""
    (observation,) = worlds.observed(np.array([[-0.8, 0.0, 0.8, 0.0]]))
    taken = []
    for _ in range(_CALLS + 1):
        start = time.perf_counter()
        policy(observation)
        taken.append(1e3 * (time.perf_counter() - start))
    return taken[1:]


def draw(means: Means, path: Path) -> None:
    """Draws clearance, success and the Gaussian's variance against the number of Euler steps."""
    figures.lines(
        list(STEPS),
        {
            quantity: {
                f"executing {executed}": [
                    means.of(_arm(steps, executed), quantity) for steps in STEPS
                ]
                for executed in EXECUTED
            }
            for quantity in ("clearance", "success")
        }
        | {
            "variance": {
                name: [means.of(_gaussian(steps)[i], "variance") for steps in STEPS]
                for i, name in enumerate(("learnt", "exact field"))
            }
        },
        "Euler steps",
        path,
    )


EXPERIMENT = Experiment(
    name="euler",
    title="E12. Euler steps and the share of a chunk that is executed",
    asked="The paper integrates with 10 Euler steps (appendix B) and executes 16 of 50 or 25 of 50"
    " actions (appendix D), and shows no ablation; the notes on the paper ask for the table (E12).",
    question="How many Euler steps are enough where there are two ways, and does that depend on how"
    " many of a chunk's 8 actions are executed?",
    design="E1's policies, with nothing trained anew: 1, 2, 5, 10 and 20 Euler steps, each executing"
    " 1, 2, 4 and 8 actions, in the same episodes from the same noise. Beside it E1's policies of Gaussian actions: how"
    " much of the data's variance is left after so many steps, learnt and with the exact field.",
    limits="The milliseconds are those of a tiny model on a busy CPU; they show how time grows, not"
    " what a robot's policy takes.",
    trainings=(TWO_SIDES, gaussian.GAUSSIAN),
    measure=measure,
    quantities={
        **worlds.QUANTITIES,
        "milliseconds": "of a call with one observation",
        "variance": "of sampled actions, over the data's",
    },
    primary="clearance",
    pairs=(
        *((_arm(steps, 8), _arm(10, 8)) for steps in (1, 2, 5, 20)),
        *((_arm(steps, 4), _arm(10, 4)) for steps in (1, 2, 5, 20)),
        (_arm(1, 1), _arm(10, 1)),
        *(_gaussian(steps) for steps in (2, 5, 10, 20)),
    ),
    expected=(
        Expected(
            "10 steps succeed as often as 20, within 2 points",
            "success",
            _arm(10, 8),
            _arm(20, 8),
            low=-0.02,
            high=0.02,
        ),
    ),
    draw=draw,
    seconds=40.0,
    episodes=100,
)
