"""What a device reaches in large matrix products: the rate that a training step is compared with."""

import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp

_SIDES = {"cpu": 1024}  # large enough that a product's time is its operations'
_SIDE = 8192  # of accelerators
_CHAIN = 8  # products in one call, so that calling does not count


def matmul_rate(dtype: str, *, repeats: int = 5) -> float:
    """Floating-point operations per second of one device, in square products of `dtype` numbers; the median of `repeats` calls."""
    side = _SIDES[jax.default_backend()] if jax.default_backend() in _SIDES else _SIDE
    keys = jax.random.split(jax.random.key(0))
    # Normal numbers, of which a product has the same size again. Of zeros some chips are quicker: they draw less power.
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
