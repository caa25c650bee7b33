"""Measures what a device reaches in large matrix products; a training step is compared with it."""

import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp

# The matrices are so large that a product's time is that of its operations. Other backends than
# these are accelerators, and take _SIDE.
_SIDES = {"cpu": 1024}
_SIDE = 8192
# So many products are in one call, so that calling does not count.
_CHAIN = 8


def matmul_rate(dtype: str, *, repeats: int = 5) -> float:
    """Returns the floating-point operations per second of one device in square products.

    Args:
        dtype: the dtype of the numbers.
        repeats: how many calls are timed; the median counts.
    """
    side = _SIDES[jax.default_backend()] if jax.default_backend() in _SIDES else _SIDE
    keys = jax.random.split(jax.random.key(0))
    # The product of normal numbers has the same size again. With zeros some chips are quicker,
    # because they draw less power.
    x, w = (jax.random.normal(key, (side, side), dtype) for key in keys)
    w = (w / side**0.5).astype(dtype)
    chain = jax.jit(partial(_chain, length=_CHAIN)).lower(x, w).compile()
    jax.block_until_ready(chain(x, w))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(chain(x, w))
        times.append(time.perf_counter() - start)
    return _CHAIN * 2 * side**3 / statistics.median(times)


def _chain(x: jax.Array, w: jax.Array, *, length: int) -> jax.Array:
    return jax.lax.fori_loop(0, length, lambda _, x: jnp.matmul(x, w), x)
