"""E5: two robots look the same and turn the other way. Must a policy be told which it drives?"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from pi0_jax.data.rows import Dataset
from pi0_jax.lab import arms, worlds
from pi0_jax.lab.arms import Arm
from pi0_jax.lab.plan import Expected, Experiment, Measuring, Outcomes, Pair, pooled
from pi0_jax.lab.runs import Training

ROBOTS = Arm("arm"), Arm("mirrored_arm", turn=-1)


class Told(NamedTuple):
    """Says what tells the robots apart: their prompts, motors' angles in the state, or tokens."""

    prompts: tuple[str, str] = (worlds.PROMPT, worlds.PROMPT)
    motors: bool = False
    tokens: tuple[str, ...] = ()

    @property
    def robots(self) -> list[tuple[Arm, str]]:
        """Returns the robots and their prompts."""
        robots = [robot._replace(motors=self.motors) for robot in ROBOTS]
        return list(zip(robots, self.prompts, strict=True))

    def write(self, data_dir: Path, seed: int) -> list[Dataset]:
        """Writes the same movements as demonstrations of either robot."""
        return [
            one.write(data_dir, seed, arms.DEMONSTRATIONS, prompt) for one, prompt in self.robots
        ]


_TOKENS = tuple(robot.name for robot in ROBOTS)
ARMS = {
    "nothing": Told(),
    "prompt": Told(prompts=("reach one", "reach two")),
    "state": Told(motors=True),
    "token": Told(tokens=_TOKENS),
    "state and token": Told(motors=True, tokens=_TOKENS),
}
TRAININGS = {
    arm: Training(
        f"whoami_{arm.replace(' ', '_')}",
        told.write,
        {"action_dim": 6, **({"embodiment_tokens": told.tokens} if told.tokens else {})},
    )
    for arm, told in ARMS.items()
}


def measure(arm: str, at: Measuring) -> Outcomes:
    """Lets one policy drive each of the robots."""
    policy = at.policy(TRAININGS[arm])
    found = {
        f"{arm}: {robot.name}": worlds.arrivals(
            at.rollouts(policy, partial(robot.setting, prompt), robot=robot.name)
        )
        for robot, prompt in ARMS[arm].robots
    }
    return {arm: pooled(found.values()), **found}


EXPERIMENT = Experiment(
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
    trainings=tuple(TRAININGS.values()),
    measure=tuple(partial(measure, arm) for arm in ARMS),
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
