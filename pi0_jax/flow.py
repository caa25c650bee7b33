"""Flow matching goes from noise to an action chunk along straight lines.

Time runs as in the published weights: t = 1 is noise, t = 0 is data. The paper's τ is 1 - t. Only
this file says it.

    x_t = t * noise + (1 - t) * actions        the interpolant
    v   = dx/dt = noise - actions              what the model learns
    x  <- x + dt v(x, t), dt = -1/N            N Euler steps from t = 1 to t = 0

Axes: B batch, K draws of noise and time per observation, H horizon, D action dimension.
A velocity function is v(x_t, t). Training passes the model's full forward pass; sampling passes the
one with a cached prefix (K = 1).
Source: π0 (arXiv 2410.24164), section IV and appendix B.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Key

Velocity = Callable[
    [Float32[Array, "B K H D"], Float32[Array, "B K"]],  # x_t, t
    Float[Array, "B K H D"],
]

TimeDensity = Literal["pi0", "uniform", "logit_normal"]
TIME_CUTOFF = 0.999  # the paper's s


def sample_time(
    key: Key[Array, ""], shape: tuple[int, ...], density: TimeDensity = "pi0"
) -> Float32[Array, "..."]:
    """Draws times of this shape in [1 - s, 1], by default with the paper's density.

    τ = s(1 - x), so t = 1 - s + s x, with x ~ Beta(1.5, 1). Beta(1.5, 1) has distribution function
    x^1.5, so x = u^(2/3) for uniform u. The others are not the paper's: x = u, and x = 1 / (1 +
    exp(-z)) for standard normal z (Esser et al. 2024, arXiv 2403.03206, section 3.1).
    """
    if density == "logit_normal":
        x = jax.nn.sigmoid(jax.random.normal(key, shape, jnp.float32))
    else:
        u = jax.random.uniform(key, shape, jnp.float32)
        x = u if density == "uniform" else u ** (2.0 / 3.0)
    return (1.0 - TIME_CUTOFF) + TIME_CUTOFF * x


def interpolate(
    actions: Float32[Array, "B H D"], noise: Float32[Array, "B K H D"], t: Float32[Array, "B K"]
) -> Float32[Array, "B K H D"]:
    """Mixes actions and noise to noisy actions: x_t = t * noise + (1 - t) * actions."""
    t = t[:, :, None, None]
    return t * noise + (1.0 - t) * actions[:, None]


def loss(
    velocity: Velocity,
    actions: Float32[Array, "B H D"],
    noise: Float32[Array, "B K H D"],
    t: Float32[Array, "B K"],
    *,
    step_mask: Bool[Array, "B H"] | None = None,
    dim_mask: Bool[Array, "B D"] | None = None,
) -> Float32[Array, "B K"]:
    """Computes the mean of (v - (noise - actions))² for each sample and draw.

    Args:
        velocity: predicts v from noisy actions and times.
        actions: the data, where t is 0.
        noise: the other end of the lines, where t is 1.
        t: times.
        step_mask: the steps that count; None counts all, also past an episode's end, as published.
        dim_mask: the dimensions that count; None counts all, padding too, as published. With a mask
            the noise in the other dimensions must be zero (`mask_dims`), and `integrate` must get
            it too: the model has seen nothing but zero there.
    """
    target = noise - actions[:, None]  # [B, K, H, D]
    error = jnp.square(velocity(interpolate(actions, noise, t), t) - target)  # [B, K, H, D]
    weight = jnp.ones_like(actions)  # [B, H, D]
    if step_mask is not None:
        weight = weight * step_mask[:, :, None]
    if dim_mask is not None:
        weight = weight * dim_mask[:, None, :]
    return jnp.sum(error * weight[:, None], axis=(2, 3)) / jnp.sum(weight, axis=(1, 2))[:, None]


def mask_dims(
    x: Float[Array, "B ... D"], dim_mask: Bool[Array, "B D"] | None
) -> Float[Array, "B ... D"]:
    """Zeroes the dimensions that a robot does not have.

    Args:
        x: such as actions, noise or velocities.
        dim_mask: the dimensions that it has; None leaves x as it is.
    """
    if dim_mask is None:
        return x
    mask = dim_mask.reshape(dim_mask.shape[0], *(1,) * (x.ndim - 2), dim_mask.shape[1])
    return jnp.where(mask, x, 0.0)


def integrate(
    velocity: Velocity,
    noise: Float[Array, "B H D"],
    num_steps: int,
    *,
    dim_mask: Bool[Array, "B D"] | None = None,
    unroll: bool = False,
) -> Float32[Array, "B H D"]:
    """Follows a velocity from noise to actions, by Euler steps that are summed in float32.

    Args:
        velocity: predicts v from noisy actions and times; called with K = 1.
        noise: standard normal, the start.
        num_steps: N, static, at least 1.
        dim_mask: the dimensions that move; the others hold zero all the way, for a model that was
            trained so. None lets all move.
        unroll: whether each step is compiled by itself, instead of a loop.

    Returns:
        The actions at t = 0.

    Raises:
        ValueError: num_steps is less than 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")

    dt = np.float32(-1.0 / num_steps)
    # Time is summed in float32 like the published sampler's: the shortest period of the time code
    # turns 1e-7 of time into 1e-4 of phase.
    times = np.cumsum(np.array([1.0, *[dt] * (num_steps - 1)], np.float32), dtype=np.float32)

    def euler(
        x: Float32[Array, "B H D"], t: Float32[Array, ""]
    ) -> tuple[Float32[Array, "B H D"], None]:
        v = velocity(x[:, None], jnp.full((x.shape[0], 1), t))[:, 0]  # [B, H, D]
        return x + dt * mask_dims(v.astype(jnp.float32), dim_mask), None

    start = mask_dims(noise.astype(jnp.float32), dim_mask)
    actions, _ = jax.lax.scan(euler, start, jnp.asarray(times), unroll=unroll)
    return actions
