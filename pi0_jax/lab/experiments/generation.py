"""E1: does flow matching take one of two ways, where regression takes their mean?"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from pi0_jax import flow, preprocess
from pi0_jax.data.rows import Dataset
from pi0_jax.execution import OpenLoop
from pi0_jax.lab import data, worlds
from pi0_jax.lab.experiments.detour import TWO_SIDES
from pi0_jax.lab.plan import Expected, Experiment, Measuring, Outcomes
from pi0_jax.lab.runs import Training
from pi0_jax.models.pi0 import Pi0
from pi0_jax.models.sampling import apply
from pi0_jax.policy import Policy

_KEPT = 0.8  # how much of an action the next one keeps, in the Gaussian world
_EPISODES, _STEPS = 20, 400  # few ends of episodes, past which a chunk repeats its last action
_DRAWS = 512


def _write_gaussian(data_dir: Path, seed: int) -> Sequence[Dataset]:
    """Writes actions that are a stationary Gaussian process, beside states that say nothing."""
    rng = np.random.default_rng([seed, 0x6A55])
    states = rng.normal(size=(_EPISODES, _STEPS, len(worlds.RECORD.state)))
    actions = _process(rng, _EPISODES, _STEPS)
    record = worlds.RECORD.to_json()
    for dim in record["actions"]:
        dim["delta"] = False
    embodiment = type(worlds.RECORD).from_json({**record, "name": "planar_gaussian"})
    prompts = [worlds.PROMPT] * _EPISODES
    data.write(data_dir, "gaussian", np.float32(states), actions, prompts, {"seed": seed})
    return [data.row("gaussian", embodiment)]


def _process(rng: np.random.Generator, count: int, steps: int) -> np.ndarray:
    """Returns float32[count, steps, 2] of variance 0.09: x' = 0.8 x + 0.6 x new noise."""
    fresh = rng.normal(size=(count, steps, 2))
    values = [fresh[:, 0]]
    for step in range(1, steps):
        values.append(_KEPT * values[-1] + np.sqrt(1 - _KEPT**2) * fresh[:, step])
    return np.float32(0.3 * np.stack(values, axis=1))


def field(x: np.ndarray, t: float, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Returns E[noise - action | x_t = x] for Gaussian actions, float64[n, H].

    With x_t = t noise + (1 - t) a and a ~ N(m, C), x_t has covariance S = t^2 I + (1 - t)^2 C, and
    the expectation is (t I - (1 - t) C) S^-1 (x - (1 - t) m) - m.
    """
    one = np.eye(len(mean))
    spread = t**2 * one + (1 - t) ** 2 * covariance
    slope = (t * one - (1 - t) * covariance) @ np.linalg.inv(spread)
    return (x - (1 - t) * mean) @ slope.T - mean


def _gaussian(policy: Policy, seed: int) -> dict[str, list[float]]:
    """Compares the learnt field with the closed form, at times of the training's own density."""
    rng = np.random.default_rng([seed, 0xF1E1D])
    (robot,) = policy.robots.values()
    horizon, scale = policy.config.horizon, robot.statistics.actions
    mean, deviation = np.float64(scale.mean), np.float64(scale.std)  # [2] each
    chunks = (_process(rng, _DRAWS, horizon) - mean) / deviation  # model units
    noise = rng.normal(size=chunks.shape)
    times = np.asarray(flow.sample_time(jax.random.key(seed), (_DRAWS,)))
    x = times[:, None, None] * noise + (1 - times[:, None, None]) * chunks
    padded = np.zeros((*x.shape[:2], policy.config.action_dim), np.float32)
    padded[..., :2] = x
    states = rng.normal(size=(_DRAWS, len(robot.embodiment.state))).astype(np.float32)
    prepared = policy.prepare(
        [{"images": {}, "state": state, "prompt": worlds.PROMPT} for state in states]
    )

    @partial(jax.jit, static_argnames="layout")
    def velocity(weights, batch, x, t, layout):
        observation = preprocess.device(batch, layout)
        return apply(policy.model, weights, None, Pi0.velocity, observation, x[:, None], t[:, None])

    learnt = velocity(policy.weights, prepared.batch, padded, times, layout=prepared.layout)
    found = np.asarray(learnt, np.float64)[:, 0, :, :2]
    lags = np.abs(np.subtract.outer(np.arange(horizon), np.arange(horizon)))
    exact = np.empty_like(found)
    for draw, t in enumerate(times):
        for dim in range(2):
            covariance = 0.09 * _KEPT**lags / deviation[dim] ** 2
            centre = np.full(horizon, -mean[dim] / deviation[dim])
            exact[draw, :, dim] = field(x[draw, None, :, dim], t, centre, covariance)[0]
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    sampled = np.asarray(policy.compute(prepared), np.float64)[..., :2]
    return {
        "field error": [error],
        "variance": [float(np.var(sampled, axis=0).mean() / np.var(chunks, axis=0).mean())],
    }


def measure(at: Measuring) -> Outcomes:
    """Rolls each policy out with 10 Euler steps and with one, and compares the Gaussian fields."""
    found: Outcomes = {}
    for arm, steps in (("flow", 10), ("one step", 1)):
        one = at.trained[TWO_SIDES.name]
        episodes = one.rollouts(
            one.policy(steps), worlds.setting, OpenLoop(8), episodes=at.episodes, seed=at.seed
        )
        found[arm] = worlds.outcomes(episodes)
        found[f"Gaussian, {arm}"] = _gaussian(at.trained["gaussian"].policy(steps), at.seed)
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
    " field has a closed form.",
    limits="The control is this model's own estimate of the mean, not a network trained by"
    " regression. The world is small and without images; the obstacle lies where the mean goes,"
    " by design.",
    trainings=(TWO_SIDES, Training("gaussian", _write_gaussian, {"mask_past_end": True})),
    measure=measure,
    quantities={
        **worlds.QUANTITIES,
        "field error": "|v - v*| / |v*|, root mean square, at times of the training's density",
        "variance": "of sampled actions, over the data's",
    },
    primary="clearance",
    pairs=(("flow", "one step"), ("Gaussian, flow", "Gaussian, one step")),
    expected=(
        Expected("flow succeeds in 95% or more", "success", "flow", low=0.95),
        Expected("flow touches the obstacle in 5% or less", "collision", "flow", high=0.05),
        Expected("the control touches it in half or more", "collision", "one step", low=0.5),
        Expected("each side has 35% to 65%", "upper side", "flow", low=0.35, high=0.65),
        Expected("the field's error is 5% or less", "field error", "Gaussian, flow", high=0.05),
    ),
    seconds=90.0,
)
