"""E2: does what arms of 2 and 3 links have learnt help an arm of 4 links?"""

from functools import partial
from pathlib import Path

from pi0_jax.data.rows import Dataset
from pi0_jax.lab import arms, figures, worlds
from pi0_jax.lab.arms import Arm
from pi0_jax.lab.plan import Expected, Experiment, Measuring, Outcomes, Pair
from pi0_jax.lab.runs import Training

COUNTS = 5, 20, 80
KNOWN, NEW = (Arm("arm2", 2), Arm("arm3", 3)), Arm("arm4", 4)


def _write_all(data_dir: Path, seed: int) -> list[Dataset]:
    """Writes the known arms' demonstrations, and the new one's, of which statistics are taken."""
    known = [arm.write(data_dir, seed, arms.DEMONSTRATIONS) for arm in KNOWN]
    return [*known, NEW.write(data_dir, seed, COUNTS[-1])]


def _write(count: int, data_dir: Path, seed: int) -> list[Dataset]:
    return [NEW.write(data_dir, seed, count)]


JOINT = Training("arms_joint", _write_all, {"action_dim": 6, "statistics_only": (NEW.name,)})
METHODS = {"scratch": {}, "pre-trained": {"initial_weights": JOINT.name}}
ARMS = {
    f"{method}, {count}": Training(
        f"arms_{method.replace('-', '')}_{count}",
        partial(_write, count),
        {"action_dim": 6, "steps": 600, **changes},
    )
    for method, changes in METHODS.items()
    for count in COUNTS
}


def measure_joint(at: Measuring) -> Outcomes:
    """Lets the joint policy drive the arms that it knows, and the one that it does not."""
    policy, names = at.policy(JOINT), {"2 links": KNOWN[0], "3 links": KNOWN[1], "zero-shot": NEW}
    return {
        name: worlds.arrivals(at.rollouts(policy, arm.setting, robot=arm.name))
        for name, arm in names.items()
    }


def measure(arm: str, at: Measuring) -> Outcomes:
    """Lets one policy drive the new arm."""
    return {arm: worlds.arrivals(at.rollouts(at.policy(ARMS[arm]), NEW.setting))}


EXPERIMENT = Experiment(
    name="embodiments",
    title="E2. An arm of 4 links after arms of 2 and 3 links",
    asked="The paper trains one model on seven robots with states and actions padded with zeros, and has"
    " no robot that it did not see; the notes on it (E2) ask for a held-out one.",
    question="A policy has learnt to reach with arms of 2 and 3 links. What does it do with an arm of 4"
    " links, before and after 5, 20 or 80 demonstrations of it? How does one from scratch compare that"
    " has the same demonstrations and steps?",
    design="Pre-training takes 200 demonstrations of each of the two arms in one mixture, 1,500 steps. The"
    " new arm's policies are trained for 600 steps at the same rate, from these weights or from scratch."
    " Goals, then joints, fill the state, and zeros the rest. Zero-shot takes no step, but statistics of"
    " the 80 demonstrations that normalise the new arm's states and actions.",
    limits="The arms differ in their number of links alone, reach for the same goals and are 1 long. From"
    " pre-trained weights 2,100 steps lie behind a policy, from scratch 600. No rate was tuned.",
    trainings=(JOINT, *ARMS.values()),
    measure=(measure_joint, *(partial(measure, arm) for arm in ARMS)),
    quantities=arms.QUANTITIES,
    primary="distance",
    told=("success",),
    pairs=(
        *(Pair(f"pre-trained, {count}", f"scratch, {count}") for count in (20, 5, 80)),
        Pair("zero-shot", "scratch, 5"),
    ),
    expected=(
        Expected("with 80, 15 points over scratch (said of 50)", "success", "pre-trained, 80", "scratch, 80", 0.15),
        Expected("with 20, 15 points over scratch (said of 50)", "success", "pre-trained, 20", "scratch, 20", 0.15),
    ),
    draw=partial(
        figures.draw_by_count, methods=METHODS, counts=COUNTS, quantities=arms.QUANTITIES
    ),
    seconds=150.0,
)  # fmt: skip
