"""E12: how many Euler steps are enough, and does it depend on how much of a chunk is executed?"""

from pathlib import Path

from pi0_jax.execution import OpenLoop
from pi0_jax.lab import figures, gaussian, worlds
from pi0_jax.lab.detour import CHANGED, TWO_SIDES
from pi0_jax.lab.plan import Expected, Experiment, Means, Measuring, Outcomes, Pair

STEPS, EXECUTED = (1, 2, 5, 10, 20), (1, 2, 4, 8)


def _rollouts(at: Measuring) -> Outcomes:
    """Runs every number of Euler steps with every number of executed actions."""
    found: Outcomes = {}
    for steps in STEPS:
        policy = at.policy(TWO_SIDES, steps)
        for executed in EXECUTED:
            episodes = at.rollouts(policy, worlds.setting, OpenLoop(executed))
            found[_arm(steps, executed)] = worlds.outcomes(episodes)
    return found


def _gaussian(at: Measuring) -> Outcomes:
    """Finds how much variance is left after so many Euler steps, learnt and with the exact field."""
    found: Outcomes = {}
    for steps in STEPS:
        variances = gaussian.variances(at.policy(gaussian.GAUSSIAN, steps), at.seed)
        for arm, variance in zip(_known(steps), variances, strict=True):
            found[arm] = {"variance": [variance]}
    return found


def _arm(steps: int, executed: int) -> str:
    return f"{steps} steps, executing {executed}"


def _known(steps: int) -> tuple[str, str]:
    return f"{steps} steps, Gaussian", f"{steps} steps, Gaussian, exact field"


def draw(means: Means, path: Path) -> None:
    """Draws margin, success and the Gaussian's variance against the number of Euler steps."""
    lines = {
        quantity: {
            f"executing {executed}": [means.of(_arm(steps, executed), quantity) for steps in STEPS]
            for executed in EXECUTED
        }
        for quantity in ("margin", "success")
    }
    lines["variance"] = {
        name: [means.of(_known(steps)[i], "variance") for steps in STEPS]
        for i, name in enumerate(("learnt", "exact field"))
    }
    panels = {name: figures.Lines(STEPS, "Euler steps", line) for name, line in lines.items()}
    figures.draw(panels, path)


_AS_MANY = "10 steps succeed as often as 20, within 2 points"
EXPERIMENT = Experiment(
    name="euler",
    title="E12. Euler steps and the share of a chunk that is executed",
    asked="The paper integrates with 10 Euler steps (appendix B) and executes 16 of 50 or 25 of 50"
    " actions (appendix D), and shows no ablation; the notes on the paper ask for the table (E12).",
    question="How many Euler steps are enough where there are two ways, and does that depend on how"
    " many of a chunk's 8 actions are executed?",
    design="E1's policies, with nothing trained anew: 1, 2, 5, 10 and 20 Euler steps, each executing"
    " 1, 2, 4 and 8 actions, in the same episodes from the same noise. Beside it E1's policies of"
    " Gaussian actions: how much of the data's variance is left after so many steps, learnt and with"
    " the exact field.",
    limits="A tiny model in a plane: more dimensions may need more steps. The world answers at once, so"
    " executing fewer actions brings little." + CHANGED,
    trainings=(TWO_SIDES, gaussian.GAUSSIAN),
    measure=(_rollouts, _gaussian),
    quantities={**worlds.QUANTITIES, "variance": "of sampled actions, over the data's"},
    primary="margin",
    told=("clearance", "success"),
    pairs=(
        *(Pair(_arm(steps, 8), _arm(10, 8)) for steps in (20, 5, 2, 1)),
        *(Pair(_arm(steps, 4), _arm(10, 4)) for steps in (20, 5, 2, 1)),
        Pair(_arm(1, 1), _arm(10, 1)),
        *(Pair(*_known(steps), "variance") for steps in (2, 5, 10, 20)),
    ),
    expected=(Expected(_AS_MANY, "success", _arm(10, 8), _arm(20, 8), -0.02, 0.02),),
    draw=draw,
    seconds=40.0,
    revision=2,
    episodes=100,
)
