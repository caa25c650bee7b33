"""E2 and E5: one policy for several robots.

Does what arms of 2 and 3 links have learnt help an arm of 4 links? Two robots look the same and turn
the other way: must a policy be told which it drives?
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from pi0_jax.data.rows import Dataset
from pi0_jax.lab import arms, figures, worlds
from pi0_jax.lab.arms import Arm
from pi0_jax.lab.plan import Expected, Experiment, Measuring, Outcomes, Pair, pooled
from pi0_jax.lab.runs import Training

# ---- E2: an arm of 4 links

COUNTS = 5, 20, 80
KNOWN, NEW = (Arm("arm2", 2), Arm("arm3", 3)), Arm("arm4", 4)


def _write_joint(data_dir: Path, seed: int) -> list[Dataset]:
    """Writes the known arms' demonstrations, and the new one's, of which statistics are taken."""
    known = [arm.write(data_dir, seed, arms.DEMONSTRATIONS) for arm in KNOWN]
    return [*known, NEW.write(data_dir, seed, COUNTS[-1])]


def _write_new(count: int, data_dir: Path, seed: int) -> list[Dataset]:
    return [NEW.write(data_dir, seed, count)]


JOINT = Training("arms_joint", _write_joint, {"action_dim": 6, "statistics_only": (NEW.name,)})
METHODS = {"scratch": {}, "pre-trained": {"initial_weights": JOINT.name}}
NEW_ARMS = {
    f"{method}, {count}": Training(
        f"arms_{method.replace('-', '')}_{count}",
        partial(_write_new, count),
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


def measure_new(arm: str, at: Measuring) -> Outcomes:
    """Lets one policy drive the new arm."""
    return {arm: worlds.arrivals(at.rollouts(at.policy(NEW_ARMS[arm]), NEW.setting))}


EMBODIMENTS = Experiment(
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
    trainings=(JOINT, *NEW_ARMS.values()),
    measure=(measure_joint, *(partial(measure_new, arm) for arm in NEW_ARMS)),
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


# ---- E5: two robots that look the same

ALIKE = Arm("arm"), Arm("mirrored_arm", turn=-1)


class Told(NamedTuple):
    """Says what tells the robots apart: their prompts, motors' angles in the state, or tokens."""

    prompts: tuple[str, str] = (worlds.PROMPT, worlds.PROMPT)
    motors: bool = False
    tokens: tuple[str, ...] = ()

    @property
    def robots(self) -> list[tuple[Arm, str]]:
        """Returns the robots and their prompts."""
        robots = [robot._replace(motors=self.motors) for robot in ALIKE]
        return list(zip(robots, self.prompts, strict=True))

    def write(self, data_dir: Path, seed: int) -> list[Dataset]:
        """Writes the same movements as demonstrations of either robot."""
        return [
            one.write(data_dir, seed, arms.DEMONSTRATIONS, prompt) for one, prompt in self.robots
        ]


_TOKENS = tuple(robot.name for robot in ALIKE)
TOLD = {
    "nothing": Told(),
    "prompt": Told(prompts=("reach one", "reach two")),
    "state": Told(motors=True),
    "token": Told(tokens=_TOKENS),
    "state and token": Told(motors=True, tokens=_TOKENS),
}
TOLD_TRAININGS = {
    arm: Training(
        f"whoami_{arm.replace(' ', '_')}",
        told.write,
        {"action_dim": 6, **({"embodiment_tokens": told.tokens} if told.tokens else {})},
    )
    for arm, told in TOLD.items()
}


def measure_told(arm: str, at: Measuring) -> Outcomes:
    """Lets one policy drive each of the robots."""
    policy = at.policy(TOLD_TRAININGS[arm])
    found = {
        f"{arm}: {robot.name}": worlds.arrivals(
            at.rollouts(policy, partial(robot.setting, prompt), robot=robot.name)
        )
        for robot, prompt in TOLD[arm].robots
    }
    return {arm: pooled(found.values()), **found}


WHOAMI = Experiment(
    name="whoami",
    title="E5. Two robots that look the same: nothing, prompt, state or a token tells them apart",
    asked="The paper gives its model no token of the robot; its readers ask whether it needs one. The"
    " notes on it (E5) expect that it does where the state does not tell the robot.",
    question="The same action turns the joints of one arm one way and those of the other one the other"
    " way. Can a policy drive both that is told nothing? Is its name in the prompt enough, or a state"
    " that tells it, or a learnt token?",
    design="Two arms of two links have the same 200 demonstrations with opposite actions, so nothing that"
    " is seen tells them apart. Five policies are trained: with nothing else; with another prompt for"
    " each; with the motors' angles in the state, which turn with the joints or against them; with a"
    " learnt token (`embodiment_tokens`); with both of the last. Each drives each arm to the same goals.",
    limits="Two robots of one kind, in a tiny model, and a state that is complete otherwise. Robots that"
    " look different tell themselves apart. States and actions are normalised for each robot apart, so"
    " a number in the state that never changes for a robot would tell nothing.",
    trainings=tuple(TOLD_TRAININGS.values()),
    measure=tuple(partial(measure_told, arm) for arm in TOLD),
    quantities=arms.QUANTITIES,
    primary="distance",
    told=("success",),
    pairs=(
        Pair("token", "nothing"),
        Pair("prompt", "nothing"),
        Pair("state", "nothing"),
        Pair("token", "prompt"),
        Pair("token", "state"),
        Pair("state and token", "state"),
    ),
    expected=(
        Expected("a token brings 20 points", "success", "token", "nothing", 0.2),
        Expected("the prompt brings 20 points", "success", "prompt", "nothing", 0.2),
        Expected(
            "where the state tells the robot, a token changes 3 points at most",
            "success", "state and token", "state", -0.03, 0.03,
        ),
    ),
    seconds=190.0,
)  # fmt: skip
