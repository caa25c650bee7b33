"""Measures what the device at hand can do, and tells the least time that some work takes on it.

    least time = max(operations / measured rate of a matrix product, bytes / measured bandwidth)

Operations are those of matrix products. Bytes are what must come from memory: every weight once, a
weight of the Euler steps once in every step, and the cached keys and values. Activations are taken
to stay in the device's caches.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_LONG_ENOUGH = 0.02  # s, of one call, to measure a rate
_LARGEST_MATRIX = 16_384
_LARGEST_ARRAY = 1 << 31  # bytes
_REPEATS = 10


class Device(NamedTuple):
    """Holds the measured rates of a device.

    Attributes:
        name: the device's kind.
        flops: operations per second of a large matrix product.
        bandwidth: bytes per second, read and written.
    """

    name: str
    flops: float
    bandwidth: float

    def least_seconds(self, work: "Work") -> float:
        return max(work.flops / self.flops, work.bytes / self.bandwidth)


class Work(NamedTuple):
    """Holds the operations and the bytes of some work."""

    flops: int
    bytes: int


def measure_device(dtype: str) -> Device:
    """Measures the first device with arrays of that dtype: the best of several calls each."""
    return Device(jax.devices()[0].device_kind, _matrix_rate(dtype), _bandwidth(dtype))


def _matrix_rate(dtype: str) -> float:
    product = jax.jit(jnp.matmul)
    side = 512
    while True:
        x = jnp.full((side, side), 0.5, dtype)
        seconds = _best(product, x, x)
        if seconds > _LONG_ENOUGH or side == _LARGEST_MATRIX:
            return 2 * side**3 / seconds
        side *= 2


def _bandwidth(dtype: str) -> float:
    # It adds in place: a new array's pages would have to be made first.
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    size = 1 << 26
    while True:
        x = [jnp.zeros(size // jnp.dtype(dtype).itemsize, dtype)]

        def step(held: list[jax.Array] = x) -> jax.Array:
            held[0] = add(held[0])
            return held[0]

        seconds = _best(step)
        if seconds > _LONG_ENOUGH or size == _LARGEST_ARRAY:
            return 2 * size / seconds
        size *= 2


def _best(function: Callable[..., jax.Array], *args: Any) -> float:
    """Returns the seconds of the fastest of several calls, after one that compiles."""
    function(*args).block_until_ready()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        function(*args).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
