"""What one chip can do at most, by JAX's name of its kind, and the roofline that follows."""

from typing import NamedTuple


class Chip(NamedTuple):
    name: str
    hbm_bytes: float
    flops: float  # bfloat16 matrix products, per second
    hbm_bandwidth: float  # bytes per second
    ici_bandwidth: float  # bytes per second that a chip can send around a ring along one axis of the torus: two links of its four or six


# docs.cloud.google.com/tpu/docs/v5e, v5p, v6e (read 2026-11): compute, HBM, and interconnect of all links in both directions (400, 1200 and
# 800 GB/s), of which a ring along one axis uses two links in one direction each. HBM is what XLA gives to a program, from its own message.
GIB = 2**30
CHIPS = {
    "TPU v5 lite": Chip("v5e", 15.75 * GIB, 197e12, 819e9, 100e9),
    "TPU v5": Chip("v5p", 95.74 * GIB, 459e12, 2765e9, 200e9),
    "TPU v6 lite": Chip("v6e", 31.25 * GIB, 918e12, 1638e9, 200e9),
}


# NVIDIA's data sheets: bfloat16 matrix products without sparsity, by how JAX's name begins; the first match counts.
_GPU_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12, "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12, "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}  # fmt: skip


def peak_flops(device_kind: str) -> float | None:
    """Operations per second of bfloat16 matrix products; None for what has no such number here, as CPUs."""
    if device_kind in CHIPS:
        return CHIPS[device_kind].flops
    return next((flops for name, flops in _GPU_FLOPS.items() if device_kind.startswith(name)), None)


class Roofline(NamedTuple):
    """Seconds that each resource needs at its peak rate. A step takes between the longest (all overlap) and their sum (none do)."""

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
    """From what one chip does in a step: floating-point operations, bytes through its HBM, bytes sent to other chips."""
    return Roofline(
        flops / chip.flops, hbm_traffic / chip.hbm_bandwidth, ici_sent / chip.ici_bandwidth
    )
