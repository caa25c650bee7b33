"""Says how much one chip can do at most, and how much work a traced function is for it.

A chip's kind is named as JAX names it.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


class Chip(NamedTuple):
    """Holds the peak rates of one kind of chip.

    Attributes:
        name: the name that people use.
        hbm_bytes: the memory that XLA gives to a program.
        flops: operations of bfloat16 matrix products per second.
        hbm_bandwidth: bytes per second from and to the memory.
        ici_bandwidth: bytes per second that a chip can send around a ring along one axis of the
            torus. A ring uses two of the chip's four or six links.
    """

    name: str
    hbm_bytes: float
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float


# Compute, HBM and interconnect are from docs.cloud.google.com/tpu/docs/v5e, v5p, v6e (read
# 2026-11). Those pages give the interconnect of all links in both directions (400, 1200 and 800
# GB/s). A ring along one axis uses two of the links, in one direction each. The size of the HBM is
# what XLA gives to a program, from its own message.
GIB = 2**30
CHIPS = {
    "TPU v5 lite": Chip("v5e", 15.75 * GIB, 197e12, 819e9, 100e9),
    "TPU v5": Chip("v5p", 95.74 * GIB, 459e12, 2765e9, 200e9),
    "TPU v6 lite": Chip("v6e", 31.25 * GIB, 918e12, 1638e9, 200e9),
}

# From NVIDIA's data sheets: bfloat16 matrix products without sparsity. The key is how JAX's name
# begins, and the first match counts.
_GPU_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12, "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12, "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}  # fmt: skip


def peak_flops(device_kind: str) -> float | None:
    """Returns a device's bfloat16 matrix-product operations per second at peak.

    It returns None for a kind of device that is not in the tables, such as a CPU.
    """
    if device_kind in CHIPS:
        return CHIPS[device_kind].flops
    return next((flops for name, flops in _GPU_FLOPS.items() if device_kind.startswith(name)), None)


class Roofline(NamedTuple):
    """Holds the seconds that each resource needs at its peak rate.

    A step takes at least the longest of them (all overlap) and at most their sum (none overlap).
    """

    compute: float
    hbm: float
    ici: float

    @property
    def fastest(self) -> float:
        return max(self)

    @property
    def slowest(self) -> float:
        return sum(self)


def roofline(chip: Chip, *, flops: float, hbm_traffic: float, ici_sent: float) -> Roofline:
    """Returns the times of one step, by what one chip computes, moves and sends in it.

    Args:
        chip: the kind of chip.
        flops: floating-point operations.
        hbm_traffic: bytes read from and written to the chip's HBM.
        ici_sent: bytes sent to other chips.
    """
    return Roofline(
        flops / chip.flops, hbm_traffic / chip.hbm_bandwidth, ici_sent / chip.ici_bandwidth
    )


def matmul_flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Returns the operations of all matrix products in a jaxpr, on all devices together.

    A multiply-add is two operations. A scan counts as often as it runs, and of a conditional the
    longer branch counts. A while loop's length is not known, so it counts once. XLA's own count is
    not used, because on TPUs it takes a loop's body only once.

    Args:
        jaxpr: of `jax.jit(f).trace(*args).jaxpr`.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: JaxprEqn) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left, output = equation.invars[0].aval, equation.outvars[0].aval
        assert isinstance(left, ShapedArray) and isinstance(output, ShapedArray)  # they are arrays
        # Each number of the output is a sum over the contracted axes.
        return 2 * math.prod(output.shape) * math.prod(left.shape[axis] for axis in contracted)
    inner = [matmul_flops(jaxpr) for jaxpr in _jaxprs(equation)]
    if equation.primitive.name == "cond":
        return max(inner)
    return sum(inner) * (equation.params["length"] if equation.primitive.name == "scan" else 1)


def _jaxprs(equation: JaxprEqn) -> Iterator[Any]:
    """Yields the jaxprs among an equation's parameters: the bodies of loops, branches and calls."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                yield item
