"""E11: what must demonstrations show, so that a policy recovers from a push?"""

from functools import partial

import numpy as np

from pi0_jax.execution import OpenLoop
from pi0_jax.lab import worlds
from pi0_jax.lab.experiments.detour import Shown, route, taken, training
from pi0_jax.lab.plan import Expected, Experiment, Measuring, Outcomes, Pair

_TASK = route("above")
EXECUTION = OpenLoop(worlds.PUSH_TICK)  # what a pushed point sees first is seen by a new chunk
CLEAN, DIVERSE, PERTURBED = (
    Shown(name, _TASK.sides, prompt=_TASK.prompt, manner=manner)
    for name, manner in (
        ("clean", worlds.Manner(jolt=0.0)),
        ("diverse", worlds.Manner(mistakes=0.1, dawdling=0.6, ticks=48)),
        ("perturbed", worlds.Manner(jolt=0.06, ticks=30)),
    )
)
_FIRST = training("recovery_first", DIVERSE, steps=750)
ARMS = {
    "clean": training("recovery_clean", CLEAN),
    "diverse": training("recovery_diverse", DIVERSE),
    "diverse, then clean": training("recovery_both", CLEAN, steps=750, initial_weights=_FIRST.name),
    "perturbed": training("recovery_perturbed", PERTURBED),
}


def measure(arm: str, at: Measuring) -> Outcomes:
    """Runs one policy, pushed and left alone."""
    policy, found = at.policy(ARMS[arm]), Outcomes()
    for name, pushed in ((f"{arm}: pushed", True), (arm, False)):
        found[name] = taken(at, policy, _TASK, EXECUTION, pushed=pushed)
        found[name]["log ticks"] = [float(np.log(ticks)) for ticks in found[name]["ticks"]]
    return found


_BOTH = "diverse, then clean"
EXPERIMENT = Experiment(
    name="recovery",
    title="E11. Recovery from a push: clean, diverse and perturbed demonstrations",
    asked="The paper (section V-A) argues that pre-training on diverse data teaches to recover from"
    " mistakes, and post-training on clean data to be fluent; a reader's note (A) asks whether"
    " imitation can learn recovery at all.",
    question="A point is pushed on its way. Does a policy get back to its route that has seen clean"
    " demonstrations alone? Do diverse ones teach it, does that survive a second training on"
    " clean ones, and is it faster then? Are clean demonstrations enough if their states are"
    " perturbed?",
    design="200 demonstrations of one route. Clean: straight along it. Diverse: at 40% to 100% of the"
    " speed, with a large mistake in each tenth tick, and the way back. Perturbed: every tick is"
    " disturbed, and the action is the clean expert's. Each policy is trained for 1,500 steps;"
    " diverse, then clean takes 750 of each. A chunk's first 4 actions are executed. After"
    " the fourth the point is pushed by 0.3 to 0.5, up or down, and then a new chunk begins.",
    limits="The push is of the kind that diverse demonstrations show. The point answers at once, and"
    " its state is seen.",
    trainings=(_FIRST, *ARMS.values()),
    measure=tuple(partial(measure, arm) for arm in ARMS),
    quantities={**worlds.QUANTITIES, "log ticks": "natural logarithm of an episode's length"},
    primary="gap",
    told=("success", "ticks"),
    pairs=(
        Pair(f"{_BOTH}: pushed", "clean: pushed"),
        Pair(f"{_BOTH}: pushed", "diverse: pushed"),
        Pair("perturbed: pushed", "clean: pushed"),
        Pair("perturbed: pushed", f"{_BOTH}: pushed"),
        Pair("diverse: pushed", "clean: pushed"),
        Pair(_BOTH, "clean"),
        Pair(_BOTH, "diverse", "log ticks"),
    ),
    expected=(
        Expected(
            "pushed, 15 points more of diverse, then clean succeed than of clean",
            "success", f"{_BOTH}: pushed", "clean: pushed", 0.15,
        ),
        Expected(
            "diverse, then clean is 15% faster than diverse",
            "log ticks", _BOTH, "diverse", high=float(np.log(0.85)),
        ),
    ),
    seconds=190.0,
)  # fmt: skip
