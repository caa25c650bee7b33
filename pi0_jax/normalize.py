"""Statistics of states and actions: accumulate, save, load, apply, invert. Float64 on the host; no device code.

One set per (dataset, embodiment). Two ways to normalise, chosen in the config:
    zscore:   (x - mean) / (std + 1e-6)                          as published for π0
    quantile: 2 (x - q01) / (q99 - q01 + 1e-6) - 1
A dimension without spread (a standard deviation, in quantile mode also a q99 - q01, below 1e-6) is never divided by: it is centred only.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from pi0_jax.errors import InputError

Mode = Literal["zscore", "quantile"]
EPSILON = 1e-6
CONSTANT = 1e-6  # a dimension with less spread counts as constant


class VectorStatistics(NamedTuple):
    """Per dimension, float64[n]."""

    mean: np.ndarray
    std: np.ndarray  # population standard deviation
    q01: np.ndarray  # 1st percentile
    q99: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray


class Statistics(NamedTuple):
    """Of one dataset on one embodiment, in robot units; actions after the delta conversion, over whole chunks."""

    state: VectorStatistics
    actions: VectorStatistics


def accumulate(blocks: Iterable[np.ndarray]) -> VectorStatistics:
    """Exact statistics of the rows of float[n, dims] blocks; two passes over float64 copies, so a large mean costs no digits."""
    values = np.concatenate([np.asarray(block, np.float64) for block in blocks])
    if not len(values):
        raise InputError("statistics of no rows: the dataset has no frames in this split")
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    return VectorStatistics(values.mean(axis=0), values.std(axis=0), q01, q99, values.min(axis=0), values.max(axis=0))


def constant(statistics: VectorStatistics, mode: Mode) -> np.ndarray:
    """bool[n]: dimensions that hardly vary, so that the mode cannot scale them."""
    if mode == "zscore":
        return statistics.std < CONSTANT
    # A gripper that is open in 99.5% of the frames varies, and yet both quantiles are "open".
    return (statistics.std < CONSTANT) | (statistics.q99 - statistics.q01 < CONSTANT)


def _offset_and_scale(statistics: VectorStatistics, mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    if mode == "zscore":
        offset, scale = statistics.mean, statistics.std + EPSILON
    elif mode == "quantile":
        scale = (statistics.q99 - statistics.q01 + EPSILON) / 2
        offset = statistics.q01 + scale
    else:
        raise InputError(f"normalisation {mode!r} is unknown; expected zscore or quantile")
    return offset, np.where(constant(statistics, mode), 1.0, scale)


def normalize(x: np.ndarray, statistics: VectorStatistics, mode: Mode) -> np.ndarray:
    """Robot units float[..., n] -> model units float32[..., n]."""
    offset, scale = _offset_and_scale(statistics, mode)
    return ((x - offset) / scale).astype(np.float32)


def denormalize(x: np.ndarray, statistics: VectorStatistics, mode: Mode) -> np.ndarray:
    """Model units float[..., n] -> robot units float32[..., n]."""
    offset, scale = _offset_and_scale(statistics, mode)
    return (x * scale + offset).astype(np.float32)


_FIELDS = {"mean": "mean", "std": "std", "q01": "q01", "q99": "q99", "min": "minimum", "max": "maximum"}


def to_json(statistics: Statistics) -> dict[str, Any]:
    return {
        part: {key: values.tolist() for key, values in zip(_FIELDS, vector, strict=True)} for part, vector in statistics._asdict().items()
    }


def from_json(record: Mapping[str, Any], source: str) -> Statistics:
    """`source` names the file in errors."""

    def vector(part: str) -> VectorStatistics:
        missing = [f"{part}.{key}" for key in _FIELDS if key not in record.get(part, {})]
        if missing:
            raise InputError(f"{source}: statistics lack {', '.join(missing)}")
        return VectorStatistics(**{field: np.asarray(record[part][key], np.float64) for key, field in _FIELDS.items()})

    return Statistics(vector("state"), vector("actions"))
