"""E1: does flow matching take one of two ways, where regression takes their mean?"""

from pi0_jax.lab import gaussian, worlds
from pi0_jax.lab.detour import CHANGED, TWO_SIDES
from pi0_jax.lab.plan import Expected, Experiment, Measuring, Outcomes, Pair

_STEPS = {"flow": 10, "one step": 1}


def _rollouts(at: Measuring) -> Outcomes:
    """Rolls the policy out with 10 Euler steps and with one."""
    return {
        arm: worlds.outcomes(at.rollouts(at.policy(TWO_SIDES, steps), worlds.setting))
        for arm, steps in _STEPS.items()
    }


def _gaussian(at: Measuring) -> Outcomes:
    """Compares the Gaussian field with the exact one, with as many Euler steps."""
    found: Outcomes = {}
    for arm, steps in _STEPS.items():
        policy = at.policy(gaussian.GAUSSIAN, steps)
        learnt, exact = gaussian.variances(policy, at.seed)
        found[f"Gaussian, {arm}"] = {"variance": [learnt]}
        found[f"Gaussian, {arm}, exact field"] = {"variance": [exact]}
    found["Gaussian, flow"]["field error"] = [gaussian.field_error(policy, at.seed)]
    return found


EXPERIMENT = Experiment(
    name="generation",
    title="E1. Two ways round an obstacle: flow against regression",
    asked="The notes on the paper, first experiment (E1): why a flow, and not a regression of actions?",
    question="Demonstrations go round an obstacle by either side, and nothing seen says which. Does"
    " flow matching take one side, where a regression takes the mean of both, which is the"
    " obstacle?",
    design="One training a seed on 200 new demonstrations. The control is the same policy with one"
    " Euler step from noise: x - v(x, 1) = E[a | o], which is what a regression with squared error"
    " would learn. Both start the same episodes from the same noise and execute all 8 actions of a"
    " chunk. Beside it the same model learns actions that are a Gaussian process, whose velocity"
    " field has a closed form; sampled with the exact field and the same number of steps, it says"
    " what is due to Euler's method and what to learning.",
    limits="The control is this model's own estimate of the mean, not a network trained by"
    " regression. The world is small and without images; the obstacle lies where the mean goes,"
    " by design." + CHANGED,
    trainings=(TWO_SIDES, gaussian.GAUSSIAN),
    measure=(_rollouts, _gaussian),
    quantities={
        **worlds.QUANTITIES,
        "field error": "|v - v*| / |v*|, root mean square, at times of the training's density",
        "variance": "of sampled actions, over the data's",
    },
    primary="margin",
    told=("clearance", "success", "collision"),
    pairs=(
        Pair("flow", "one step"),
        Pair("Gaussian, flow", "Gaussian, flow, exact field", "variance"),
    ),
    expected=(
        Expected("flow succeeds in 95% or more", "success", "flow", low=0.95),
        Expected("flow touches the obstacle in 5% or less", "collision", "flow", high=0.05),
        Expected("the control touches it in half or more", "collision", "one step", low=0.5),
        Expected(
            "each side has 35% to 65%, in every seed", "upper side", "flow", "", 0.35, 0.65, True
        ),
        Expected("the field's error is 5% or less", "field error", "Gaussian, flow", high=0.05),
    ),
    seconds=90.0,
    revision=2,
)
