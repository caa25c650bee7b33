"""Says how much one chip can do at most, and how long a program takes by the roofline.

A chip's kind is named as JAX names it.
"""

from typing import NamedTuple


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

    Args:
        device_kind: JAX's name of the device's kind.

    Returns:
        None for a device without such a number here, such as a CPU.
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
    """Returns the times of one step at a chip's peak rates.

    Args:
        chip: the kind of chip.
        flops: floating-point operations of one chip in a step.
        hbm_traffic: bytes that one chip reads from and writes to its HBM in a step.
        ici_sent: bytes that one chip sends to other chips in a step.
    """
    return Roofline(
        flops / chip.flops, hbm_traffic / chip.hbm_bandwidth, ici_sent / chip.ici_bandwidth
    )
