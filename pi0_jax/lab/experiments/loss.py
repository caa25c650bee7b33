"""E12, its other half: draws of noise per observation, and padded dimensions in the loss."""

from functools import partial

from pi0_jax.lab import worlds
from pi0_jax.lab.detour import TWO_SIDES
from pi0_jax.lab.plan import Experiment, Measuring, Outcomes, Pair

ONE_DRAW = TWO_SIDES._replace(name="two_sides_one_draw", changes={"draws": 1})
PADDED = TWO_SIDES._replace(name="two_sides_padded", changes={"loss_dims": "padded"})
ARMS = {"4 draws": TWO_SIDES, "1 draw": ONE_DRAW, "padded": PADDED}


def measure(arm: str, at: Measuring) -> Outcomes:
    """Runs the policy of one way to train; its episodes are those of the others."""
    return {arm: worlds.outcomes(at.rollouts(at.policy(ARMS[arm]), worlds.setting))}


EXPERIMENT = Experiment(
    name="loss",
    title="E12. Draws of noise per observation, and padded dimensions in the loss",
    asked="The notes on the paper (E12): the published code draws noise once for each observation and"
    " counts padded dimensions in the loss; this project may do otherwise.",
    question="What do four draws of noise and time per observation bring instead of one, at equal"
    " steps? Does it hurt that the loss counts dimensions which the robot has not?",
    design="E1's training on two sides (4 draws, the 2 real dimensions of 4), and the same with one"
    " draw, and with all 4 dimensions in the loss: same data, initial weights and order of frames.",
    limits="At equal steps, not at equal time: a step of one draw is cheaper. Half of"
    " the dimensions are padding here; a robot with 7 of 32 pads more.",
    trainings=tuple(ARMS.values()),
    measure=tuple(partial(measure, arm) for arm in ARMS),
    quantities=worlds.QUANTITIES,
    primary="margin",
    told=("success", "distance"),
    pairs=(Pair("4 draws", "1 draw"), Pair("4 draws", "padded")),
    expected=(),
    seconds=110.0,
    revision=2,
)
