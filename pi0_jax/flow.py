"""Flow matching: from noise to an action chunk along straight lines.

Time runs as in the published weights: t = 1 is noise, t = 0 is data. The paper's τ is 1 - t. Said once, here.

    x_t = t * noise + (1 - t) * actions        the interpolant
    v   = dx/dt = noise - actions              what the model learns
    x  <- x + dt v(x, t), dt = -1/N            N Euler steps from t = 1 to t = 0

Axes: B batch, K draws of noise and time per observation, H horizon, D action dimension.
A velocity function is v(x_t float32[B, K, H, D], t float32[B, K]) -> float32[B, K, H, D].
Source: π0 (arXiv 2410.24164), section IV and appendix B.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Velocity = Callable[[jax.Array, jax.Array], jax.Array]

TIME_CUTOFF = 0.999  # the paper's s


def sample_time(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """float32 times in [1 - s, 1] with the paper's density: τ = s(1 - x), so t = 1 - s + s x, with x ~ Beta(1.5, 1).

    Beta(1.5, 1) has distribution function x^1.5, so x = u^(2/3) for uniform u.
    """
    u = jax.random.uniform(key, shape, jnp.float32)
    return (1.0 - TIME_CUTOFF) + TIME_CUTOFF * u ** (2.0 / 3.0)


def interpolate(actions: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """x_t float32[B, K, H, D] from actions float32[B, H, D], noise float32[B, K, H, D], t float32[B, K]."""
    t = t[:, :, None, None]
    return t * noise + (1.0 - t) * actions[:, None]


def loss(
    velocity: Velocity,
    actions: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    *,
    step_mask: jax.Array | None = None,
    dim_mask: jax.Array | None = None,
) -> jax.Array:
    """float32[B, K]: for each sample and draw, the mean of (v - (noise - actions))² over the steps and dimensions that count.

    Args:
        step_mask: bool[B, H], the steps that count; None counts all, also past an episode's end, as published.
        dim_mask: bool[B, D], the dimensions that count; None counts all, padding too, as published. With a mask the noise in the other
            dimensions must be zero (`mask_dims`), and in sampling the velocity too: the model has seen nothing but zero there.
    """
    target = noise - actions[:, None]
    error = jnp.square(velocity(interpolate(actions, noise, t), t) - target)  # [B, K, H, D]
    weight = jnp.ones_like(actions)
    if step_mask is not None:
        weight = weight * step_mask[:, :, None]
    if dim_mask is not None:
        weight = weight * dim_mask[:, None, :]
    return jnp.sum(error * weight[:, None], axis=(2, 3)) / jnp.sum(weight, axis=(1, 2))[:, None]


def mask_dims(x: jax.Array, dim_mask: jax.Array) -> jax.Array:
    """Zeroes x [B, ..., D] in the dimensions that a robot does not have (bool[B, D])."""
    mask = dim_mask.reshape(dim_mask.shape[0], *(1,) * (x.ndim - 2), dim_mask.shape[1])
    return jnp.where(mask, x, 0.0)


def integrate(velocity: Velocity, noise: jax.Array, num_steps: int) -> jax.Array:
    """Actions float32[B, H, D] from noise float32[B, H, D] by `num_steps` (static, >= 1) Euler steps, summed in float32."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")

    dt = np.float32(-1.0 / num_steps)
    # Time is summed in float32 like the published sampler's: the shortest period of the time code turns 1e-7 of time into 1e-4 of phase.
    times = np.cumsum(np.array([1.0, *[dt] * (num_steps - 1)], np.float32), dtype=np.float32)

    def euler(x: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
        v = velocity(x[:, None], jnp.full((x.shape[0], 1), t))[:, 0]
        return x + dt * v.astype(jnp.float32), None

    actions, _ = jax.lax.scan(euler, noise.astype(jnp.float32), jnp.asarray(times))
    return actions
