"""Holds a training whose velocity field is known: actions that are a Gaussian process.

States say nothing of the actions. A chunk is Gaussian with mean 0 and covariance 0.8^|i - j|, up to
its scale.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pi0_jax import flow, preprocess
from pi0_jax.data.rows import Dataset
from pi0_jax.lab import data, worlds
from pi0_jax.lab.runs import Training
from pi0_jax.models.pi0 import Pi0
from pi0_jax.models.sampling import apply
from pi0_jax.policy import Policy
from pi0_jax.policy.program import Prepared
from pi0_jax.preprocess import Layout

_VARIANCE = 0.09
_KEPT = 0.8  # how much of an action the next one keeps, in the Gaussian world
_EPISODES, _STEPS = 20, 1500  # few ends of episodes, past which a chunk repeats its last action
_DRAWS = 512


def _write(data_dir: Path, seed: int) -> Sequence[Dataset]:
    """Writes actions that are a stationary Gaussian process, beside states that say nothing."""
    rng = np.random.default_rng([seed, 0x6A55])
    states = rng.normal(size=(_EPISODES, _STEPS, len(worlds.RECORD.state))).astype(np.float32)
    embodiment = dataclasses.replace(
        worlds.RECORD,
        name="planar_gaussian",
        actions=tuple(dataclasses.replace(dim, delta=False) for dim in worlds.RECORD.actions),
    )
    actions = _process(rng, _EPISODES, _STEPS)
    settings = {"seed": seed, "episodes": _EPISODES, "steps": _STEPS}
    name = "gaussian"
    return [data.write(data_dir, name, embodiment, states, actions, worlds.PROMPT, settings)]


def _process(rng: np.random.Generator, count: int, steps: int) -> np.ndarray:
    """Returns float32[count, steps, 2] of variance 0.09: x' = 0.8 x + 0.6 x new noise."""
    fresh = rng.normal(size=(count, steps, 2))
    values = [fresh[:, 0]]
    for step in range(1, steps):
        values.append(_KEPT * values[-1] + np.sqrt(1 - _KEPT**2) * fresh[:, step])
    return (np.sqrt(_VARIANCE) * np.stack(values, axis=1)).astype(np.float32)


def field(
    x: np.ndarray, t: float | np.ndarray, mean: np.ndarray, covariance: np.ndarray
) -> np.ndarray:
    """Returns E[noise - action | x_t = x] for Gaussian actions, float64[..., H].

    With x_t = t noise + (1 - t) a and a ~ N(m, C), x_t has covariance S = t^2 I + (1 - t)^2 C, and
    the expectation is (t I - (1 - t) C) S^-1 (x - (1 - t) m) - m. The axes before H of all four
    broadcast.
    """
    one, t = np.eye(mean.shape[-1]), np.asarray(t)[..., None]
    many = t[..., None]
    spread = many**2 * one + (1 - many) ** 2 * covariance
    slope = (many * one - (1 - many) * covariance) @ np.linalg.inv(spread)
    return np.einsum("...ij,...j->...i", slope, x - (1 - t) * mean) - mean


def _moments(policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and covariance of each dimension of a chunk in model units, [2, H], [2, H, H]."""
    (robot,), horizon = policy.robots.values(), policy.config.horizon
    scale = robot.statistics.actions
    mean, deviation = (np.asarray(part, np.float64)[:, None] for part in (scale.mean, scale.std))
    lags = np.abs(np.subtract.outer(np.arange(horizon), np.arange(horizon)))
    centre = np.broadcast_to(-mean / deviation, (2, horizon))
    return centre, _VARIANCE * _KEPT**lags / deviation[:, :, None] ** 2


def _prepared(policy: Policy, rng: np.random.Generator, seed: int) -> Prepared:
    """Returns observations that say nothing, each with noise of its own, other in each seed."""
    states = rng.normal(size=(_DRAWS, len(worlds.RECORD.state)))
    return policy.prepare(worlds.observed(states), range(seed * _DRAWS, (seed + 1) * _DRAWS))


@partial(jax.jit, static_argnames=("model", "layout"))
def _velocity(weights: Any, batch: Any, x: Any, t: Any, *, model: Pi0, layout: Layout) -> Any:
    observation = preprocess.device(batch, layout)
    return apply(model, weights, None, Pi0.velocity, observation, x[:, None], t[:, None])


def field_error(policy: Policy, seed: int, density: flow.TimeDensity = "pi0") -> float:
    """Returns |v - v*| / |v*| of the learnt field, at times of this density."""
    rng = np.random.default_rng([seed, 0xF1E1D])
    (mean, covariance), prepared = _moments(policy), _prepared(policy, rng, seed)
    moments = zip(mean, covariance, strict=True)
    chunks = np.stack([rng.multivariate_normal(*dim, _DRAWS) for dim in moments], -1)
    times = np.asarray(flow.sample_time(jax.random.key(seed), (_DRAWS,), density))
    x = times[:, None, None] * rng.normal(size=chunks.shape) + (1 - times[:, None, None]) * chunks
    padded = np.pad(np.float32(x), ((0, 0), (0, 0), (0, policy.config.action_dim - 2)))
    learnt = _velocity(
        policy.weights, prepared.batch, padded, times, model=policy.model, layout=prepared.layout
    )
    found = np.asarray(learnt, np.float64)[:, 0, :, :2]
    exact = field(x.swapaxes(1, 2), times[:, None], mean, covariance).swapaxes(1, 2)
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


def variances(policy: Policy, seed: int) -> tuple[float, ...]:
    """Returns the variance of sampled actions over the data's: the policy's, and the exact field's."""
    covariance, sampled = _moments(policy)[1], samples(policy, seed)
    of_data = np.trace(covariance, axis1=1, axis2=2).mean() / covariance.shape[1]
    return tuple(float(np.var(chunks, axis=0).mean() / of_data) for chunks in sampled)


def samples(policy: Policy, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns chunks in model units, [n, 2, H]: the policy's, and those of the exact field.

    Both take the policy's number of Euler steps, from the same noise.
    """
    rng, steps = np.random.default_rng([seed, 0x5A]), policy.num_steps
    mean, covariance = _moments(policy)
    prepared = _prepared(policy, rng, seed)
    sampled = np.asarray(policy.compute(prepared), np.float64)[..., :2].swapaxes(1, 2)
    x = np.asarray(prepared.noise, np.float64)[..., :2].swapaxes(1, 2)
    for step in range(steps):
        x = x - field(x, 1 - step / steps, mean, covariance) / steps
    return sampled, x


GAUSSIAN = Training("gaussian", _write, {"mask_past_end": True})
