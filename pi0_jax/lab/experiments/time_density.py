"""E12: with which density should training draw times?"""

from functools import partial

import numpy as np

from pi0_jax.lab import gaussian, worlds
from pi0_jax.lab.detour import TWO_SIDES
from pi0_jax.lab.plan import Experiment, Measuring, Outcomes, Pair
from pi0_jax.lab.runs import Training


def _densities(training: Training) -> dict[str, Training]:
    """Returns a training with each density; with the paper's it is the one that others share."""
    name, write, changes = training
    others = {
        density: Training(f"{name}_{density}", write, {**changes, "time_density": density})
        for density in ("uniform", "logit_normal")
    }
    return {"pi0": training, **others}


TWO, GAUSSIAN = _densities(TWO_SIDES), _densities(gaussian.GAUSSIAN)


def _rollouts(density: str, at: Measuring) -> Outcomes:
    """Runs the policy of one density; its episodes are those of the others."""
    policy = at.policy(TWO[density])
    return {density: worlds.outcomes(at.rollouts(policy, worlds.setting))}


def _gaussian(density: str, at: Measuring) -> Outcomes:
    """Compares field and actions with the exact ones; times and noise are those of the others."""
    policy = at.policy(GAUSSIAN[density])
    learnt, exact = gaussian.samples(policy, at.seed)
    return {
        f"{density}, Gaussian": {
            "action error": [float(np.sqrt(np.mean((learnt - exact) ** 2) / np.mean(exact**2)))],
            "field error": [gaussian.field_error(policy, at.seed)],
            "field error, uniform": [gaussian.field_error(policy, at.seed, "uniform")],
        }
    }


EXPERIMENT = Experiment(
    name="time_density",
    title="E12. The density of times in training: the paper's, uniform, logit-normal",
    asked="The paper (appendix B) draws times from a shifted Beta(1.5, 1), which favours noise, and"
    " reasons that an observation tells much of the actions' mean; it shows no ablation. The notes on"
    " it (E12).",
    question="Are actions better if training draws more times near the noise, as the paper does, than"
    " with a uniform density, or with the logit-normal one of image models?",
    design="E1's two trainings, on two sides and on Gaussian actions, and the same with the other"
    " densities: same data, initial weights and order of frames. Actions of the Gaussian"
    " are compared with those that the exact field makes of the same noise in as many Euler steps, so"
    " that what Euler's method costs is left out.",
    limits="A chunk has 16 numbers; the paper's argument may count for more in larger ones. The rate of"
    " learning was tuned with the paper's density.",
    trainings=(*TWO.values(), *GAUSSIAN.values()),
    measure=tuple(partial(part, density) for part in (_rollouts, _gaussian) for density in TWO),
    quantities={
        **worlds.QUANTITIES,
        "action error": "root mean square of sampled less exact actions, over that of exact ones",
        "field error": "|v - v*| / |v*|, root mean square, at times of the paper's density",
        "field error, uniform": "the same at uniform times",
    },
    primary="action error",
    told=("field error", "field error, uniform", "margin", "success"),
    pairs=(
        Pair("uniform, Gaussian", "pi0, Gaussian"),
        Pair("logit_normal, Gaussian", "pi0, Gaussian"),
        Pair("uniform", "pi0", "margin"),
        Pair("logit_normal", "pi0", "margin"),
    ),
    expected=(),
    seconds=240.0,
)
