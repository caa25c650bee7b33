"""Encodes times by sines and cosines, as the action expert reads them."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

# Periods of the sinusoidal code of time t in [0, 1].
MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0


def time_code(t: Float32[Array, "..."], width: int) -> Float32[Array, "... {width}"]:
    """Encodes times by sines, then cosines.

    Their angles are 2*pi*t / period. The periods are spaced geometrically from 0.004 to 4.
    """
    angle = t.astype(jnp.float32)[..., None] * time_frequencies(width // 2)  # [..., width / 2]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def time_frequencies(count: int) -> Float32[np.ndarray, " {count}"]:
    """Returns the time code's frequencies, in radians per unit of time.

    They are a host constant, the same on every device. Each operation is rounded to float32 in the
    published order: an angle reaches 1,571 rad, so one unit in the last place of a frequency moves
    the velocity by 1e-4.
    """
    fraction = np.arange(count, dtype=np.float32) * np.float32(1.0 / max(count - 1, 1))
    fraction[-1] = 1.0
    ratio = np.float64(np.float32(MAX_PERIOD / MIN_PERIOD)) ** fraction.astype(np.float64)
    period = np.float32(MIN_PERIOD) * ratio.astype(np.float32)
    return np.float32(1.0) / period * np.float32(2.0) * np.float32(np.pi)
